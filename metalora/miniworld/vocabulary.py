"""The words of the mini world: every value of every attribute and how a caption says it."""

STYLES = {
    "photo": "a photo",
    "pencil": "a pencil drawing",
    "ink": "an ink wash painting",
    "popart": "a pop art poster",
    "marble": "a marble sculpture",
    "vangogh": "a van gogh painting",
    "cyberpunk": "a cyberpunk picture",
    "watercolor": "a watercolor painting",
}
SCENES = {
    "beach": "on a beach",
    "forest": "in a forest",
    "garden": "in a garden",
    "desert": "in a desert",
    "snow": "in the snow",
    "brick": "at a brick wall",
    "library": "in a library",
    "city": "in a city at night",
    "sunset": "at sunset",
    "studio": "in a studio",
}
SHIRTS = {
    "red": "in a red shirt",
    "blue": "in a blue shirt",
    "green": "in a green shirt",
    "yellow": "in a yellow shirt",
    "purple": "in a purple shirt",
    "orange": "in an orange shirt",
    "black": "in a black shirt",
    "white": "in a white shirt",
}
EXPRESSIONS = {"neutral": "", "smiling": "smiling", "surprised": "surprised", "angry": "angry"}
LIGHTS = {"soft": "soft light", "warm": "warm light", "cool": "cool light", "dramatic": "dramatic light"}
POSES = {"front": "facing the camera", "left": "turned left", "right": "turned right"}
FRAMINGS = {"close": "close-up", "portrait": "", "wide": "wide"}

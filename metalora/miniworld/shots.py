"""A shot: every circumstance of a photo, fully apart from who is on it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from metalora.miniworld.vocabulary import EXPRESSIONS, LIGHTS, POSES, SCENES, SHIRTS, STYLES

SCALE_RANGE = (0.45, 1.4)
CLOSE_FROM, WIDE_BELOW = 1.1, 0.65  # scales at which the framing is called close-up or wide
TURNED_YAW = (20.0, 50.0)  # degrees


@dataclass(frozen=True)
class Shot:
    """All nuisances of one picture.

    Args:
        style, scene, shirt, expression, light, pose, framing: keys of the vocabulary.
        yaw, pitch, roll: head pose in degrees; positive yaw turns the face towards the right edge of the picture.
        gaze_x, gaze_y: where the eyes look, in [-1, 1].
        scale: face height relative to 0.6 of the picture's reference length, in [0.45, 1.4].
        offset_x, offset_y: shift of the face from its place, in fractions of the reference length.
        seed: varies the scene instance, the clothes and the grain.
    """

    style: str
    scene: str
    shirt: str
    expression: str
    light: str
    pose: str
    framing: str
    yaw: float
    pitch: float
    roll: float
    gaze_x: float
    gaze_y: float
    scale: float
    offset_x: float
    offset_y: float
    seed: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Shot":
        return Shot(**json.loads(text))


def framing_of(scale: float) -> str:
    """The name of a framing: "close", "portrait" or "wide"."""
    return "close" if scale >= CLOSE_FROM else "wide" if scale < WIDE_BELOW else "portrait"


def sample_shot(rng: np.random.Generator, *, fixed: Mapping[str, Any]) -> Shot:
    """Draw a shot; what `fixed` names keeps its value (a fixed pose draws its yaw, a fixed yaw names its pose).

    Args:
        rng: source of every choice; always consumed equally, whatever is fixed.
        fixed: values by the name of the attribute.
    """

    def choose(words: Mapping[str, str], weights: list[float] | None = None) -> str:
        return str(rng.choice(list(words), p=weights))

    drawn: dict[str, Any] = {
        "style": choose(STYLES, [0.65] + [0.05] * 7),
        "scene": choose(SCENES),
        "shirt": choose(SHIRTS),
        "expression": choose(EXPRESSIONS, [0.34, 0.28, 0.19, 0.19]),
        "light": choose(LIGHTS, [0.34, 0.22, 0.22, 0.22]),
        "pose": choose(POSES, [0.5, 0.25, 0.25]),
        "scale": math.exp(rng.uniform(math.log(SCALE_RANGE[0]), math.log(SCALE_RANGE[1]))),
        "pitch": float(np.clip(rng.normal(0, 6), -16, 16)),
        "roll": float(np.clip(rng.normal(0, 4), -12, 12)),
        "gaze_x": float(np.clip(rng.normal(0, 0.35), -1, 1)),
        "gaze_y": float(np.clip(rng.normal(0, 0.25), -1, 1)),
        "offset_x": float(np.clip(rng.normal(0, 0.05), -0.12, 0.12)),
        "offset_y": float(np.clip(rng.normal(0, 0.03), -0.07, 0.07)),
        "seed": int(rng.integers(1 << 30)),
    }
    jitter, turn = float(np.clip(rng.normal(0, 5), -12, 12)), rng.uniform(*TURNED_YAW)
    unknown = set(fixed) - set(drawn) - {"yaw", "framing"}
    assert not unknown, f"unknown attributes {unknown}"
    drawn.update(fixed)
    if "yaw" in fixed:
        drawn["pose"] = "left" if fixed["yaw"] < -15 else "right" if fixed["yaw"] > 15 else "front"
    else:
        drawn["yaw"] = {"front": jitter, "left": -turn, "right": turn}[drawn["pose"]]
    drawn["framing"] = framing_of(drawn["scale"])
    return Shot(**drawn)

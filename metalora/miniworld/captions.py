"""The mini world's vocabulary and the grammar of its captions: class and circumstances, never who it is."""

from collections.abc import Collection

import numpy as np

from metalora.miniworld.shots import Shot
from metalora.miniworld.vocabulary import EXPRESSIONS, FRAMINGS, LIGHTS, POSES, SCENES, SHIRTS, STYLES

ATTRIBUTES = ("style", "framing", "expression", "shirt", "scene", "light", "pose")
_FULL_ODDS = {"style": 0.95, "framing": 0.35, "expression": 0.6, "shirt": 0.6, "scene": 0.85, "light": 0.4, "pose": 0.6}


def caption(class_noun: str, shot: Shot, *, include: Collection[str]) -> str:
    """Write the caption of a shot, lower case, at most 20 words.

    Args:
        class_noun: "man" or "woman".
        shot: the circumstances.
        include: which of `ATTRIBUTES` are told; a style that is not told reads "a picture of".
    """
    assert set(include) <= set(ATTRIBUTES), include
    words = STYLES[shot.style] if "style" in include else "a picture"
    if "framing" in include and FRAMINGS[shot.framing]:
        words = f"a {FRAMINGS[shot.framing]} {words.split(' ', 1)[1]}"
    words = f"{words} of a {class_noun}"
    told = {
        "expression": EXPRESSIONS[shot.expression],
        "shirt": SHIRTS[shot.shirt],
        "scene": SCENES[shot.scene],
        "light": LIGHTS[shot.light],
        "pose": POSES[shot.pose],
    }
    parts = [told[name] for name in ("expression", "shirt", "scene") if name in include and told[name]]
    words = " ".join([words, *parts])
    return ", ".join([words, *(told[name] for name in ("light", "pose") if name in include and told[name])])


def sample_caption(rng: np.random.Generator, class_noun: str, shot: Shot) -> str:
    """A caption of a random subset of the attributes; one in eight is only "a photo of a woman" and the like."""
    if rng.random() < 0.125:
        return caption(class_noun, shot, include={"style"})
    while True:
        include = {name for name in ATTRIBUTES if rng.random() < _FULL_ODDS[name]}
        text = caption(class_noun, shot, include=include)
        if len(text.replace(",", "").split()) <= 20 and len(text.replace(",", " ,").split()) <= 24:
            return text

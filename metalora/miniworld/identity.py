"""Who a synthetic person is: one vector of anatomy, hair and marks that no photo's circumstances touch.

Units: the head is about 2.3 units from chin to crown, eyes at height 0; most parameters are multipliers around 1.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

HAIR_STYLES = (
    "bald",
    "buzz",
    "short",
    "quiff",
    "receding",
    "curly",
    "side parting",
    "bob",
    "long",
    "wavy",
    "bun",
    "pixie",
)
BEARDS = ("none", "stubble", "moustache", "goatee", "full")

# name: (low, high) for a man, (low, high) for a woman; drawn from a broad symmetric Beta between them.
_RANGES: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "tone": ((0.0, 1.0), (0.0, 1.0)),
    "undertone": ((-1.0, 1.0), (-1.0, 1.0)),
    "skull_width": ((0.88, 1.14), (0.86, 1.08)),
    "skull_height": ((0.90, 1.12), (0.90, 1.10)),
    "skull_depth": ((0.92, 1.08), (0.92, 1.06)),
    "face_width": ((0.86, 1.16), (0.84, 1.10)),
    "jaw_width": ((0.86, 1.32), (0.66, 1.02)),
    "jaw_length": ((-0.10, 0.20), (-0.13, 0.11)),
    "chin_width": ((0.80, 1.75), (0.55, 1.10)),
    "chin_forward": ((-0.08, 0.14), (-0.08, 0.07)),
    "cheek_bone": ((0.0, 1.0), (0.0, 1.0)),
    "cheek_fat": ((0.0, 1.0), (0.0, 1.0)),
    "brow_ridge": ((0.35, 1.35), (0.0, 0.45)),
    "nose_length": ((0.80, 1.26), (0.76, 1.14)),
    "nose_width": ((0.72, 1.55), (0.62, 1.30)),
    "nose_bridge": ((0.70, 1.40), (0.62, 1.10)),
    "nose_height": ((0.72, 1.40), (0.65, 1.18)),
    "nose_tip": ((0.75, 1.45), (0.68, 1.20)),
    "nose_hook": ((-0.6, 1.0), (-0.9, 0.5)),
    "eye_gap": ((0.84, 1.20), (0.84, 1.20)),
    "eye_width": ((0.80, 1.16), (0.90, 1.30)),
    "eye_open": ((0.62, 1.10), (0.82, 1.35)),
    "eye_tilt": ((-0.22, 0.24), (-0.14, 0.34)),
    "eye_height": ((-0.06, 0.07), (-0.06, 0.07)),
    "eye_depth": ((0.3, 1.2), (0.0, 0.9)),
    "brow_thickness": ((0.75, 1.75), (0.40, 1.05)),
    "brow_length": ((0.85, 1.20), (0.80, 1.15)),
    "brow_arch": ((-0.15, 0.8), (0.2, 1.5)),
    "brow_tilt": ((-0.20, 0.18), (-0.14, 0.22)),
    "brow_gap": ((0.72, 1.10), (0.92, 1.38)),
    "mouth_width": ((0.80, 1.32), (0.74, 1.22)),
    "mouth_height": ((-0.06, 0.06), (-0.05, 0.07)),
    "lip_upper": ((0.40, 1.15), (0.75, 1.60)),
    "lip_lower": ((0.55, 1.25), (0.85, 1.70)),
    "lip_red": ((0.0, 0.45), (0.35, 1.0)),
    "lip_hue": ((0.0, 1.0), (0.0, 1.0)),
    "ear_size": ((0.80, 1.35), (0.70, 1.10)),
    "ear_out": ((-0.02, 0.12), (-0.03, 0.07)),
    "lashes": ((0.15, 0.5), (0.6, 1.3)),
    "eye_shadow": ((0.0, 0.12), (0.0, 0.75)),
    "blush": ((0.0, 0.35), (0.1, 0.8)),
    "wrinkles": ((0.0, 1.0), (0.0, 0.6)),
    "neck_width": ((0.95, 1.28), (0.70, 0.92)),
    "shoulder_width": ((0.98, 1.22), (0.78, 0.97)),
    "hair_volume": ((0.0, 1.0), (0.0, 1.0)),
    "hair_length": ((0.0, 1.0), (0.0, 1.0)),
    "hair_parting": ((-1.0, 1.0), (-1.0, 1.0)),
    "hair_line": ((0.0, 1.0), (0.0, 1.0)),
    "fringe": ((0.0, 1.0), (0.0, 1.0)),
}
_DRAWN = ("hair_style", "hair_red", "hair_green", "hair_blue", "beard", "beard_length", "iris_red", "iris_green",
          "iris_blue", "freckles", "mole", "mole_x", "mole_y", "scar", "scar_x", "scar_y", "scar_angle", "glasses",
          "glasses_size", "glasses_dark", "seed")  # fmt: skip
PARAMETERS = (*_RANGES, *_DRAWN)

_STYLE_ODDS = {
    "man": {"bald": 0.11, "buzz": 0.14, "short": 0.26, "quiff": 0.15, "receding": 0.12, "curly": 0.09,
            "side parting": 0.10, "long": 0.03},
    "woman": {"pixie": 0.07, "bob": 0.25, "long": 0.28, "wavy": 0.20, "bun": 0.13, "curly": 0.07},
}  # fmt: skip
_BEARD_ODDS = {"man": (0.36, 0.17, 0.12, 0.13, 0.22), "woman": (1.0, 0.0, 0.0, 0.0, 0.0)}
# sRGB in [0, 1] and odds; the odds of light hair fall with the tone of the skin.
_HAIR_COLOURS = np.array([
    [0.07, 0.06, 0.06], [0.20, 0.12, 0.08], [0.34, 0.21, 0.13], [0.52, 0.36, 0.22], [0.80, 0.64, 0.36],
    [0.93, 0.86, 0.66], [0.66, 0.27, 0.09], [0.44, 0.14, 0.08], [0.55, 0.55, 0.57], [0.88, 0.88, 0.90],
    [0.25, 0.38, 0.70], [0.85, 0.40, 0.60],
])  # fmt: skip
_HAIR_ODDS = np.array([0.16, 0.15, 0.13, 0.11, 0.13, 0.06, 0.09, 0.07, 0.07, 0.05, 0.015, 0.015])
_IRIS_COLOURS = np.array([
    [0.20, 0.11, 0.06], [0.38, 0.23, 0.10], [0.45, 0.42, 0.20], [0.28, 0.48, 0.28],
    [0.28, 0.52, 0.75], [0.52, 0.60, 0.66],
])  # fmt: skip


@dataclass(frozen=True, eq=False)
class Identity:
    """One synthetic person.

    Args:
        key: unique name, for example "stage1-woman-0007".
        class_noun: "man" or "woman".
        params: float64 [len(PARAMETERS)], in the order of `PARAMETERS`; read-only.
    """

    key: str
    class_noun: str
    params: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self.key == other.key and np.array_equal(self.params, other.params)

    def __hash__(self) -> int:
        return hash(self.key)

    def __getitem__(self, name: str) -> float:
        return float(self.params[PARAMETERS.index(name)])


def generator_from(key: str) -> np.random.Generator:
    """A random generator that depends on the text `key` alone, on every machine and in every process."""
    digest = hashlib.sha256(key.encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def draw_identity(key: str, *, class_noun: str) -> Identity:
    """Draw the person called `key`; the same key always gives the same person.

    Args:
        key: unique name of the person.
        class_noun: "man" or "woman".
    """
    assert class_noun in _STYLE_ODDS, class_noun
    rng = generator_from("identity/" + key)
    column = 0 if class_noun == "man" else 1
    values: dict[str, float] = {}
    for name, ranges in _RANGES.items():
        low, high = ranges[column]
        values[name] = low + (high - low) * rng.beta(1.3, 1.3)  # nearly uniform: people must differ much
    values.update(_hair_and_eyes(rng, class_noun, tone=values["tone"]))
    values.update(_marks(rng, class_noun))
    values["seed"] = float(rng.integers(1 << 20))
    params = np.array([values[name] for name in PARAMETERS])
    params.flags.writeable = False
    return Identity(key=key, class_noun=class_noun, params=params)


def _hair_and_eyes(rng: np.random.Generator, class_noun: str, *, tone: float) -> Mapping[str, float]:
    odds = _STYLE_ODDS[class_noun]
    style = rng.choice(list(odds), p=np.array(list(odds.values())))
    weights = _HAIR_ODDS.copy()
    weights[[3, 4, 5, 6]] *= 1.0 - 0.75 * tone
    weights /= weights.sum()
    hair = _HAIR_COLOURS[rng.choice(len(weights), p=weights)] * rng.uniform(0.82, 1.18) + rng.normal(0, 0.02, 3)
    iris_odds = np.array([0.22, 0.22, 0.14, 0.14, 0.16, 0.12])
    iris_odds[2:] *= 1.0 - 0.6 * tone
    iris = _IRIS_COLOURS[rng.choice(6, p=iris_odds / iris_odds.sum())] * rng.uniform(0.85, 1.2)
    hair, iris = np.clip(hair, 0.03, 0.97), np.clip(iris, 0.03, 0.9)
    return {
        "hair_style": float(HAIR_STYLES.index(str(style))),
        "hair_red": hair[0], "hair_green": hair[1], "hair_blue": hair[2],
        "iris_red": iris[0], "iris_green": iris[1], "iris_blue": iris[2],
        "beard": float(rng.choice(len(BEARDS), p=_BEARD_ODDS[class_noun])),
        "beard_length": rng.uniform(0.2, 1.0),
    }  # fmt: skip


def _marks(rng: np.random.Generator, class_noun: str) -> Mapping[str, float]:
    side = rng.choice([-1.0, 1.0], size=2)
    return {
        "freckles": rng.uniform(0.4, 1.0) * float(rng.random() < 0.22),
        "mole": rng.uniform(0.028, 0.05) * float(rng.random() < 0.30),
        "mole_x": side[0] * rng.uniform(0.14, 0.46),
        "mole_y": rng.uniform(-0.85, -0.22),
        "scar": float(rng.random() < (0.16 if class_noun == "man" else 0.07)),
        "scar_x": side[1] * rng.uniform(0.2, 0.48),
        "scar_y": rng.uniform(-0.6, 0.45),
        "scar_angle": rng.uniform(0.0, 3.14),
        "glasses": float(rng.choice([0, 1, 2], p=[0.80, 0.10, 0.10])),
        "glasses_size": rng.uniform(0.85, 1.15),
        "glasses_dark": rng.random(),
    }

"""From identities and shots to the numbers that the renderer reads: one record per picture."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from metalora.miniworld.identity import BEARDS, HAIR_STYLES, PARAMETERS, Identity
from metalora.miniworld.shots import Shot
from metalora.miniworld.vocabulary import EXPRESSIONS, LIGHTS, SCENES, SHIRTS, STYLES

CAMERA_DISTANCE = 8.5
FACE_CENTRE = (0.0, -0.22, 0.5)  # head frame
FACE_HEIGHT = 1.75  # forehead to chin
PIVOT = (0.0, -0.75, -0.25)  # the head turns about this point of the neck
FAR = 30.0  # where a part goes that this person does not have

_SHAPE = """
skull_ix skull_iy skull_iz face_ix jaw_ix jaw_y chin_ix chin_y chin_z cheek_z cheek_fat ridge_z nose_base_y
nose_base_z nose_tip_y nose_tip_z nose_radius nose_tip_ix nose_tip_i nose_wing_x nose_wing_y nose_wing_z nose_wing_i
nose_hook eye_x eye_y eye_z socket_ix socket_iy socket_z eyeball_r mouth_y mouth_z lip_up_y lip_low_y lip_ix lip_up_iy
lip_low_iy cavity_ix cavity_iy cavity_y cavity_z ear_x ear_y ear_z ear_i beard_length beard_y moustache cap_y cap_z
cap_ix cap_iy cap_iz nape_y nape_slope curtain_y curtain_z curtain_ix curtain_iy curtain_iz curtain_bottom open_x
open_y open_z open_ix open_iup open_idown open_iz open_tilt bun_x bun_y bun_z bun_r hair_amp hair_fx hair_fy
hair_phase hair_off b00 b01 b02 b10 b11 b12 b20 b21 b22 neck_r shoulder_x shoulder_ix
"""
_LOOK = """
skin_r skin_g skin_b hair_r hair_g hair_b iris_r iris_g iris_b shirt_r shirt_g shirt_b brow_y brow_length
brow_thickness brow_arch brow_tilt brow_dark eye_w eye_open eye_lower eye_tilt gaze_x gaze_y lashes eye_shadow blush
lip_r lip_g lip_b lip_amount mouth_w mouth_curve mouth_open mouth_round lip_up lip_low teeth frown wrinkles stubble
beard hair_streak freckles mole mole_x mole_y scar scar_x scar_y scar_cos scar_sin glasses glasses_size glasses_dark
neckline seed light scene style noise expression
"""
_CAMERA = """
r00 r01 r02 r10 r11 r12 r20 r21 r22 ex ey ez focal centre_x centre_y key_x key_y key_z key_r key_g key_b fill_x fill_y
fill_z fill_r fill_g fill_b sky_r sky_g sky_b ground_r ground_g ground_b rim_r rim_g rim_b
"""
UNIFORMS = np.dtype([(name, np.float32) for name in (_SHAPE + _LOOK + _CAMERA).split()])

_SHIRT_RGB = np.array([
    [0.78, 0.10, 0.10], [0.12, 0.25, 0.75], [0.10, 0.52, 0.20], [0.94, 0.80, 0.12],
    [0.48, 0.16, 0.62], [0.95, 0.48, 0.08], [0.07, 0.07, 0.08], [0.94, 0.94, 0.93],
])  # fmt: skip
# Rows: neutral, smiling, surprised, angry; the last two columns scale the lips.
_EXPRESSION_COLUMNS = (
    "brow_up", "brow_tilt", "eye_open", "lower", "width", "curve", "open", "round", "teeth", "drop", "frown",
    "up", "low",
)  # fmt: skip
_EXPRESSION = np.array([
    [0.00, 0.00, 1.00, 1.00, 1.00, 0.000, 0.000, 0.0, 0.0, 0.00, 0.0, 1.00, 1.00],
    [0.02, 0.03, 0.86, 0.70, 1.34, 0.105, 0.075, 0.0, 1.0, 0.03, 0.0, 0.78, 0.85],
    [0.15, 0.06, 1.42, 1.20, 0.74, -0.010, 0.135, 1.0, 0.35, 0.17, 0.0, 0.85, 0.85],
    [-0.085, -0.34, 0.78, 0.85, 0.94, -0.085, 0.000, 0.0, 0.0, -0.02, 1.0, 0.70, 0.80],
])  # fmt: skip
# Light rows (soft, warm, cool, dramatic): key direction, key, fill direction, fill, sky, ground, rim (linear RGB).
_LIGHT = np.array([
    [0.25, 0.50, 0.83, 0.86, 0.84, 0.81, -0.6, 0.1, 0.75,
     0.26, 0.26, 0.27, 0.38, 0.39, 0.42, 0.22, 0.20, 0.18, 0.10, 0.10, 0.11],
    [0.72, 0.34, 0.60, 1.28, 0.90, 0.50, -0.7, 0.1, 0.70,
     0.25, 0.17, 0.11, 0.33, 0.26, 0.19, 0.22, 0.15, 0.10, 0.30, 0.17, 0.06],
    [-0.7, 0.40, 0.60, 0.62, 0.84, 1.22, 0.7, 0.1, 0.70,
     0.14, 0.19, 0.29, 0.22, 0.28, 0.40, 0.13, 0.16, 0.22, 0.09, 0.18, 0.36],
    [0.88, 0.32, 0.36, 1.50, 1.44, 1.34, -0.8, 0.1, 0.50,
     0.11, 0.115, 0.135, 0.12, 0.12, 0.14, 0.07, 0.065, 0.06, 0.16, 0.16, 0.20],
])  # fmt: skip
_BEARD_Y = {"full": -0.42, "goatee": -0.62}


def _rotation(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Head-to-world rotations [N, 3, 3]: roll, then pitch, then yaw; angles in degrees."""
    a, b, c = (np.deg2rad(v) for v in (yaw, pitch, roll))
    zero, one = np.zeros_like(a), np.ones_like(a)
    stack = lambda rows: np.stack([np.stack(r, -1) for r in rows], -2)  # noqa: E731
    turn = stack([[np.cos(a), zero, np.sin(a)], [zero, one, zero], [-np.sin(a), zero, np.cos(a)]])
    nod = stack([[one, zero, zero], [zero, np.cos(b), np.sin(b)], [zero, -np.sin(b), np.cos(b)]])
    tilt = stack([[np.cos(c), -np.sin(c), zero], [np.sin(c), np.cos(c), zero], [zero, zero, one]])
    return turn @ nod @ tilt


def skin_colour(tone: np.ndarray, undertone: np.ndarray) -> np.ndarray:
    """sRGB skin colours [N, 3] of tones in [0, 1] (pale to dark) and undertones in [-1, 1] (rosy to golden)."""
    ramp = np.array(
        [
            [0.93, 0.79, 0.71],
            [0.89, 0.70, 0.59],
            [0.82, 0.61, 0.47],
            [0.66, 0.45, 0.32],
            [0.48, 0.31, 0.22],
            [0.36, 0.235, 0.175],
        ]
    )
    at = np.linspace(0, 1, len(ramp))
    colour = np.stack([np.interp(tone, at, ramp[:, c]) for c in range(3)], -1)
    return np.clip(colour * (1 + undertone[:, None] * np.array([-0.03, 0.015, -0.09])), 0, 1)


def reference_length(height: int, width: int) -> float:
    """The length (pixels) that a scale refers to, so that faces fit pictures of any aspect ratio."""
    return min((height * width) ** 0.5, 1.05 * height, 1.35 * width)


def pack(identities: Sequence[Identity], shots: Sequence[Shot], *, height: int, width: int) -> np.ndarray:
    """Records of `UNIFORMS` [N] for the given people and shots at a picture size in pixels."""
    assert len(identities) == len(shots)
    params = np.stack([person.params for person in identities])
    p = {name: params[:, k] for k, name in enumerate(PARAMETERS)}
    s: dict[str, Any] = {
        name: np.array([getattr(shot, name) for shot in shots], float)
        for name in ("yaw", "pitch", "roll", "gaze_x", "gaze_y", "scale", "offset_x", "offset_y", "seed")
    }
    for name, words in (
        ("expression", EXPRESSIONS),
        ("light", LIGHTS),
        ("scene", SCENES),
        ("shirt", SHIRTS),
        ("style", STYLES),
    ):
        order = list(words)
        s[name] = np.array([order.index(getattr(shot, name)) for shot in shots])
    u = np.zeros(len(shots), UNIFORMS)
    face: dict[str, np.ndarray] = dict(
        zip(
            _EXPRESSION_COLUMNS,
            _EXPRESSION[s["expression"]].T,
            strict=True,
        )
    )
    # the same expression is never quite the same twice
    strength = 0.85 + 0.3 * (s["seed"] * 0.6180339887 % 1.0)
    for name, value in face.items():
        neutral = _EXPRESSION[0][_EXPRESSION_COLUMNS.index(name)]
        face[name] = neutral + (value - neutral) * strength
    _shape(u, p, face)
    _hair(u, p)
    _look(u, p, s, face)
    _camera(u, s, height=height, width=width)
    return u


def _shape(u: np.ndarray, p: dict[str, np.ndarray], face: dict[str, np.ndarray]) -> None:
    """Head, neck and shoulders; the renderer measures `eye_z`, `mouth_z` and what hangs on them on the surface."""
    drop = face["drop"]
    u["skull_ix"], u["skull_iy"], u["skull_iz"] = (
        1 / (0.765 * p["skull_width"]),
        1 / (0.83 * p["skull_height"]),
        1 / (0.90 * p["skull_depth"]),
    )
    u["face_ix"] = 1 / (0.625 * p["face_width"])
    u["jaw_ix"], u["jaw_y"] = 1 / (0.49 * p["jaw_width"]), -0.62 - 0.7 * p["jaw_length"] - 0.5 * drop
    u["chin_ix"], u["chin_y"], u["chin_z"] = (
        1 / (0.19 * p["chin_width"]),
        -0.96 - p["jaw_length"] - drop,
        0.50 + p["chin_forward"] - 0.2 * drop,
    )
    u["cheek_z"], u["cheek_fat"] = 0.43 + 0.12 * p["cheek_bone"], 0.14 - 0.17 * p["cheek_fat"]
    u["ridge_z"] = 0.60 + 0.06 * p["brow_ridge"]
    u["nose_base_y"], u["nose_base_z"] = 0.06, 0.67 + 0.05 * p["nose_height"]
    u["nose_tip_y"], u["nose_tip_z"] = -0.355 * p["nose_length"], 0.77 + 0.155 * p["nose_height"]
    u["nose_radius"] = 0.072 * p["nose_bridge"]
    u["nose_tip_ix"], u["nose_tip_i"] = (
        1 / (0.105 * p["nose_tip"] * p["nose_width"] ** 0.4),
        1 / (0.092 * p["nose_tip"]),
    )
    u["nose_wing_x"], u["nose_wing_y"] = 0.115 * p["nose_width"], u["nose_tip_y"] - 0.015
    u["nose_wing_z"], u["nose_wing_i"] = u["nose_tip_z"] - 0.12, 1 / (0.075 * p["nose_width"] ** 0.5)
    u["nose_hook"] = 0.16 * p["nose_hook"]
    u["eye_x"], u["eye_y"] = 0.325 * p["eye_gap"], p["eye_height"]
    u["socket_ix"], u["socket_iy"] = 1 / (0.23 * p["eye_width"]), 1 / 0.15
    u["eyeball_r"] = 0.185 * p["eye_width"] ** 0.5
    u["mouth_y"] = -0.70 + p["mouth_height"] - 0.45 * p["jaw_length"] - 0.35 * drop
    mouth_w = 0.245 * p["mouth_width"] * face["width"]
    up, low = 0.062 * p["lip_upper"] * face["up"], 0.074 * p["lip_lower"] * face["low"]
    u["mouth_w"], u["lip_up"], u["lip_low"] = mouth_w, up, low
    u["lip_ix"], u["lip_up_iy"], u["lip_low_iy"] = 1 / (mouth_w * 0.85), 1 / (up * 0.8 + 0.012), 1 / (low * 0.8 + 0.012)
    u["lip_up_y"], u["lip_low_y"] = face["open"] + up * 0.5, -face["open"] - low * 0.5
    u["cavity_ix"], u["cavity_iy"] = (
        1 / (mouth_w * np.where(face["round"] > 0.5, 0.85, 0.92)),
        1 / np.maximum(face["open"], 0.03),
    )
    u["cavity_y"] = face["curve"] * 0.25
    for name in ("eye_z", "socket_z", "mouth_z", "cavity_z"):
        u[name] = FAR
    u["ear_x"], u["ear_y"], u["ear_z"] = 0.735 * p["skull_width"] + 0.03 + p["ear_out"], -0.08, -0.10
    u["ear_i"] = 1 / (0.155 * p["ear_size"])
    u["neck_r"] = 0.41 * p["neck_width"]
    u["shoulder_x"], u["shoulder_ix"] = 1.40 * p["shoulder_width"], 1 / (1.55 * p["shoulder_width"])
    beard = p["beard"].astype(int)
    u["beard_length"] = np.where(beard == 4, 0.02 + 0.09 * p["beard_length"], np.where(beard == 3, 0.03, 0.0))
    u["beard_y"] = np.where(beard == 3, _BEARD_Y["goatee"], _BEARD_Y["full"]) - 0.2 * drop
    u["moustache"] = np.where(beard >= 2, 0.025 + 0.03 * p["beard_length"], 0.0)


def _hair(u: np.ndarray, p: dict[str, np.ndarray]) -> None:
    """One family of volumes (cap, curtain, bun, opening for the face) serves every hair style."""
    style = p["hair_style"].astype(int)
    is_ = {name: style == k for k, name in enumerate(HAIR_STYLES)}
    vol, length, part, line, fringe = (
        p[k] for k in ("hair_volume", "hair_length", "hair_parting", "hair_line", "fringe")
    )
    zero = np.zeros(len(u))

    def by_style(default: Any, **values: Any) -> np.ndarray:
        out = zero + default
        for name, value in values.items():
            out = np.where(is_[name.replace("_", " ")], value, out)
        return out

    top = by_style(
        0.10 + 0.10 * vol,
        buzz=0.025,
        quiff=0.20 + 0.14 * vol,
        receding=0.04,
        curly=0.24 + 0.26 * vol,
        bun=0.05,
        pixie=0.10 + 0.10 * vol,
        short=0.06 + 0.10 * vol,
    )
    side = by_style(
        0.09 + 0.08 * vol,
        buzz=0.02,
        short=0.045 + 0.03 * vol,
        quiff=0.03,
        receding=0.06,
        side_parting=0.05 + 0.04 * vol,
        curly=0.20 + 0.24 * vol,
        bun=0.03,
    )
    u["cap_y"], u["cap_z"] = 0.30 + by_style(0.0, quiff=0.06), -0.15 + by_style(0.0, quiff=0.06)
    u["cap_ix"] = 1 / (0.765 * p["skull_width"] + side)
    u["cap_iy"] = 1 / (0.83 * p["skull_height"] + top)
    u["cap_iz"] = 1 / (
        0.90 * p["skull_depth"]
        + by_style(0.06 + 0.05 * vol, buzz=0.02, receding=0.02, quiff=0.08, curly=0.16 + 0.18 * vol, bun=0.03)
    )
    u["nape_y"] = by_style(
        -0.30,
        buzz=-0.12,
        short=-0.14,
        quiff=-0.05,
        side_parting=-0.16,
        receding=-0.10,
        curly=-0.45,
        bob=-0.6,
        long=-0.6,
        wavy=-0.6,
    )
    u["nape_slope"] = by_style(0.45, bob=0.0, long=0.0, wavy=0.0)
    has_curtain = is_["bob"] | is_["long"] | is_["wavy"]
    bottom = by_style(FAR, bob=-0.55 - 0.55 * length, long=-1.35 - 0.9 * length, wavy=-1.15 - 0.9 * length)
    u["curtain_bottom"] = np.where(has_curtain, bottom, 0)
    u["curtain_y"] = np.where(has_curtain, np.where(is_["bob"], -0.15, -0.55), FAR)
    u["curtain_z"] = -0.30
    u["curtain_ix"] = 1 / (0.83 * p["skull_width"] + 0.10 + 0.16 * vol + by_style(0.0, wavy=0.14))
    u["curtain_iy"] = 1 / by_style(1.5, bob=1.15, long=2.1, wavy=2.0)
    u["curtain_iz"] = 1 / 0.66
    hairline = 0.62 + 0.24 * line
    hairline = np.where(has_curtain | is_["pixie"], hairline - np.maximum(fringe - 0.45, 0) * 0.85, hairline)
    hairline = hairline + by_style(0.0, receding=0.5, bun=0.05, short=-0.05 * fringe, curly=-0.08)
    u["open_y"], u["open_z"] = -0.15, 1.10
    u["open_iup"] = 1 / ((hairline + 0.15) / 0.84)
    u["open_idown"] = 1 / 2.6
    u["open_ix"] = 1 / by_style(0.96 + 0.06 * line, receding=1.02, long=0.90, wavy=0.92, bob=0.90)
    u["open_iz"] = 1 / (1.17 + by_style(0.0, receding=0.75 + 0.45 * line, bob=-0.06, long=-0.04, wavy=-0.04))
    u["open_x"] = 0.10 * part * by_style(1.0, receding=0.0, buzz=0.0)
    u["open_tilt"] = part * by_style(0.22, receding=0.0, buzz=0.0, curly=0.05, side_parting=0.42, quiff=0.2)
    bun = is_["bun"]
    u["bun_x"], u["bun_z"] = zero, np.where(part > 0, -0.35, -0.75)
    u["bun_y"] = np.where(bun, np.where(part > 0, 1.22, 0.95) + 0.1 * (p["skull_height"] - 1), FAR)
    u["bun_r"] = 0.27 + 0.15 * vol
    u["hair_amp"] = by_style(
        0.006, curly=0.045 + 0.02 * length, wavy=0.030, buzz=0.0, short=0.010 + 0.012 * length, quiff=0.016, pixie=0.014
    )
    u["hair_fx"] = by_style(2.2, curly=2.6 + 1.4 * fringe, wavy=1.3, quiff=2.4)
    u["hair_fy"] = by_style(0.8, curly=2.6 + 1.4 * fringe, wavy=1.1, quiff=1.0)
    u["hair_phase"] = p["seed"] % 97 / 97
    u["hair_off"] = np.where(is_["bald"], FAR, 0.0)
    u["hair_streak"] = by_style(1.0, curly=0.6, buzz=0.35)


def _look(u: np.ndarray, p: dict[str, np.ndarray], s: dict[str, Any], face: dict[str, np.ndarray]) -> None:
    """Colours and everything that is painted on the surface."""
    skin = skin_colour(p["tone"], p["undertone"])
    shirt = np.clip(_SHIRT_RGB[s["shirt"]] * (0.9 + 0.2 * (s["seed"] * 0.7548776662 % 1.0))[:, None], 0, 1)
    hue = p["lip_hue"][:, None]
    lipstick = (1 - hue) * np.array([0.78, 0.20, 0.24]) + hue * np.array([0.70, 0.28, 0.42])
    natural = skin * np.array([0.86, 0.60, 0.60])
    lips = natural + (lipstick * (1 - 0.35 * p["tone"][:, None]) - natural) * (0.75 * p["lip_red"][:, None])
    for k, c in enumerate("rgb"):
        u["skin_" + c], u["shirt_" + c], u["lip_" + c] = skin[:, k] ** 2, shirt[:, k] ** 2, lips[:, k] ** 2
        u["hair_" + c] = p[("hair_red", "hair_green", "hair_blue")[k]] ** 2
        u["iris_" + c] = p[("iris_red", "iris_green", "iris_blue")[k]] ** 2
    u["brow_y"] = u["eye_y"] + 0.215 * p["brow_gap"] + face["brow_up"]
    u["brow_length"] = 0.235 * p["brow_length"]
    u["brow_thickness"] = 0.042 * p["brow_thickness"]
    u["brow_arch"], u["brow_tilt"] = 0.06 * p["brow_arch"], p["brow_tilt"] * 0.6 + face["brow_tilt"]
    u["eye_w"], u["eye_open"] = 0.176 * p["eye_width"], 0.078 * p["eye_open"] * face["eye_open"]
    u["eye_lower"], u["eye_tilt"] = 0.052 * p["eye_open"] ** 0.5 * face["lower"], p["eye_tilt"] * 0.8
    u["gaze_x"], u["gaze_y"] = s["gaze_x"], s["gaze_y"]
    for name in (
        "lashes",
        "eye_shadow",
        "blush",
        "wrinkles",
        "freckles",
        "mole",
        "mole_x",
        "mole_y",
        "scar",
        "scar_x",
        "scar_y",
        "glasses",
        "glasses_size",
        "glasses_dark",
    ):
        u[name] = p[name]
    u["scar_cos"], u["scar_sin"] = np.cos(p["scar_angle"]), np.sin(p["scar_angle"])
    u["mouth_curve"], u["mouth_open"], u["mouth_round"] = face["curve"], face["open"], face["round"]
    u["teeth"], u["frown"], u["lip_amount"] = face["teeth"], face["frown"], 0.7 + 0.3 * p["lip_red"]
    beard = p["beard"].astype(int)
    u["beard"] = beard
    u["stubble"] = np.where(beard == BEARDS.index("stubble"), 0.35 + 0.3 * p["beard_length"], 0.0)
    u["neckline"] = np.floor(s["seed"] * 0.5698402909 % 1.0 * 3)  # crew neck, V-neck or buttons
    u["seed"] = s["seed"] % 65536
    u["noise"] = p["seed"] % 4096
    u["light"], u["scene"], u["style"], u["expression"] = s["light"], s["scene"], s["style"], s["expression"]


def _camera(u: np.ndarray, s: dict[str, Any], *, height: int, width: int) -> None:
    rotation = _rotation(s["yaw"], s["pitch"], s["roll"])
    torso = _rotation(s["yaw"] * 0.4, s["pitch"] * 0.1, s["roll"] * 0.0)
    to_body = torso.transpose(0, 2, 1) @ rotation
    for i in range(3):
        for j in range(3):
            u[f"r{i}{j}"], u[f"b{i}{j}"] = rotation[:, i, j], to_body[:, i, j]
    pivot = np.array(PIVOT)
    eye = (
        np.array([0, 0, CAMERA_DISTANCE]) - pivot
    ) @ rotation + pivot  # camera in each head frame: R^T (c - pivot) + pivot
    u["ex"], u["ey"], u["ez"] = eye[:, 0], eye[:, 1], eye[:, 2]
    length = reference_length(height, width)
    focal = 0.6 * s["scale"] * length * (CAMERA_DISTANCE - FACE_CENTRE[2]) / FACE_HEIGHT
    u["focal"] = focal
    centre = (rotation @ (np.array(FACE_CENTRE) - pivot)) + pivot
    depth = CAMERA_DISTANCE - centre[:, 2]
    # a wide picture leaves room below for the torso
    drop = np.clip(1.05 - s["scale"], 0, 0.6) * 0.22
    u["centre_x"] = width / 2 + s["offset_x"] * length - focal * centre[:, 0] / depth
    u["centre_y"] = height * (0.5 - drop) + s["offset_y"] * length + focal * centre[:, 1] / depth
    light = _LIGHT[s["light"]].copy()
    wobble = (s["seed"][:, None] * np.array([0.8191725134, 0.6710436067]) % 1.0) - 0.5
    side = np.where(s["seed"].astype(int) % 2 == 0, 1.0, -1.0)  # the key light comes from either side
    for first, names in ((0, "key"), (6, "fill")):
        direction = light[:, first : first + 3] + 0.25 * np.stack([wobble[:, 0], wobble[:, 1], 0 * wobble[:, 0]], -1)
        direction[:, 0] *= side
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        local = np.einsum("nij,ni->nj", rotation, direction)
        for k, c in enumerate("xyz"):
            u[f"{names}_{c}"] = local[:, k]
    for first, names in ((3, "key"), (9, "fill"), (12, "sky"), (15, "ground"), (18, "rim")):
        for k, c in enumerate("rgb"):
            u[f"{names}_{c}"] = light[:, first + k]

"""Who is in the mini world, what may happen to them, and what is said about them."""

import numpy as np
import pytest

from metalora.core.errors import UserError
from metalora.miniworld.captions import (
    ATTRIBUTES,
    EXPRESSIONS,
    FRAMINGS,
    LIGHTS,
    POSES,
    SCENES,
    SHIRTS,
    STYLES,
    caption,
    sample_caption,
)
from metalora.miniworld.identity import PARAMETERS
from metalora.miniworld.population import CLASS_NOUNS, SPLITS, identity, people
from metalora.miniworld.shots import SCALE_RANGE, Shot, framing_of, sample_shot

IDENTITY_WORDS = {"hair", "beard", "bald", "blond", "freckles", "glasses", "skin", "eyes", "nose", "moustache", "scar"}


def test_a_person_is_a_function_of_its_name() -> None:
    once, again = identity("stage1", "woman", 7), identity("stage1", "woman", 7)
    assert once.key == "stage1-woman-0007"
    assert once == again
    assert not once.params.flags.writeable


def test_splits_and_classes_share_nobody() -> None:
    everybody = [
        person for split in SPLITS for class_noun in CLASS_NOUNS for person in people(split, class_noun, count=12)
    ]
    assert len({person.key for person in everybody}) == len(everybody)
    assert len({person.params.tobytes() for person in everybody}) == len(everybody)


def test_men_and_women_differ_and_vary() -> None:
    men, women = people("base", "man", count=200), people("base", "woman", count=200)
    for name, sign in (("jaw_width", 1), ("brow_ridge", 1), ("lip_upper", -1), ("lashes", -1), ("brow_gap", -1)):
        gap = np.mean([man[name] for man in men]) - np.mean([woman[name] for woman in women])
        assert sign * gap > 0.1, name
    assert np.mean([man["beard"] > 0 for man in men]) > 0.4
    assert not any(woman["beard"] for woman in women)
    spread = np.stack([person.params for person in men]).std(0)
    assert (spread > 0).all(), [name for name, one in zip(PARAMETERS, spread, strict=True) if one == 0]


def test_unknown_people_are_refused() -> None:
    for arguments in (("train", "man", 0), ("base", "person", 0), ("base", "man", -1)):
        with pytest.raises(UserError):
            identity(*arguments)


def test_a_shot_keeps_what_is_fixed_and_survives_json() -> None:
    shot = sample_shot(np.random.default_rng(0), fixed={"pose": "left", "scene": "snow", "scale": 1.2})
    assert (shot.pose, shot.scene, shot.scale, shot.framing) == ("left", "snow", 1.2, "close")
    assert -50 <= shot.yaw <= -20
    assert Shot.from_json(shot.to_json()) == shot
    turned = sample_shot(np.random.default_rng(0), fixed={"yaw": 33.0})
    assert turned.pose == "right"
    # fixing one attribute leaves the others as they would have been
    free, bound = (sample_shot(np.random.default_rng(3), fixed=fixed) for fixed in ({}, {"style": "ink"}))
    assert (free.scene, free.shirt, free.seed, free.yaw) == (bound.scene, bound.shirt, bound.seed, bound.yaw)


def test_shots_cover_poses_styles_and_framings() -> None:
    rng = np.random.default_rng(1)
    shots = [sample_shot(rng, fixed={}) for _ in range(2000)]
    assert np.mean([shot.pose == "front" for shot in shots]) == pytest.approx(0.5, abs=0.05)
    assert np.mean([shot.style == "photo" for shot in shots]) == pytest.approx(0.65, abs=0.05)
    assert {shot.framing for shot in shots} == set(FRAMINGS)
    assert all(SCALE_RANGE[0] <= shot.scale <= SCALE_RANGE[1] for shot in shots)
    assert [framing_of(scale) for scale in SCALE_RANGE] == ["wide", "close"]


def test_captions_read_the_attributes() -> None:
    shot = sample_shot(
        np.random.default_rng(0),
        fixed={
            "style": "ink",
            "scene": "beach",
            "shirt": "orange",
            "expression": "smiling",
            "light": "cool",
            "pose": "right",
            "scale": 0.5,
        },
    )
    assert caption("woman", shot, include=set()) == "a picture of a woman"
    assert caption("man", shot, include={"style"}) == "an ink wash painting of a man"
    assert caption("woman", shot, include=ATTRIBUTES) == (
        "a wide ink wash painting of a woman smiling in an orange shirt on a beach, cool light, turned right"
    )


def test_captions_never_tell_who_it_is_and_fit_the_text_encoders() -> None:
    rng = np.random.default_rng(2)
    spoken = set()
    for _ in range(1500):
        text = sample_caption(rng, "woman", sample_shot(rng, fixed={}))
        assert text == text.lower()
        assert len(text.replace(",", "").split()) <= 20
        assert len(text.replace(",", " ,").split()) <= 24
        spoken |= set(text.replace(",", "").split())
    assert not spoken & IDENTITY_WORDS
    vocabulary = " ".join(
        phrase for words in (STYLES, SCENES, SHIRTS, EXPRESSIONS, LIGHTS, POSES, FRAMINGS) for phrase in words.values()
    )
    assert set(vocabulary.split()) <= spoken

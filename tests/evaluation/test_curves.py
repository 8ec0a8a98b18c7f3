"""Cells, bounds, comparisons and the choice of a learning rate, from hand-made score tables."""

import numpy as np
import pandas as pd
import pytest

from metalora.core.errors import UserError
from metalora.evaluation import curves
from metalora.evaluation.curves import CellKey

GRID = (250, 375, 500, 625, 750)
SLOW, QUICK = (0.2, 0.3, 0.4, 0.5, 0.55), (0.3, 0.45, 0.55, 0.6, 0.62)
CLIP = (0.80, 0.79, 0.78, 0.77, 0.76)


def row(method, identity, prompt, *, rank=1, iterations=0, **scores):
    noun = "woman" if identity.startswith("w") else "man"
    empty = {"face_found": np.nan, "face_sim": np.nan, "r_face_sim": np.nan, "clip_t": np.nan, "clip_i": np.nan}
    file = f"{method}-{rank}-{iterations}-{identity}-{prompt}"
    return {
        "file": file,
        "method": method,
        "rank": rank,
        "iterations": iterations,
        "identity": identity,
        "class_noun": noun,
        "prompt_id": prompt,
        "seed": 0,
    } | (empty | scores)


def table(*, base_clip=0.82, shift=0.0, clip_shift=0.0):
    """Four women and four men with faces, two and two with prompts; curves the same for all up to a constant."""
    rows = []
    for noun in ("w", "m"):
        for k in range(4):
            off = 0.02 * (k - 1.5) + (0.01 if noun == "w" else -0.01)
            for prompt in ("p0", "p1"):
                name = f"{noun}{k}"
                rows.append(row("base", name, prompt, rank=0, face_found=1.0, face_sim=0.05, r_face_sim=0.04 + off))
                for method, curve in (("lora_aug", SLOW), ("meta_lora", QUICK)):
                    for iterations, value in zip(GRID, curve, strict=True):
                        face = {"face_found": 1.0, "face_sim": value + 0.1, "r_face_sim": value + off + shift}
                        rows.append(row(method, name, prompt, iterations=iterations, **face))
        for k in range(2):
            off = 0.01 * (k - 0.5)
            name = f"{noun}clip{k}"
            rows.append(row("base", name, "s0", rank=0, clip_t=base_clip + off, clip_i=1.0))
            for method in ("lora_aug", "meta_lora"):
                for iterations, value in zip(GRID, CLIP, strict=True):
                    scores = {"clip_t": value + off + clip_shift, "clip_i": 0.9}
                    rows.append(row(method, name, "s0", iterations=iterations, **scores))
    return pd.DataFrame(rows)


def test_a_cell_averages_prompts_then_people():
    frame = table()
    cell = curves.cell(frame, CellKey("meta_lora", 1, 375), class_noun="both")
    assert cell.scores["r_face_sim"].mean == pytest.approx(0.45)
    assert cell.scores["face_sim"].mean == pytest.approx(0.55)
    assert cell.scores["clip_t"].mean == pytest.approx(0.79)
    assert cell.scores["clip_i"].mean == pytest.approx(0.9)
    assert cell.scores["r_face_sim"].low < 0.45 < cell.scores["r_face_sim"].high
    assert (cell.images, cell.people) == (8 * 2 + 4, 12)
    woman = curves.cell(frame, CellKey("meta_lora", 1, 375), class_noun="woman")
    assert woman.scores["r_face_sim"].mean == pytest.approx(0.46)

    w0 = (frame["identity"] == "w0") & (frame["iterations"] == 375) & (frame["method"] == "meta_lora")
    frame.loc[w0, "r_face_sim"] = [0.1, 0.9]
    means = curves.cell(frame, CellKey("meta_lora", 1, 375), class_noun="woman").scores["r_face_sim"]
    others = [0.46 + 0.02 * (k - 1.5) for k in (1, 2, 3)]
    assert means.mean == pytest.approx((0.5 + sum(others)) / 4)


def test_misses_lower_the_headline_and_not_the_detected_mean():
    frame = table()
    miss = (frame["identity"] == "w0") & (frame["prompt_id"] == "p0") & (frame["method"] == "meta_lora")
    frame.loc[miss, ["face_found", "face_sim", "r_face_sim"]] = [0.0, np.nan, np.nan]
    scores = curves.cell(frame, CellKey("meta_lora", 1, 375), class_noun="woman").scores
    w0 = 0.45 - 0.03 + 0.01
    assert scores["r_face_sim"].mean == pytest.approx(0.46 - w0 / 2 / 4)
    assert scores["r_face_sim_detected"].mean == pytest.approx(0.46)
    assert scores["face_found"].mean == pytest.approx(7 / 8)


@pytest.mark.parametrize(("metric", "compared"), [("r_face_sim", "test_photos"), ("face_sim", "reference_faces")])
def test_a_miss_is_not_measured_where_a_face_would_not_be(metric, compared):
    frame = table().assign(test_photos=3, reference_faces=1)
    w0 = (frame["identity"] == "w0") & (frame["method"] == "meta_lora")
    frame.loc[w0, metric] = np.nan
    frame.loc[w0 & (frame["prompt_id"] == "p0"), ["face_found", "face_sim", "r_face_sim"]] = [0.0, np.nan, np.nan]
    others = frame[(frame["method"] == "meta_lora") & (frame["iterations"] == 375) & (frame["class_noun"] == "woman")]
    expected = others.loc[others["identity"] != "w0"].groupby("identity")[metric].mean().mean()

    def mean():
        return curves.cell(frame, CellKey("meta_lora", 1, 375), class_noun="woman").scores[metric].mean

    assert mean() == pytest.approx(expected * 3 / 4)  # measurable: the miss is this person's only score, a 0
    frame.loc[w0, compared] = 0
    assert mean() == pytest.approx(expected)
    frame[compared] = frame[compared].astype(float).mask(frame[compared] == 3)  # an older table joined with this one
    assert mean() == pytest.approx(expected)


def test_a_cell_of_both_is_of_every_class():
    frame, late = table(), CellKey("meta_lora", 1, 375)
    of_women = frame["class_noun"] == "woman"
    frame = frame.loc[~(of_women & (frame["method"] == "meta_lora") & (frame["iterations"] == 375))]
    assert curves.class_nouns(frame) == ("man", "woman", "both")
    assert [cell.class_noun for cell in curves.cells(frame) if cell.key == late] == ["man"]
    assert len(curves.cells(frame)) == 3 * (1 + 2 * 5) - 2
    nobody = curves.cell(frame, late, class_noun="both")
    assert nobody.people == 0 and np.isnan(nobody.scores["r_face_sim"].mean)
    men = curves.cell(frame, late, class_noun="man")
    assert men.scores["r_face_sim"].mean == pytest.approx(0.44)
    assert curves.compare(frame, late, CellKey("lora_aug", 1, 375), metric="r_face_sim").identities == 0
    with pytest.raises(UserError, match="no scores of"):
        curves.choose_learning_rate({1e-3: frame}, method="meta_lora", iterations=375)
    assert curves.choose_learning_rate({1e-3: frame}, method="meta_lora", iterations=375, class_noun="man", budget=0.1)


def test_steps_to_match_of_both_use_cells_of_every_class():
    frame, target = table(), CellKey("lora_aug", 1, 625)
    of_women = frame["class_noun"] == "woman"

    def match(lacking, class_noun="both"):
        rows = frame.loc[~(of_women & lacking)]
        return curves.steps_to_match(rows, method="meta_lora", target=target, class_noun=class_noun)

    meta_lora = frame["method"] == "meta_lora"
    at_375 = meta_lora & (frame["iterations"] == 375)
    assert match(at_375).matched == pytest.approx(450)  # between 250 and 500
    assert match(at_375, "man").matched == pytest.approx(437.5)
    assert match(at_375, "woman").matched == pytest.approx(450)
    at_target = (frame["method"] == "lora_aug") & (frame["iterations"] == 625)
    for lacking in (at_target, meta_lora):
        assert match(lacking) is None and match(lacking, "woman") is None
        assert match(lacking, "man").matched == pytest.approx(437.5)


def test_every_cell_of_every_class():
    found = curves.cells(table())
    assert len(found) == 3 * (1 + 2 * 5)
    assert curves.cell_keys(table())[0] == CellKey("base", 0, 0)
    assert curves.class_nouns(table()) == ("man", "woman", "both")
    women = table().query("class_noun == 'woman'")
    assert curves.class_nouns(women) == ("woman",)
    assert {cell.class_noun for cell in curves.cells(women)} == {"woman"}


def test_steps_to_match_from_a_table():
    frame, target = table(), CellKey("lora_aug", 1, 625)
    match = curves.steps_to_match(frame, method="meta_lora", target=target)
    assert match is not None and match.matched == pytest.approx(437.5)
    assert match.ratio == pytest.approx(625 / 437.5)
    itself = curves.steps_to_match(frame, method="lora_aug", target=target, class_noun="woman")
    assert itself is not None and itself.matched == pytest.approx(625)
    assert curves.steps_to_match(frame, method="lora", target=target) is None
    assert curves.steps_to_match(frame, method="meta_lora", target=CellKey("lora_aug", 4, 625)) is None


def test_steps_to_match_counts_only_people_that_all_cells_have():
    frame, target = table(), CellKey("lora_aug", 1, 625)
    late = (frame["identity"] == "w3") & (frame["method"] == "meta_lora") & (frame["iterations"] == 750)
    match = curves.steps_to_match(frame.loc[~late], method="meta_lora", target=target)
    assert match is not None and match.target_r_face_sim == pytest.approx(0.5 - (0.03 + 0.01) / 7)
    no_clip = frame.loc[frame["clip_t"].isna()]
    assert curves.steps_to_match(no_clip, method="meta_lora", target=target) is None


def test_compare_is_paired():
    frame = table()
    a, b = CellKey("meta_lora", 1, 375), CellKey("lora_aug", 1, 375)
    found = curves.compare(frame, a, b, metric="r_face_sim")
    assert (found.low, found.mean, found.high) == pytest.approx((0.15, 0.15, 0.15))
    assert found.identities == 8 and found.share_above == 1
    assert curves.compare(frame, a, b, metric="r_face_sim", class_noun="woman").identities == 4


def test_bounds_come_from_photos():
    rows = []
    for name in ("w0", "w1", "m0", "m1"):
        reference = 0.7 if name.startswith("w") else 0.6
        rows.append(row("photo_reference", name, "ref", rank=0, face_found=1.0, r_face_sim=reference))
        rows.append(row("photo_test", name, "t1", rank=0, face_found=1.0, r_face_sim=0.8))
        rows.append(row("photo_test", name, "t2", rank=0, face_found=0.0))
        rows.append(row("photo_stranger", name, "s", rank=0, face_found=1.0, r_face_sim=0.1))
    frame = pd.concat([table(), pd.DataFrame(rows)], ignore_index=True)
    both = curves.bounds(frame)
    assert both is not None
    assert (both.reference.mean, both.test.mean, both.stranger.mean) == pytest.approx((0.65, 0.8, 0.1))
    assert (both.photos, both.missed) == (12, 4)
    woman = curves.bounds(frame, class_noun="woman")
    assert woman is not None and woman.reference.mean == pytest.approx(0.7) and woman.photos == 6
    assert CellKey("photo_test", 0, 0) not in curves.cell_keys(frame)
    assert curves.bounds(table()) is None


def test_learning_rate_keeps_the_budget():
    tables = {  # base CLIP-T 0.82; lora_aug at 625 has 0.77 + clip_shift
        1e-3: table(clip_shift=0.04),
        2e-3: table(shift=0.1, clip_shift=0.025),
        5e-3: table(shift=0.2, clip_shift=0.0),
    }
    choice = curves.choose_learning_rate(tables)
    assert choice.chosen.rate == 2e-3
    assert [line.allowed for line in choice.table] == [True, True, False]
    assert choice.chosen.clip_t_drop == pytest.approx(0.025)
    assert curves.choose_learning_rate(tables, budget=0.06).chosen.rate == 5e-3
    with pytest.raises(UserError, match="no learning rate keeps CLIP-T"):
        curves.choose_learning_rate(tables, budget=0.001)
    with pytest.raises(UserError, match="no scores of"):
        curves.choose_learning_rate(tables, rank=4)

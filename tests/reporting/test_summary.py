"""summary.json and the headline: their exact shape, and true sentences whichever way it came out."""

import json

import pytest
from made_up import GRID, make_scores

from metalora.evaluation.curves import CellKey
from metalora.evaluation.score_table import read_scores
from metalora.reporting import look
from metalora.reporting.study import Study, paper_reference
from metalora.reporting.summary import headline, summarize

SMALL = {"people": 3, "clip_people": 3, "prompts": 3, "pictures": False}
CURVE = [
    "method",
    "class",
    "rank",
    "iterations",
    "r_face_sim",
    "face_sim",
    "clip_t",
    "clip_i",
    "face_found",
    "ci95",
    "images",
]


def summary_of(folder, **options):
    scores = read_scores([make_scores(folder, **(SMALL | options))])
    return summarize(Study(scores, world="made-up numbers", seconds={"generate": 12.3456}, facts={"seed": "0"}))


@pytest.fixture(scope="module")
def summary(tmp_path_factory):
    return summary_of(tmp_path_factory.mktemp("study"), dearer=0.02)


def test_summary_has_the_agreed_shape(summary):
    assert {"curves", "steps_to_match", "seconds"} <= set(summary)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["world"] == "made-up numbers" and summary["seconds"] == {"generate": 12.35}
    assert len(summary["curves"]) == 3 * (1 + 3 * len(GRID))
    for curve in summary["curves"]:
        assert list(curve) == CURVE
        assert set(curve["ci95"]) == {"r_face_sim", "face_sim", "clip_t", "clip_i", "face_found"}
        low, high = curve["ci95"]["r_face_sim"]
        assert low <= curve["r_face_sim"] <= high
    keys = [(c["method"], c["class"], c["rank"], c["iterations"]) for c in summary["curves"]]
    assert len(set(keys)) == len(keys) and ("meta_lora", "both", 1, 375) in keys and ("base", "man", 0, 0) in keys
    steps = summary["steps_to_match"]
    assert steps["target"] == "lora_aug rank 1 at 625"
    assert {"meta_lora", "ratio", "ci95", "plain", "by_class", "others"} <= set(steps)
    assert set(steps["by_class"]) == {"man", "woman"} and set(steps["others"]) == {"lora", "lora_aug"}
    assert steps["others"]["lora_aug"]["lora_aug"] == pytest.approx(625)
    found = {
        c["method"]: c["r_face_sim"]
        for c in summary["detected_only"]
        if c["iterations"] == 375 and c["class"] == "both"
    }
    both = {c["method"]: c["r_face_sim"] for c in summary["curves"] if c["iterations"] == 375 and c["class"] == "both"}
    assert all(found[method] > both[method] for method in both)  # misses pull the headline down
    assert set(found) == {"lora", "lora_aug", "meta_lora"}


def test_counts_say_how_much_was_measured(summary):
    counts = summary["counts"]
    assert counts["identity"]["people"] == {"woman": 3, "man": 3} and counts["prompts"]["people"] == {
        "woman": 3,
        "man": 3,
    }
    assert (counts["identity"]["prompts_per_class"], counts["identity"]["seeds"]) == (3, 1)
    assert counts["identity"]["photos"] == 6 * 6
    assert counts["images"] == 2 * 6 + 3 * 5 * 6 * 3 * 2
    assert counts["sampling"] == ["64 x 64 px, 14 steps, guidance 3.5, base mini@0123456789abcdef"]


def test_headline_when_clip_t_is_kept(tmp_path):
    summary = summary_of(tmp_path, dearer=-0.03)
    n, ratio = summary["steps_to_match"]["meta_lora"], summary["steps_to_match"]["ratio"]
    assert 250 < n < 500 and ratio == pytest.approx(625 / n, rel=1e-4)
    assert headline(summary).startswith(
        "Meta-LoRA reaches the R-FaceSim of LoRA+aug at 625 iterations, at no lower CLIP-T, "
        f"at {n:.0f} iterations: {ratio:.2f} times fewer (95% interval over people: "
    )
    summary["steps_to_match"]["ratio_ci95"] = [0.0, 2.0]  # some resamples of the people do not get there
    assert headline(summary).endswith("(95% interval over people: never to 2.00).")


def test_headline_when_clip_t_falls(summary):
    steps = summary["steps_to_match"]
    assert steps["meta_lora"] is None and steps["ratio"] is None
    text = headline(summary)
    assert f"at {steps['plain']['meta_lora']:.0f} iterations" in text and "but at a CLIP-T" in text
    assert text.endswith("at no lower CLIP-T it does not reach it within 750 iterations.")
    lower = 100 * (steps["target_clip_t"] - steps["plain"]["clip_t"])
    assert lower > 0 and f"{lower:.2f} points lower" in text


def test_headline_when_it_never_gets_there(tmp_path):
    summary = summary_of(tmp_path, slower=6.0, dearer=-0.05)
    steps = summary["steps_to_match"]
    assert steps["plain"]["meta_lora"] is None
    text = headline(summary)
    assert "does not reach" in text and f"{100 * steps['best_r_face_sim']:.1f} against" in text


def test_headline_when_it_was_there_before_the_first_checkpoint(tmp_path):
    text = headline(summary_of(tmp_path, slower=0.2, dearer=-0.055))
    assert "at 250 iterations, the first checkpoint, or before: at least 2.50 times fewer" in text


def test_headline_when_it_is_slower(tmp_path):
    summary = summary_of(tmp_path, slower=2.15, dearer=-0.05)
    assert 625 < summary["steps_to_match"]["meta_lora"] <= 750
    assert "not fewer (0." in headline(summary)


def test_headline_before_the_target_has_been_run(tmp_path):
    summary = summary_of(tmp_path, iterations=(250, 375))
    assert summary["steps_to_match"]["meta_lora"] is None and summary["steps_to_match"]["ratio"] is None
    assert headline(summary) == (
        "Whether Meta-LoRA reaches the R-FaceSim of LoRA+aug at 625 iterations cannot be said yet: "
        "the target or the curve has not been run."
    )


def test_both_waits_for_every_class(tmp_path):
    scores = read_scores([make_scores(tmp_path, **SMALL)])
    trained = scores["method"].isin(["lora", "lora_aug", "meta_lora"])
    first = scores.loc[~(trained & (scores["class_noun"] == "woman"))]
    summary = summarize(Study(first, world="w", seconds={}, facts={}))
    found = {(c["method"], c["class"]) for c in summary["curves"]}
    assert ("base", "both") in found and ("meta_lora", "man") in found and ("meta_lora", "both") not in found
    steps = summary["steps_to_match"]
    assert steps["meta_lora"] is None and set(steps["by_class"]) == {"man"}
    assert headline(summary).endswith("cannot be said yet: the target or the curve has not been run for every class.")

    late = scores.loc[~((scores["class_noun"] == "woman") & (scores["iterations"] == 750))]
    steps = summarize(Study(late, world="w", seconds={}, facts={}))["steps_to_match"]
    assert steps["last_checkpoint"] == 625 and set(steps["by_class"]) == {"man", "woman"}


def test_the_papers_numbers_are_there_to_compare():
    reference = paper_reference()
    points = reference["operating_points"]
    assert points["lora_aug"] / points["meta_lora"] == pytest.approx(reference["speedup"], abs=0.005)
    for row in reference["table_3"]["rows"]:
        recomputed = 100 * (row["r_face_sim"] - row["face_sim"]) / row["face_sim"]
        assert recomputed == pytest.approx(row["difference"], abs=0.35)
    assert [row["label"] for row in reference["table_3"]["rows"]] == [r["label"] for r in reference["table_4"]["rows"]]
    published = {"instantid_sdxl", "instantid_lightning", "photomaker_sdxl", "photomaker_lightning", "pulid"}
    for table in ("table_3", "table_4"):
        rows = reference[table]["rows"]
        assert sorted(row["method"] for row in rows) == sorted(published | {"lora", "lora_aug", "meta_lora"})
        assert all(look.label(row["method"]) == row["label"] for row in rows if row["method"] in published)


def test_operating_points_are_the_papers(tmp_path):
    study = Study(read_scores([make_scores(tmp_path, **SMALL)]), world="w", seconds={}, facts={})
    assert (
        CellKey("meta_lora", 1, 375) in study.operating_points and CellKey("lora_aug", 1, 625) in study.operating_points
    )

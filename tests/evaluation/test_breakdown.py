"""What a table says of methods: kinds of prompts apart, seeds, a second embedder, classes, paired tests; by hand."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_world import PROMPTS, FakeScorer, World, make_world, paint
from test_score import cosine, vector

from metalora.core.manifest import write_manifest
from metalora.evaluation.breakdown import as_json, paired_tests, standings
from metalora.evaluation.curves import CellKey
from metalora.evaluation.score import score_images
from metalora.evaluation.score_table import read_scores, write_scores
from metalora.reporting.standings import tables_of
from metalora.reporting.tables import as_text

KINDS = {"front-0": "frontal", "front-1": "frontal", "style-0": "stylized", "style-1": "stylized"}
KINDS |= {"style-2": "recontextualized"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


def scored(world: World, *, second: FakeScorer | None = None) -> pd.DataFrame:
    scorers = FakeScorer().scorers()
    if second is not None:
        scorers = dataclasses.replace(scorers, second=lambda: second, second_fingerprint="other" * 8)
    return score_images(
        [world.images],
        world.subjects,
        face_prompts=PROMPTS["unsplash"],
        clip_prompts=PROMPTS["ffhq"],
        scorers=scorers,
        cache=world.images / "cache",
        kinds=KINDS,
    )


def of(frame: pd.DataFrame, key: CellKey, class_noun: str) -> dict:
    (found,) = [s for s in standings(frame) if s.key == key and s.class_noun == class_noun]
    return {name: interval.mean for name, interval in found.scores.items()}


def test_scenes_and_styles_stand_apart(world: World) -> None:
    frame = scored(world)
    found = of(frame, CellKey("lora", 1, 625), "woman")
    rows = frame.query("identity == 'eve' and method == 'lora' and iterations == 625").set_index("prompt_id")["clip_t"]
    assert found["clip_t_stylized"] == pytest.approx(rows[["style-0", "style-1"]].mean())
    assert found["clip_t_recontextualized"] == pytest.approx(rows["style-2"])
    assert found["clip_t"] == pytest.approx(rows.mean())
    assert found["clip_t_stylized"] != pytest.approx(found["clip_t_recontextualized"])


def test_classes_weigh_the_same_in_the_average_and_people_in_both(world: World) -> None:
    subjects = [s for s in world.subjects if s.identity != "bea"]  # one woman with a face score, two men
    records = [r for r in world.records if r.identity != "bea"]
    write_manifest(world.images / "manifest.jsonl", records)
    frame = scored(dataclasses.replace(world, subjects=tuple(subjects)))
    key = CellKey("meta_lora", 1, 375)
    woman, man, both, average = (of(frame, key, noun)["r_face_sim"] for noun in ("woman", "man", "both", "average"))
    assert average == pytest.approx((woman + man) / 2)
    assert both == pytest.approx((woman + 2 * man) / 3)
    assert average != pytest.approx(both)


def test_seed_diversity_by_hand(world: World) -> None:
    assert scored(world)["seed_diversity"].isna().all()  # one seed says nothing
    records, rng = list(world.records), np.random.default_rng(4)
    for record in world.records:
        if (record.identity, record.method, record.iterations) == ("eve", "lora", 375):
            for seed in (1, 2):
                file = record.file.replace("-0.png", f"-{seed}.png")
                paint(world.images / file, tuple(int(c) for c in rng.integers(1, 255, 3)))
                records.append(dataclasses.replace(record, file=file, seed=seed))
    write_manifest(world.images / "manifest.jsonl", records)
    frame = scored(world)
    rows = frame.query("identity == 'eve' and method == 'lora' and iterations == 375 and prompt_id == 'style-1'")
    colours = [vector(file) for file in rows["file"]]
    assert len(colours) == 3
    pairs = [1 - cosine(a, b) for a, b in itertools.combinations(colours, 2)]
    assert rows["seed_diversity"].mean() == pytest.approx(np.mean(pairs), abs=1e-6)
    assert frame[frame["identity"] != "eve"]["seed_diversity"].isna().all()
    assert of(frame, CellKey("lora", 1, 375), "woman")["seed_diversity"] > 0


def test_a_second_embedder_has_columns_of_its_own_and_changes_nothing_else(world: World) -> None:
    class Squared(FakeScorer):
        def embed(self, images, boxes):
            return self._colours([(image.astype(float) ** 2).astype(np.float32) for image in images])

    plain, both = scored(world), scored(world, second=Squared())
    pd.testing.assert_frame_equal(both[plain.columns], plain)
    row = both.query("identity == 'bea' and method == 'meta_lora' and iterations == 625").iloc[0]
    bea = next(s for s in world.subjects if s.identity == "bea")
    expected = np.mean([cosine(vector(row["file"]) ** 2, vector(path) ** 2) for path in bea.test_photos])
    assert row["r_face_sim_second"] == pytest.approx(expected, abs=1e-6)
    photo = both.query("identity == 'bea' and method == 'photo_reference'").iloc[0]
    expected = np.mean([cosine(vector(bea.reference) ** 2, vector(path) ** 2) for path in bea.test_photos])
    assert photo["r_face_sim_second"] == pytest.approx(expected, abs=1e-6)
    key = CellKey("meta_lora", 1, 625)
    assert of(both, key, "woman")["r_face_sim_second"] != pytest.approx(of(both, key, "woman")["r_face_sim"])
    assert np.isnan(of(plain, key, "woman")["r_face_sim_second"])


def three_methods() -> pd.DataFrame:
    """Ten men and ten women; method b is better than a by 0.05, c is not."""
    rng, rows = np.random.default_rng(0), []
    for noun, k in itertools.product(("man", "woman"), range(10)):
        level = rng.normal(0.5, 0.2)
        for method, gain in (("a", 0.0), ("b", 0.05), ("c", 0.0)):
            value = level + gain + rng.normal(0, 0.01)
            rows.append(
                {
                    "method": method,
                    "rank": 0,
                    "iterations": 0,
                    "identity": f"{noun}{k}",
                    "class_noun": noun,
                    "prompt_id": "p",
                    "seed": 0,
                    "file": f"{method}{noun}{k}",
                    "face_found": 1.0,
                    "face_sim": value,
                    "r_face_sim": value,
                    "clip_t": np.nan,
                    "clip_i": np.nan,
                    "test_photos": 3,
                    "reference_faces": 1,
                }
            )
    return pd.DataFrame(rows)


def compared(rows: pd.DataFrame) -> dict:
    return {(t.a.method, t.b.method): t for t in paired_tests(rows) if t.measure == "r_face_sim"}


def test_paired_tests_find_what_differs_and_only_that() -> None:
    found = compared(three_methods())
    assert set(found) == {("a", "b"), ("a", "c"), ("b", "c")}
    assert found["a", "b"].p < 0.001 and found["a", "b"].difference.high < -0.03 and found["a", "b"].people == 20
    assert found["a", "c"].p > 0.05 and found["a", "c"].difference.low < 0 < found["a", "c"].difference.high
    assert {test.classes for test in found.values()} == {("man", "woman")}


def test_methods_are_compared_on_the_classes_that_both_have() -> None:
    rows = three_methods()
    whole, men = compared(rows), compared(rows[rows["class_noun"] == "man"])
    found = compared(rows[(rows["class_noun"] == "man") | (rows["method"] != "b")])
    assert found == {("a", "b"): men["a", "b"], ("a", "c"): whole["a", "c"], ("b", "c"): men["b", "c"]}
    assert found["a", "b"].classes == ("man",) and found["a", "b"].people == 10
    apart = rows[(rows["class_noun"] == "man") == (rows["method"] == "b")]
    assert set(compared(apart)) == {("a", "c")}
    summary = as_json(rows[(rows["class_noun"] == "man") | (rows["method"] != "b")])
    assert [test["classes"] for test in summary["paired_tests"] if test["measure"] == "r_face_sim"] == [
        ["man"],
        ["man", "woman"],
        ["man"],
    ]


def test_tables_and_json_are_of_the_same_numbers_also_for_old_tables(world: World) -> None:
    frame = scored(world)
    summary = as_json(frame)
    wanted = ("lora", 375, "man")
    entry = next(s for s in summary["standings"] if (s["method"], s["iterations"], s["class"]) == wanted)
    assert entry["r_face_sim"]["mean"] == pytest.approx(
        of(frame, CellKey("lora", 1, 375), "man")["r_face_sim"], abs=1e-5
    )
    assert entry["face_found"]["mean"] == pytest.approx(0.75) and entry["people"] == 3  # one of cid's four was missed
    assert summary["bounds"]["both"]["photos_without_a_found_face"] == 1
    text = "\n".join(as_text(table) for table in tables_of(summary))
    assert f"{100 * entry['r_face_sim']['mean']:.1f} [" in text and "strangers" in text
    assert "LoRA r1 625 minus LoRA+aug r1 625" in text and "LoRA r1 375 minus" not in text  # the rest is in the file
    assert len([t for t in summary["paired_tests"] if t["measure"] == "r_face_sim"]) == 15
    write_scores(world.images / "old.parquet", frame.drop(columns=["kind", "seed_diversity", "copy_paste"]))
    old = as_json(read_scores([world.images / "old.parquet"]))
    for before, after in zip(summary["standings"], old["standings"], strict=True):
        assert after["r_face_sim"] == before["r_face_sim"] and after["clip_t_stylized"] is None
        assert after["copy_paste"] is None


def test_the_copy_paste_score_is_told_with_its_interval_and_compared(world: World) -> None:
    frame = scored(world)
    summary = as_json(frame)
    key = {"method": "lora", "rank": 1, "iterations": 625}
    (entry,) = [s for s in summary["standings"] if s | key == s and s["class"] == "both"]
    rows = frame[(frame["method"] == "lora") & (frame["iterations"] == 625)]
    by_person = rows.groupby("identity")["copy_paste"].mean().dropna()
    assert len(by_person) == 4 and entry["copy_paste"]["mean"] == pytest.approx(by_person.mean(), abs=1e-5)
    assert entry["copy_paste"]["low"] < entry["copy_paste"]["mean"] < entry["copy_paste"]["high"]
    table, *_, paired = tables_of(summary)
    place = table.header.index("copy-paste")
    (row,) = [row for row in table.rows if row[0] == "LoRA r1 625" and row[1].startswith("both")]
    low, mean, high = (100 * entry["copy_paste"][name] for name in ("low", "mean", "high"))
    assert row[place] == f"{mean:.1f} [{low:.1f}, {high:.1f}]"
    others = {s["method"]: s["copy_paste"]["mean"] for s in summary["standings"] if s["class"] == "both" if s["rank"]}
    (test,) = [row for row in paired.rows if row[:2] == ("LoRA r1 625 minus LoRA+aug r1 625", "copy_paste")]
    difference = 100 * (others["lora"] - others["lora_aug"])
    assert test[2].startswith(f"{difference:+.1f} [") and test[4] == "man and woman (4)"


def test_every_base_has_a_row_and_its_name_where_there_are_several(world: World) -> None:
    assert all("base" not in standing for standing in as_json(scored(world))["standings"])
    bases = [record for record in world.records if record.method == "base"]
    for record in bases:
        file = Path("flux") / record.file
        paint(world.images / file, (9, 200, 90))
        world = dataclasses.replace(
            world, records=(*world.records, dataclasses.replace(record, file=str(file), base_model="flux@2"))
        )
    write_manifest(world.images / "manifest.jsonl", world.records)
    summary = as_json(scored(world))
    (own, other) = [s for s in summary["standings"] if s["method"] == "base" and s["class"] == "both"]
    assert own["base"] == "fake@1, 3 steps, guidance 3.5" and other["base"] == "flux@2, 3 steps, guidance 3.5"
    assert own["images"] == other["images"] == 10 and own["clip_t"] != other["clip_t"]
    names = [row[0] for row in tables_of(summary)[0].rows]
    assert (
        names.count("untouched base, flux@2, 3 steps, guidance 3.5")
        == names.count("untouched base, fake@1, 3 steps, guidance 3.5")
        == 4
    )

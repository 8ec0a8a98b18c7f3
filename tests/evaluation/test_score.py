"""Scores of images: against sums done by hand, cached, independent of the batch, honest about what was not found."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from fake_world import PROMPTS, FakeScorer, make_world, paint
from PIL import Image

from metalora.core.errors import UserError
from metalora.core.manifest import write_manifest
from metalora.evaluation import curves
from metalora.evaluation.curves import CellKey
from metalora.evaluation.embeddings import scorer_fingerprint
from metalora.evaluation.score import score_images
from metalora.evaluation.score_table import read_scores, write_scores

FACES = ["r_face_sim", "face_sim"]


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


@pytest.fixture
def scored(world, tmp_path):
    """Call `scored(...)` to score the world with a fake scorer."""

    def run(scorer=None, *, subjects=None, manifests=None, cache=None, **options):
        return score_images(
            manifests or [world.images],
            subjects or world.subjects,
            **({"face_prompts": PROMPTS["unsplash"], "clip_prompts": PROMPTS["ffhq"]} | options),
            scorers=(scorer or FakeScorer()).scorers(),
            cache=cache or tmp_path / "cache",
        )

    return run


def vector(path):
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.float64)[-1, -1]


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


def by_name(world, identity):
    return next(subject for subject in world.subjects if subject.identity == identity)


def test_face_scores_by_hand(world, scored):
    frame = scored()
    for identity, missed in (("ann", 1), ("dan", 0)):
        subject = by_name(world, identity)
        tests = [vector(path) for path in subject.test_photos if vector(path)[0] > 0]
        assert len(subject.test_photos) - len(tests) == missed
        rows = frame[(frame["identity"] == identity) & (frame["method"] == "meta_lora")]
        assert len(rows) == 4
        for row in rows.itertuples():
            made = vector(row.file)
            assert row.r_face_sim == pytest.approx(np.mean([cosine(made, test) for test in tests]), abs=1e-6)
            assert row.face_sim == pytest.approx(cosine(made, vector(subject.reference)), abs=1e-6)
            assert (row.test_photos, row.test_photos_missed) == (len(tests), missed)
            assert np.isnan(row.clip_t) and np.isnan(row.clip_i)


def test_clip_scores_by_hand(world, scored):
    frame = scored()
    rows = frame[(frame["identity"] == "eve") & (frame["method"] == "lora_aug")]
    assert len(rows) == 6 and rows[FACES].isna().all(axis=None) and rows["face_found"].isna().all()
    for row in rows.itertuples():
        text = np.array([len(row.prompt), row.prompt.count("a"), 1.0])
        base = vector(world.images / f"images/woman/base-0/{row.prompt_id}-0.png")
        assert row.clip_t == pytest.approx(cosine(vector(row.file), text), abs=1e-6)
        assert row.clip_i == pytest.approx(cosine(vector(row.file), base), abs=1e-6)
    own = frame[(frame["method"] == "base") & (frame["part"] == "ffhq")]
    assert own["clip_i"].to_numpy() == pytest.approx(1.0)


def test_the_base_counts_for_everybody_of_its_class(world, scored):
    base = scored().query("method == 'base'")
    assert sorted(base.groupby("identity").size().items()) == [
        ("ann", 2),
        ("bea", 2),
        ("cid", 2),
        ("dan", 2),
        ("eve", 3),
        ("fox", 3),
    ]
    ann, bea = (base[base["identity"] == name].sort_values("prompt_id") for name in ("ann", "bea"))
    assert list(ann["file"]) == list(bea["file"])
    assert not np.allclose(ann["r_face_sim"], bea["r_face_sim"])


def test_only_people_with_images_are_compared_with_the_base(world, scored):
    records = [record for record in world.records if record.identity not in ("bea", "fox")]
    write_manifest(world.images / "manifest.jsonl", records)
    frame = scored()
    assert set(frame.query("method == 'base'")["identity"]) == {"ann", "cid", "dan", "eve", "fox"}
    assert frame.query("method == 'photo_stranger'")["identity"].value_counts().to_dict() == {
        "ann": 1,
        "bea": 1,
        "cid": 1,
        "dan": 1,
    }


def test_a_miss_is_neither_a_score_nor_forgotten(scored):
    row = scored().query("identity == 'cid' and method == 'lora' and iterations == 375 and prompt_id == 'front-1'")
    assert row["face_found"].item() == 0
    assert row[FACES].isna().all(axis=None)


def test_nobody_is_scored_0_for_want_of_a_photo_with_a_face(world, scored):
    dan, bea = by_name(world, "dan"), by_name(world, "bea")
    paint(dan.reference, (0, 50, 60))
    for photo in bea.test_photos:
        paint(photo, (0, 50, 60))
    for identity in ("dan", "bea"):
        paint(world.images / f"images/{identity}/lora-375/front-0-0.png", (0, 9, 9))  # a miss
    frame = scored()

    def means(class_noun):
        scores = curves.cell(frame, CellKey("lora", 1, 375), class_noun=class_noun).scores
        return scores["face_sim"].mean, scores["r_face_sim"].mean

    def alone(identity):
        rows = frame.query(f"identity == '{identity}' and method == 'lora' and iterations == 375")
        assert len(rows) == 2
        return rows[["face_sim", "r_face_sim"]].fillna(0).mean().to_numpy()

    (dan_face, dan_robust), (bea_face, bea_robust) = alone("dan"), alone("bea")
    (cid_face, cid_robust), (ann_face, ann_robust) = alone("cid"), alone("ann")
    assert dan_face == bea_robust == 0 and dan_robust > 0 and bea_face > 0
    assert means("man") == pytest.approx((cid_face, (cid_robust + dan_robust) / 2))
    assert means("woman") == pytest.approx(((ann_face + bea_face) / 2, ann_robust))
    generated = frame[(frame["method"] == "lora") & (frame["part"] == "unsplash")].groupby("identity")
    assert generated["reference_faces"].max().to_dict() == {"ann": 1, "bea": 1, "cid": 1, "dan": 0}


def test_photos_bound_the_scores(world, scored):
    frame = scored()
    bea = by_name(world, "bea")
    reference, tests = vector(bea.reference), [vector(path) for path in bea.test_photos]
    row = frame.query("identity == 'bea' and method == 'photo_reference'")
    assert row["r_face_sim"].item() == pytest.approx(np.mean([cosine(reference, test) for test in tests]), abs=1e-6)
    rows = frame.query("identity == 'bea' and method == 'photo_test'")
    assert len(rows) == 3
    first = rows[rows["prompt_id"] == "bea/1.png"]
    expected = np.mean([cosine(tests[0], tests[1]), cosine(tests[0], tests[2])])
    assert first["r_face_sim"].item() == pytest.approx(expected, abs=1e-6)
    assert first["test_photos"].item() == 2
    stranger = frame.query("identity == 'bea' and method == 'photo_stranger'")
    ann = vector(by_name(world, "ann").reference)
    assert stranger["r_face_sim"].item() == pytest.approx(np.mean([cosine(ann, test) for test in tests]), abs=1e-6)
    missed = frame.query("identity == 'ann' and method == 'photo_test'")
    assert missed["face_found"].tolist() == [1, 0, 1]
    assert missed["test_photos_missed"].tolist() == [1, 0, 1]


def test_one_part_can_serve_both(world, scored):
    frame = scored(clip_part="unsplash", clip_prompts=["front-1"])
    for method, images in (("lora", 2), ("base", 1)):  # lora at two iterations
        ann = frame.query(f"identity == 'ann' and method == '{method}'")
        for prompt_id in ("front-0", "front-1"):
            rows = ann[ann["prompt_id"] == prompt_id]
            assert len(rows) == images and rows[FACES].notna().all(axis=None)
            assert rows["clip_t"].notna().all() == rows["clip_i"].notna().all() == (prompt_id == "front-1")
    assert frame[frame["identity"] == "eve"]["clip_t"].isna().all()


def test_scores_do_not_depend_on_the_batch(scored, tmp_path):
    large, small = FakeScorer(), FakeScorer()
    together = scored(large, cache=tmp_path / "large", batch_size=64)
    apart = scored(small, cache=tmp_path / "small", batch_size=3)
    assert together.equals(apart)
    assert max(small.batches) == 3 < max(large.batches)


def test_nothing_is_embedded_twice(scored, world):
    first = FakeScorer()
    frame = scored(first)
    assert first.faces_asked > 0
    second = FakeScorer()
    assert scored(second).equals(frame)
    assert (second.batches, second.texts_asked) == ([], 0)

    ann = by_name(world, "ann")
    changed = next(r for r in world.records if r.identity == "ann" and r.method == "lora")
    paint(world.images / changed.file, (7, 8, 200))
    third = FakeScorer()
    again = scored(third)
    assert third.faces_asked == 1
    row = again[again["file"] == str(world.images / changed.file)]
    assert row["face_sim"].item() == pytest.approx(cosine(np.array([7.0, 8, 200]), vector(ann.reference)), abs=1e-6)


def test_embeddings_survive_an_interruption(scored, tmp_path):
    class Cut(FakeScorer):
        def detect(self, images):
            if self.faces_asked >= 9:
                raise KeyboardInterrupt
            return super().detect(images)

    with pytest.raises(KeyboardInterrupt):
        scored(Cut(), batch_size=3)
    after, fresh = FakeScorer(), FakeScorer()
    scored(after)
    scored(fresh, cache=tmp_path / "other")
    assert after.faces_asked == fresh.faces_asked - 9


def test_scores_on_disk(scored, world, tmp_path):
    frame = scored()
    write_scores(world.images / "scores.parquet", frame)
    back = read_scores([world.images / "scores.parquet", world.images / "scores.parquet"])
    assert len(back) == len(frame)
    numbers = ["clip_t", "clip_i", "face_found", "test_photos", *FACES]
    assert back[numbers].equals(frame[numbers])
    assert back[["file", "reference"]].equals(frame[["file", "reference"]])
    older = frame.query("class_noun == 'man'").drop(columns="reference_faces")
    write_scores(world.images / "older.parquet", older)
    joined = read_scores([world.images / "older.parquet", world.images / "scores.parquet"])
    assert len(joined) == len(frame) and curves.cells(joined) == curves.cells(frame)
    assert len(curves.cells(read_scores([world.images / "older.parquet"]))) == 7

    shutil.move(world.images.parent, tmp_path.parent / "moved")
    moved = read_scores([tmp_path.parent / "moved" / "out" / "scores.parquet"])
    assert str(tmp_path.parent / "moved" / "out" / "images") in moved["file"].iloc[0]
    shutil.move(tmp_path.parent / "moved", world.images.parent)
    (tmp_path / "broken.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="cannot read scores"):
        read_scores([tmp_path / "broken.parquet"])
    with pytest.raises(UserError, match="there are no scores"):
        read_scores([])


def test_bad_manifests(scored, world):
    known = [subject for subject in world.subjects if subject.identity != "dan"]
    with pytest.raises(UserError, match="dan"):
        scored(subjects=known)
    (world.images / world.records[3].file).unlink()
    with pytest.raises(UserError, match="an image is gone"):
        scored()
    with pytest.raises(UserError, match="cannot read the list"):
        scored(manifests=[world.images / "nothing"])
    (world.images / "manifest.jsonl").write_text('{"file": "x"}\n')
    with pytest.raises(UserError, match="line 1"):
        scored()


@pytest.mark.parametrize("method", ["lora", "base"])
def test_images_of_other_prompts_are_refused(scored, world, method):
    records = [record for record in world.records if record.method == method and record.prompt_id == "front-0"]
    write_manifest(world.images / "manifest.jsonl", [dataclasses.replace(r, prompt_id="prompt-00") for r in records])
    with pytest.raises(UserError, match="no image is of a prompt") as told:
        scored()
    assert "front-0 for unsplash people" in told.value.expected and "style-0 for ffhq people" in told.value.expected
    assert told.value.got.startswith("prompt-00 of ") and told.value.key == "images"
    write_manifest(world.images / "manifest.jsonl", [])
    with pytest.raises(UserError, match="there is no image to score"):
        scored()


def test_clip_i_wants_the_same_noise_and_setting(scored, world):
    records = [dataclasses.replace(record, steps=30) if record.method == "lora" else record for record in world.records]
    write_manifest(world.images / "manifest.jsonl", records)
    frame = scored()
    assert frame.query("method == 'lora' and part == 'ffhq'")["clip_i"].isna().all()
    assert frame.query("method == 'lora_aug' and part == 'ffhq'")["clip_i"].notna().all()


def test_a_scorers_fingerprint_is_its_content(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_bytes(b"same")
    print_a, print_b = (
        scorer_fingerprint({"embedder": {"path": str(tmp_path / name)}, "threshold": 0.9}) for name in ("a", "b")
    )
    assert print_a == print_b
    assert scorer_fingerprint({"embedder": {"path": str(tmp_path / "a")}, "threshold": 0.8}) != print_a
    (tmp_path / "b" / "weights").write_bytes(b"other")
    assert scorer_fingerprint({"embedder": {"path": str(tmp_path / "b")}, "threshold": 0.9}) != print_a


@pytest.mark.parametrize("place", ["face", "picture", "prompt"])
def test_embeddings_that_are_no_numbers_are_refused_and_not_kept(scored, world, place):
    class Broken(FakeScorer):
        def embed(self, images, boxes):
            return super().embed(images, boxes) * (np.nan if place == "face" else 1)

        def embed_images(self, images):
            return super().embed_images(images) * (np.nan if place == "picture" else 1)

        def embed_texts(self, prompts):
            return super().embed_texts(prompts) * (np.nan if place == "prompt" else 1)

    with pytest.raises(UserError, match=r"embedding of .* is not a number; .*got NaN for .*key: scorer") as caught:
        scored(Broken())
    what = {"face": "the face embedding", "picture": "the CLIP embedding", "prompt": "the CLIP embedding"}[place]
    assert what in str(caught.value)
    assert scored(FakeScorer())["clip_t"].notna().any()  # the cache holds no NaN


def test_numbers_that_an_older_version_kept_as_nan_are_computed_again(scored, tmp_path):
    import pandas as pd

    before = scored()
    path = min((tmp_path / "cache").glob("faces-*/*.parquet"))
    table = pd.read_parquet(path)
    table["vector"] = [v * np.nan if k == 0 else v for k, v in enumerate(table["vector"])]
    table.to_parquet(path, index=False)
    again = FakeScorer()
    assert scored(again).equals(before) and again.faces_asked == 1


def test_an_image_of_another_size_than_its_line_says_is_refused(scored, world):
    record = world.records[5]
    paint(world.images / record.file, (9, 9, 9), size=(20, 36))
    with pytest.raises(UserError, match=r"another size than its line .*expected height 40, width 36; got height 20"):
        scored()


def test_an_unreadable_image_is_one_clear_line(scored, world):
    (world.images / world.records[5].file).write_bytes(b"no picture")
    with pytest.raises(UserError, match="is not an image") as caught:
        scored()
    assert world.records[5].file in str(caught.value) and "\n" not in str(caught.value)


def test_of_several_images_of_a_cell_the_last_counts(scored, world):
    record = next(r for r in world.records if r.identity == "ann" and r.method == "lora" and r.prompt_id == "front-0")
    later = dataclasses.replace(record, file="later.png")
    paint(world.images / "later.png", (200, 3, 90))
    write_manifest(world.images / "manifest.jsonl", [*world.records, later])
    frame = scored()
    rows = frame.query("identity == 'ann' and method == 'lora' and prompt_id == 'front-0'")
    rows = rows[rows["iterations"] == record.iterations]
    assert list(rows["file"]) == [str(world.images / "later.png")]


def test_a_setting_that_came_later_changes_no_fingerprint_while_it_is_null(tmp_path):
    before = {"detector": {"threshold": 0.9}, "clip": {"model": "x"}, "embedder": {"path": None}}
    after = before | {"second_embedder": None, "clip": {"model": "x", "sha256": None}}
    after |= {"embedder": before["embedder"] | {"sha256": None}}
    assert scorer_fingerprint(after) == scorer_fingerprint(before)
    assert scorer_fingerprint(after | {"second_embedder": {"path": "y"}}) != scorer_fingerprint(before)
    assert scorer_fingerprint(before | {"embedder": {}}) != scorer_fingerprint(before)


def with_other_bases(world, folder):
    """A second folder: a method on a base of its own, drawn in two ways; the second of them is the first's likeness."""
    eve = by_name(world, "eve")
    records = []
    for model, steps, colour in (("flux@2", 3, (10, 200, 30)), ("flux@2", 9, (200, 10, 30))):
        for name, identity, shade in (("base", "base", 0), ("pulid", "eve", 40)):
            if (name, steps) == ("pulid", 9):
                continue
            file = f"{name}-{steps}.png"
            paint(folder / file, (colour[0], colour[1], colour[2] + shade))
            source = next(r for r in world.records if r.method == "base" and r.prompt_id == "style-1")
            more = {"file": file, "method": name, "identity": identity, "class_noun": eve.class_noun}
            records.append(dataclasses.replace(source, base_model=model, steps=steps, **more))
    write_manifest(folder / "manifest.jsonl", records)
    return records


def test_every_base_model_has_a_cell_of_its_own(scored, world, tmp_path):
    with_other_bases(world, tmp_path / "rival")
    alone, both = scored(), scored(manifests=[world.images, tmp_path / "rival"])
    keys = [key for key in curves.cell_keys(both) if key.method == "base"]
    assert keys == [
        CellKey("base", 0, 0),
        CellKey("base", 0, 0, "flux@2, 3 steps, guidance 3.5"),
        CellKey("base", 0, 0, "flux@2, 9 steps, guidance 3.5"),
    ]
    cells = [curves.cell(both, key, class_noun="woman") for key in keys]
    assert cells[0] == curves.cell(alone, keys[0], class_noun="woman")
    assert [cell.images for cell in cells] == [5, 1, 1]
    for cell, file in zip(cells[1:], ("base-3.png", "base-9.png"), strict=True):
        row = both[both["file"] == str(tmp_path / "rival" / file)]
        assert cell.scores["clip_t"].mean == pytest.approx(row["clip_t"].mean())
    pulid = both[both["method"] == "pulid"]
    twin = vector(tmp_path / "rival" / "base-3.png")  # not the one of 9 steps
    assert pulid["clip_i"].item() == pytest.approx(cosine(vector(tmp_path / "rival" / "pulid-3.png"), twin), abs=1e-6)
    assert curves.own_base(both) == "fake@1, 3 steps, guidance 3.5"
    assert curves.own_base(both[both["method"].isin(["base", "pulid"])]) == "flux@2, 3 steps, guidance 3.5"
    kept = curves.on_own_base(both)
    assert set(kept[kept["method"] == "base"]["base_model"]) == {"fake@1"} and (kept["method"] == "pulid").sum() == 1


def test_tables_of_several_bases_are_joined_without_mixing_them(scored, world, tmp_path):
    with_other_bases(world, tmp_path / "rival")
    write_scores(world.images / "scores.parquet", scored())
    write_scores(tmp_path / "rival" / "scores.parquet", scored(manifests=[tmp_path / "rival"]))
    paths = [folder / "scores.parquet" for folder in (world.images, tmp_path / "rival")]
    for order in (paths, paths[::-1], [*paths, *paths]):
        joined = read_scores(order)
        bases = joined[joined["method"] == "base"]
        assert bases[bases["class_noun"] == "woman"].groupby(["base_model", "steps"])["file"].nunique().to_dict() == {
            ("fake@1", 3): 5,
            ("flux@2", 3): 1,
            ("flux@2", 9): 1,
        }
        assert curves.cell(joined, CellKey("base", 0, 0), class_noun="woman").images == 5


@pytest.mark.parametrize(
    ("column", "value"),
    [("lora_sha256", "def"), ("weights_sha256", "def"), ("base_model", "flux@2"), ("guidance", 5.0)],
)
def test_tables_that_hold_different_images_of_a_cell_are_not_joined(scored, world, tmp_path, column, value):
    frame = scored().query("method != 'base'")
    paths = [world.images / name / "scores.parquet" for name in ("one", "other", "older")]
    retrained = (frame["method"] == "lora") & (frame["iterations"] == 375) & (frame["identity"] == "ann")
    write_scores(paths[0], frame)
    write_scores(paths[1], frame.assign(**{column: frame[column].mask(retrained, value)}))
    write_scores(paths[2], frame.drop(columns=column))
    for order in (paths[:2], paths[1::-1]):
        with pytest.raises(UserError, match="two tables hold different images of lora rank 1 at 375, ann, ") as caught:
            read_scores(order)
        drawn = {paths[0]: frame.loc[retrained, column].iloc[0] or "none", paths[1]: value}
        told = [f"{drawn[path]} in {path}" for path in order]
        assert caught.value.got == f"{column} {', '.join(told)}" and caught.value.key == "scores"
    assert len(read_scores([paths[0], paths[2], paths[0]])) == len(frame)  # a table that does not tell is believed


def test_of_two_images_of_a_cell_in_one_table_the_last_counts(scored, world):
    frame = scored()
    again = frame[frame["method"] == "lora"].assign(lora_sha256="def", clip_t=0.5)
    write_scores(world.images / "scores.parquet", pd.concat([frame, again], ignore_index=True))
    joined = read_scores([world.images / "scores.parquet"])
    assert len(joined) == len(frame) and (joined.loc[joined["method"] == "lora", "clip_t"] == 0.5).all()


def test_tables_without_a_bases_columns_are_read(scored, world):
    frame = scored()
    write_scores(world.images / "older.parquet", frame.drop(columns=["base_model", "steps", "guidance"]))
    older = read_scores([world.images / "older.parquet"])
    assert len(older) == len(frame) and curves.cells(older) == curves.cells(frame)
    assert curves.own_base(older) == "" and len(curves.on_own_base(older)) == len(older)
    assert [key.base for key in curves.cell_keys(older)] == [""] * 7


def test_of_twins_of_one_name_the_own_folders_counts(scored, world, tmp_path):
    """Two programs' bases may have one name: an image is compared with the base that lies beside it."""
    folders = [tmp_path / "one", tmp_path / "two"]
    base = next(r for r in world.records if (r.method, r.prompt_id, r.class_noun) == ("base", "style-1", "woman"))
    for folder, colour in zip(folders, ((10, 200, 30), (200, 10, 30)), strict=True):
        mine = dataclasses.replace(base, file="mine.png", method=folder.name, identity="eve")
        paint(folder / "base.png", colour)
        paint(folder / "mine.png", (120, 130, 140))
        write_manifest(folder / "manifest.jsonl", [mine, dataclasses.replace(base, file="base.png")])
    frame = scored(manifests=folders)
    for folder in folders:
        found = frame[frame["method"] == folder.name]["clip_i"].item()
        assert found == pytest.approx(cosine(vector(folder / "mine.png"), vector(folder / "base.png")), abs=1e-6)
    lines = (folders[1] / "manifest.jsonl").read_text().splitlines()
    (folders[1] / "manifest.jsonl").write_text(lines[0])  # without a base of its own the other folder's counts
    frame = scored(manifests=folders)
    found = frame[frame["method"] == "two"]["clip_i"].item()
    assert found == pytest.approx(cosine(vector(folders[1] / "mine.png"), vector(folders[0] / "base.png")), abs=1e-6)


def test_seeds_are_compared_within_one_base(scored, world, tmp_path):
    base = next(r for r in world.records if (r.method, r.prompt_id, r.class_noun) == ("base", "style-1", "woman"))
    records = []
    for model, colours in (("one", ((10, 200, 30), (11, 200, 30))), ("two", ((200, 10, 30), (200, 11, 30)))):
        for seed, colour in enumerate(colours):
            file = paint(tmp_path / "bases" / f"{model}-{seed}.png", colour).name
            records.append(dataclasses.replace(base, file=file, base_model=model, seed=seed))
    write_manifest(tmp_path / "bases" / "manifest.jsonl", records)
    frame = scored(manifests=[tmp_path / "bases"])
    assert (frame[frame["method"] == "base"]["seed_diversity"] < 1e-3).all()


def test_a_test_photo_that_is_the_reference_is_refused(scored, world, tmp_path):
    ann = by_name(world, "ann")
    again = tmp_path / "benchmark" / "ann" / "9.tiff"  # the same pixels in another file
    with Image.open(ann.reference) as photo:
        photo.save(again)
    subjects = [dataclasses.replace(s, test_photos=(*s.test_photos, again)) if s is ann else s for s in world.subjects]
    with pytest.raises(UserError, match="a test photo of ann is the reference photo once more") as caught:
        scored(subjects=subjects)
    assert caught.value.got == f"{ann.reference} and {again}" and caught.value.key == "benchmark.root"


def test_a_benchmark_photo_that_cannot_be_read_names_the_benchmarks_key(scored, world):
    by_name(world, "ann").test_photos[0].write_bytes(b"no photo")
    with pytest.raises(UserError, match=r"is not an image; .*key: benchmark\.root"):
        scored()

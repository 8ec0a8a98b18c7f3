"""Which questions a study asks: the paper's counts, balanced, unseen photos where due; bad folders in one line."""

import dataclasses
import hashlib
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from made_up_images import (
    CHECKPOINTS,
    METHODS,
    PAPER,
    colour,
    design,
    make_benchmark,
    make_images,
    paint,
    pool_of,
    questions_of,
    record,
    words,
)
from PIL import Image

from metalora.core.errors import UserError
from metalora.core.manifest import read_manifest, write_manifest
from metalora.people.benchmark import load_benchmark
from metalora.reporting.study import paper_reference
from metalora.reporting.user_study import pictures
from metalora.reporting.user_study.design import CATEGORIES
from metalora.reporting.user_study.pool import find_folders


def test_the_papers_design_is_64_questions_half_from_each_part(made_up: Path) -> None:
    questions = questions_of(made_up)
    assert Counter(q.category for q in questions) == dict.fromkeys(CATEGORIES, 16)
    assert Counter(q.part for q in questions) == {"unsplash": 32, "ffhq": 32}
    stated = paper_reference()["user_study"]
    assert len(questions) == stated["questions"]
    assert len(questions) * stated["participants"] == stated["answers"]


def test_the_papers_percentages_are_whole_answers_of_sixteen_questions() -> None:
    stated = paper_reference()["user_study"]
    assert stated["participants"] * 16 == stated["answers_per_category"]
    for name in ("table_1", "table_2"):
        rows, (overall, *columns) = stated[name]["rows"], stated[name]["columns"]
        for column in columns:
            counts = [row[column] * stated["answers_per_category"] / 100 for row in rows]
            assert all(count == int(count) for count in counts)
            assert sum(counts) == stated["answers_per_category"]
        assert all(row[overall] == sum(row[c] for c in columns) / 2 for row in rows)


def test_classes_people_and_prompts_come_equally_often(made_up: Path) -> None:
    questions = questions_of(made_up)
    for category in CATEGORIES:
        found = [q for q in questions if q.category == category]
        assert Counter(q.class_noun for q in found) == {"man": 8, "woman": 8}
        assert len({q.identity for q in found}) == 16
        assert set(Counter(q.prompt_id for q in found).values()) == {8}
    assert len({(q.identity, q.prompt_id) for q in questions}) == 64  # nobody judges a picture twice


def test_references_are_unseen_or_the_training_photo(made_up: Path) -> None:
    subjects = {s.identity: s for s in load_benchmark(made_up / "benchmark").subjects}
    for question in questions_of(made_up):
        subject = subjects[question.identity]
        if question.category == "multi":
            assert len(set(question.references)) == 3
            assert set(question.references) <= set(subject.test_photos)
        else:
            assert question.references == (subject.reference,)


def test_every_model_shows_the_same_prompt_and_seeds(made_up: Path) -> None:
    for question in questions_of(made_up):
        first = question.category in ("multi", "single")
        assert tuple(question.candidates) == (METHODS if first else ("pulid", "meta_lora"))
        assert len(set(question.seeds)) == (1 if first else 3)
        for method, files in question.candidates.items():
            assert [f"{question.prompt_id}-{seed}.png" for seed in question.seeds] == [path.name for path in files]
            assert all(path.parts[-2:-1] == (method,) and question.identity in path.parts for path in files)


def test_a_seed_draws_the_same_questions_again_and_another_others(made_up: Path) -> None:
    assert questions_of(made_up) == questions_of(made_up)
    assert questions_of(made_up) != questions_of(made_up, of=design(seed=1))


def changed(tmp_path: Path, made_up: Path) -> Path:
    shutil.copytree(made_up / "images", tmp_path / "images")
    shutil.copytree(made_up / "benchmark", tmp_path / "benchmark")
    return tmp_path


def edit(folder: Path, change: object) -> None:
    records = read_manifest(folder)
    write_manifest(folder / "manifest.jsonl", [image for r in records if (image := change(r)) is not None])  # type: ignore[operator]


def test_a_missing_method_is_named(tmp_path: Path, made_up: Path) -> None:
    folder = changed(tmp_path, made_up)
    shutil.rmtree(folder / "images" / "photomaker_lightning")
    with pytest.raises(UserError, match=r"no images of photomaker_lightning.*got instantid_lightning, pulid"):
        questions_of(folder)
    models = tuple(m for m in METHODS if m != "photomaker_lightning")  # best of four works
    assert len(questions_of(folder, of=design(models=models))) == 64


def test_missing_seeds_are_counted(tmp_path: Path, made_up: Path) -> None:
    folder = changed(tmp_path, made_up)
    edit(folder / "images" / "pulid", lambda r: r if r.seed < 2 else None)
    with pytest.raises(UserError, match=r"3 seeds in common.*got 0.*pulid 32 with up to 2 seeds") as caught:
        questions_of(folder)
    assert "\n" not in str(caught.value)


def test_differing_prompts_are_refused(tmp_path: Path, made_up: Path) -> None:
    folder = changed(tmp_path, made_up)
    edit(folder / "images" / "pulid", lambda r: dataclasses.replace(r, prompt=r.prompt + ", smiling"))
    with pytest.raises(UserError, match=r"other words than the benchmark's.*got .*smiling"):
        questions_of(folder)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"benchmark": "meta_phd@000000000000"}, r"drawn for another benchmark.*made_up@0.*got meta_phd@000000000000"),
        ({"reference_sha256": "0" * 64}, r"another photo than the benchmark's reference.*sha256 0000"),
        ({"class_noun": "robot"}, "of another class than the person"),
    ],
)
def test_images_of_another_benchmark_are_refused(
    tmp_path: Path, made_up: Path, said: dict[str, str], told: str
) -> None:
    folder = changed(tmp_path, made_up)
    edit(folder / "images" / "pulid", lambda r: dataclasses.replace(r, **said))
    with pytest.raises(UserError, match=told) as caught:
        questions_of(folder)
    assert "\n" not in str(caught.value)


def test_an_empty_prompt_is_asked_in_the_benchmarks_words(tmp_path: Path, made_up: Path) -> None:
    folder = changed(tmp_path, made_up)
    for method in METHODS:
        edit(folder / "images" / method, lambda r: dataclasses.replace(r, prompt="", class_noun=""))
    questions = questions_of(folder)
    assert [q.prompt for q in questions] == [words(q.prompt_id, q.class_noun) for q in questions_of(made_up)]


def test_images_of_people_and_prompts_of_elsewhere_are_left_out_and_told(tmp_path: Path, made_up: Path) -> None:
    folder = changed(tmp_path, made_up)
    image = read_manifest(folder / "images" / "pulid")[0]
    for k, change in enumerate(({"identity": "stranger"}, {"prompt_id": "odd-01", "prompt": "odd"})):
        alone = folder / "images" / f"more{k}"
        paint(alone / image.file, colour("more", k))
        write_manifest(alone / "manifest.jsonl", [dataclasses.replace(image, **change)])
    assert len(questions_of(folder)) == 64
    assert pool_of(folder).left_out["pulid"] == [
        "1 images of pulid of people who are not in the benchmark: stranger",
        "1 images of pulid of prompts that are not in the benchmark: odd-01",
    ]


def test_people_with_one_photo_are_never_in_multi_reference_questions(made_up: Path) -> None:
    counts = PAPER | {"multi": {"ffhq": 1}}
    with pytest.raises(UserError, match=r"too few images for 1 multi questions of the ffhq people.*3 photos beside"):
        questions_of(made_up, of=design(counts=counts))
    with pytest.raises(UserError, match="too few images for 16 multi questions of the unsplash people"):
        questions_of(made_up, of=design(references=5))


def test_two_checkpoints_of_a_method_need_a_choice(tmp_path: Path, made_up: Path) -> None:
    folder = changed(tmp_path, made_up)
    edit(folder / "images" / "pulid", lambda r: dataclasses.replace(r, iterations=r.seed))
    with pytest.raises(UserError, match=r"pulid at several checkpoints.*\+checkpoints.pulid=N.*0, 1, 2, 3"):
        questions_of(folder)
    pool = pool_of(folder, checkpoints=CHECKPOINTS | {"pulid": 2})
    assert {seed for method, *_, seed in pool.files if method == "pulid"} == {2}
    assert pool.left_out["pulid"] == ["224 images of pulid at other iterations than checkpoints.pulid=2: 0, 1, 3"]


def test_other_ranks_and_the_base_are_left_out(made_up: Path, tmp_path: Path) -> None:
    folder = changed(tmp_path, made_up)
    base = [record("base", "base", "woman", "frontal-01", 0)]
    write_manifest(folder / "images" / "base" / "manifest.jsonl", base)
    pool = pool_of(folder, rank=4)
    assert pool.methods == ("instantid_lightning", "photomaker_lightning", "pulid")  # those without LoRAs


def test_the_same_images_in_two_folders_count_once_and_different_ones_are_refused(
    tmp_path: Path, made_up: Path
) -> None:
    folder = changed(tmp_path, made_up)
    shutil.copytree(folder / "images" / "pulid", folder / "images" / "pulid_again")
    assert len(questions_of(folder)) == 64
    edit(folder / "images" / "pulid_again", lambda r: dataclasses.replace(r, steps=2))
    with pytest.raises(UserError, match=r"two different images of pulid.*which differ in steps"):
        questions_of(folder)


@pytest.mark.parametrize("field", ["weights_sha256", "reference_sha256"])
def test_two_rivals_in_one_place_are_no_one_image(tmp_path: Path, made_up: Path, field: str) -> None:
    """Two checkpoints of one rival differ in nothing else that a manifest says."""
    folder = changed(tmp_path, made_up)
    shutil.copytree(folder / "images" / "pulid", folder / "images" / "pulid_again")
    photos = {
        s.identity: hashlib.sha256(s.reference.read_bytes()).hexdigest()
        for s in load_benchmark(folder / "benchmark").subjects
    }
    edit(
        folder / "images" / "pulid_again",
        lambda r: dataclasses.replace(r, **{field: photos[r.identity]}),  # of the weights any other digest would do
    )
    with pytest.raises(UserError, match=f"two different images of pulid.*which differ in {field}"):
        questions_of(folder)


def test_images_that_name_no_iterations_count_unless_the_checkpoints_are_there(tmp_path: Path, made_up: Path) -> None:
    """0 iterations: a method that trains nothing, or a program that does not say; no checkpoint is ever at 0."""
    folder = changed(tmp_path, made_up)
    edit(folder / "images" / "lora_aug", lambda r: dataclasses.replace(r, iterations=0, rank=0))
    assert len(questions_of(folder)) == 64
    assert "pulid" in pool_of(folder, checkpoints=CHECKPOINTS | {"pulid": 500}).methods
    edit(folder / "images" / "lora_aug", lambda r: dataclasses.replace(r, iterations=625 if r.seed == 0 else 0))
    pool = pool_of(folder)
    assert {seed for method, *_, seed in pool.files if method == "lora_aug"} == {0}
    assert pool.left_out["lora_aug"] == ["192 images of lora_aug at other iterations than checkpoints.lora_aug=625: 0"]


def test_what_was_left_out_is_told_where_a_method_is_missing(tmp_path: Path, made_up: Path) -> None:
    folder = changed(tmp_path, made_up)
    edit(folder / "images" / "lora_aug", lambda r: dataclasses.replace(r, iterations=250))
    edit(folder / "images" / "meta_lora", lambda r: dataclasses.replace(r, rank=4))
    with pytest.raises(UserError, match=r"no images of lora_aug.*288 images.*than checkpoints.lora_aug=625: 250"):
        questions_of(folder)
    with pytest.raises(UserError, match=r"no images of meta_lora.*288 images.*of other ranks than rank=1: 4"):
        questions_of(folder, of=design(models=("pulid", "meta_lora")))
    for method in METHODS[:3]:
        shutil.rmtree(folder / "images" / method)
    with pytest.raises(UserError, match=r"no images to build.*of other ranks than rank=1: 4") as caught:
        questions_of(folder)
    assert "\n" not in str(caught.value)


def test_a_manifest_cannot_name_files_outside_its_folder(tmp_path: Path, made_up: Path) -> None:
    folder = changed(tmp_path, made_up)
    edit(folder / "images" / "pulid", lambda r: dataclasses.replace(r, file="../lora_aug/" + r.file))
    with pytest.raises(UserError, match="outside its folder"):
        questions_of(folder)


@pytest.mark.parametrize("given", [[], ["nowhere"], ["."]])
def test_folders_without_images_are_refused(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"manifest\.jsonl"):
        find_folders([tmp_path / name for name in given])


def test_pictures_carry_pixels_and_nothing_else(tmp_path: Path) -> None:
    paint(tmp_path / "meta_lora.png", colour("x"), secret="meta_lora")
    assert b"meta_lora" in (tmp_path / "meta_lora.png").read_bytes()
    (shown,) = pictures.candidates([tmp_path / "meta_lora.png"], side=1024, quality=90)
    assert b"meta_lora" not in shown.data and not any(word in shown.data for word in (b"EXIF", b"XMP ", b"ICCP"))
    with Image.open(io.BytesIO(shown.data)) as image:
        assert image.format == "WEBP" and set(image.info) <= {"loop", "background", "timestamp", "duration"}
        assert image.convert("RGB").getpixel((20, 20)) == colour("x")  # small pictures are kept without loss


def test_pictures_of_a_question_have_one_size(tmp_path: Path) -> None:
    sizes = ((1024, 1024), (1016, 1016), (800, 600))
    for k, size in enumerate(sizes):
        paint(tmp_path / f"{k}.png", (10, 200, 30), size=size)
    shown = pictures.candidates([tmp_path / f"{k}.png" for k in range(3)], side=512, quality=90)
    assert {(p.width, p.height) for p in shown} == {(512, 384)}
    assert {Image.open(io.BytesIO(p.data)).size for p in shown} == {(512, 384)}


def test_an_unreadable_picture_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    with pytest.raises(UserError, match="is not an image"):
        pictures.candidates([tmp_path / "x.png"], side=512, quality=90)


def test_the_made_up_world_is_what_it_says(tmp_path: Path) -> None:
    folders = make_images(tmp_path / "i", make_benchmark(tmp_path / "b", people=2), methods=("pulid",), seeds=(0,))
    lines = [json.loads(line) for line in (folders[0] / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 2 + 2 * 4 and all((folders[0] / line["file"]).is_file() for line in lines)

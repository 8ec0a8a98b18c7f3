"""A benchmark on disk, checked, drawn by the README's ten lines and scored; what is missing or wrong is refused."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metalora.cli import main
from metalora.evaluation.score_table import read_scores
from metalora.miniworld.folders import Photo, write_folders
from metalora.miniworld.population import identity
from metalora.miniworld.shots import sample_shot

README = Path(__file__).parents[2] / "README.md"
FEW = ("protocol.frontal_prompts=2", "protocol.clip_prompts=2", "protocol.seeds=[0,1]")


@pytest.fixture(scope="module")
def meta_phd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small benchmark of rendered people in Meta-PHD's layout; everything that is made goes beside it."""
    folder = tmp_path_factory.mktemp("meta_phd")
    root, rng = folder / "photos", np.random.default_rng(0)
    folders, nouns = {}, {}
    for noun, index in (("woman", 0), ("woman", 1), ("man", 0), ("man", 1)):
        person = identity("validation", noun, index)
        nouns[person.key] = noun
        folders[root / "unsplash" / person.key] = [
            Photo(f"{k}.png", person, sample_shot(rng, fixed={"style": "photo", "scale": 0.8, "yaw": yaw}), 160, 160)
            for k, yaw in enumerate((0.0, -35.0, 20.0, 40.0))
        ]
    for noun in ("man", "woman"):
        folders[root / "ffhq" / noun] = [
            Photo("0.png", person, sample_shot(rng, fixed={"style": "photo", "scale": 0.8, "yaw": 0.0}), 160, 160)
            for person in [identity("validation", noun, 7)]
        ]
    write_folders(folders)
    (root / "identities.json").write_text(json.dumps(nouns))
    os.environ["METALORA_OUTPUTS"] = str(folder / "outputs")
    yield root
    del os.environ["METALORA_OUTPUTS"]


def benchmark(root: Path) -> list[str]:
    prompts = README.parent / "conf" / "prompts" / "mini_phd.yaml"
    return ["benchmark=meta_phd", f"benchmark.root={root}", f"benchmark.prompts={prompts}", "scorer=mini", *FEW]


@pytest.fixture(scope="module")
def drawn(meta_phd: Path) -> Path:
    """`mine`, made by the README's snippet as it stands there: its method copies the photo, its base is grey."""
    folder = meta_phd.parent
    main(["prepare", *benchmark(meta_phd), f"path={meta_phd}", f"out={folder / 'checked'}"])
    (snippet,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len([line for line in snippet.splitlines() if line and not line.startswith(("import", "from"))]) <= 10
    (folder / "mine.py").write_text(
        "from PIL import Image\n"
        "def draw(photo, prompt, seed):\n"
        "    picture = Image.open(photo) if photo else Image.new('RGB', (160, 160), (99, 99, 99 + seed))\n"
        "    return picture.convert('RGB').resize((128, 128)).rotate(seed)\n"
    )
    shutil.copy(folder / "checked" / "jobs.jsonl", folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(compile(snippet, "README.md", "exec"), {"__name__": "mine_run", "__builtins__": _importing(folder)})
    finally:
        os.chdir(before)
    return folder / "mine"


def _importing(folder: Path) -> dict:
    """Builtins whose import finds mine.py in a folder, and nothing is left on the path."""
    import builtins
    import importlib.util

    def find(name, *rest, **more):
        if name != "mine":
            return builtins.__import__(name, *rest, **more)
        spec = importlib.util.spec_from_file_location("mine", folder / "mine.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return vars(builtins) | {"__import__": find}


def test_the_check_names_what_is_wrong_and_the_references(
    meta_phd: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = json.loads((meta_phd.parent / "checked" / "curation.json").read_text())
    rules = {violation["rule"] for violation in told["violations"]}
    assert "counts" in rules and not rules & {"exactly one person", "4 to 10 photos per identity", "varied pose"}
    assert told["references"]["validation-man-0000"] == "0.png"
    assert abs(told["photos"]["validation-man-0000/0.png"]["yaw_estimate"]) < 20

    root = tmp_path / "broken"
    shutil.copytree(meta_phd, root)
    face = Image.open(root / "ffhq/man/0.png")
    two = Image.new("RGB", (320, 160))
    two.paste(face, (0, 0))
    two.paste(face, (160, 0))
    two.save(root / "ffhq/man/1.png")
    Image.new("RGB", (160, 160), (40, 60, 90)).save(root / "ffhq/woman/1.png")
    (root / "unsplash/validation-man-0000/2.png").unlink()
    (root / "unsplash/validation-man-0000/3.png").unlink()
    main(["prepare", *benchmark(root), f"path={root}", f"out={tmp_path / 'out'}"])
    said = capsys.readouterr().err
    assert "exactly one person: " + str(root / "ffhq/man/1.png") + ": 2 faces are found" in said
    assert "exactly one person: " + str(root / "ffhq/woman/1.png") + ": no face is found" in said
    assert "4 to 10 photos per identity: " + str(root / "unsplash/validation-man-0000") + ": 2 photos" in said
    (root / "unsplash/validation-man-0000/1.png").unlink()
    with pytest.raises(SystemExit):
        main(["prepare", *benchmark(root), f"path={root}", f"out={tmp_path / 'again'}"])
    assert "nothing to measure R-FaceSim with" in capsys.readouterr().err
    assert not (tmp_path / "again" / "jobs.jsonl").exists() and (tmp_path / "again" / "curation.json").is_file()


def test_the_jobs_are_every_image_that_is_asked_for(meta_phd: Path, drawn: Path) -> None:
    jobs = [json.loads(line) for line in (meta_phd.parent / "jobs.jsonl").read_text().splitlines()]
    people, base = [j for j in jobs if j["reference"]], [j for j in jobs if not j["reference"]]
    assert len(people) == 6 * 2 * 2 and {j["method"] for j in people} == {""}
    assert len(base) == 2 * (2 + 2) * 2 and {(j["method"], j["identity"]) for j in base} == {("base", "base")}
    assert len({j["file"] for j in jobs}) == len(jobs) and len({j["benchmark"] for j in jobs}) == 1
    assert all(Path(j["reference"]).name == "0.png" for j in people)


def test_the_readmes_ten_lines_are_scored(meta_phd: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = meta_phd.parent / "scored"
    main(["evaluate", f"images={drawn}", *benchmark(meta_phd), f"out={out}"])
    said = capsys.readouterr().err
    frame = read_scores([out / "scores.parquet"])
    mine = frame[frame["method"] == "mine"]
    assert len(mine) == 24 and set(frame["method"]) >= {"base", "photo_test", "photo_stranger"}
    assert mine[mine["part"] == "unsplash"]["face_sim"].mean() > 0.9  # it copies the photo
    assert mine[mine["part"] == "ffhq"]["clip_i"].notna().all() and mine["seed_diversity"].notna().all()
    summary = json.loads((out / "scores.json").read_text())
    assert {s["class"] for s in summary["standings"] if s["method"] == "mine"} == {"man", "woman", "both", "average"}
    assert "mine" in said and "Ceilings and floor" in said and "scores: " in said


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()


def changed(drawn: Path, to: Path, change) -> Path:
    """A copy of the images whose manifest lines went through `change`."""
    shutil.copytree(drawn, to)
    lines = [json.loads(line) for line in (drawn / "manifest.jsonl").read_text().splitlines()]
    (to / "manifest.jsonl").write_text("\n".join(json.dumps(line) for line in change(lines)))
    return to


def test_missing_and_doubled_cells_are_listed_and_refused(
    meta_phd: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(lines):
        copy = lines[5] | {"file": "copy.png"}
        shutil.copy(tmp_path / "cut" / lines[5]["file"], tmp_path / "cut" / "copy.png")
        return [line for k, line in enumerate(lines) if k not in (0, 1)] + [copy]

    folder = changed(drawn, tmp_path / "cut", change)
    words = ["evaluate", f"images={folder}", *benchmark(meta_phd), f"out={tmp_path / 'out'}"]
    *listed, last = refused(words, capsys)
    assert listed[0].startswith("missing: mine, validation-man-0000: frontal-01 seed 0 1")
    assert any(line.startswith("more than once: mine, ") for line in listed)
    assert "2 missing and 1 more than once" in last and "allow_missing" in last
    assert not (tmp_path / "out" / "scores.parquet").exists()
    main([*words, "allow_missing=true"])
    frame = read_scores([tmp_path / "out" / "scores.parquet"])
    assert (frame["method"] == "mine").sum() == 22  # 24 without two, and of the doubled cell the last


def test_a_class_alone_is_asked_for_by_name(
    meta_phd: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    women = changed(drawn, tmp_path / "women", lambda lines: [line for line in lines if line["class_noun"] == "woman"])
    words = ["evaluate", f"images={women}", *benchmark(meta_phd), f"out={tmp_path / 'out'}"]
    *listed, _ = refused(words, capsys)
    assert all("man" in line for line in listed)
    main([*words, "classes=woman"])
    assert set(read_scores([tmp_path / "out" / "scores.parquet"])["class_noun"]) == {"woman"}
    assert "classes" in refused([*words, "classes=cat"], capsys)[-1]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"benchmark": "meta_phd@000000000000"}, "another benchmark, or another version of it"),
        ({"reference_sha256": "0" * 64}, "another photo than the benchmark's reference"),
        ({"prompt": "something else"}, "other words than the benchmark's"),
        ({"size": [1024, 1024]}, "another size than its line"),
        ({"class_noun": "woman"}, "another class than the person"),
        ({"file": "nowhere.png"}, "an image is gone"),
        ({"seed": "0"}, "seed is '0' in line 1"),
    ],
)
def test_what_belongs_to_something_else_is_refused(
    meta_phd: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: dict, told: str
) -> None:
    def change(lines):
        first = next(line for line in lines if line["class_noun"] == "man")
        return [first | wrong] + [line for line in lines if line is not first]

    folder = changed(drawn, tmp_path / "wrong", change)
    out = refused(["evaluate", f"images={folder}", *benchmark(meta_phd), f"out={tmp_path / 'out'}"], capsys)
    assert told in out[-1]


def test_a_real_photo_without_a_face_is_told(
    meta_phd: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "faceless"
    shutil.copytree(meta_phd, root)
    Image.new("RGB", (160, 160), (40, 60, 90)).save(root / "unsplash/validation-man-0000/2.png")
    for k in (1, 2, 3):
        Image.new("RGB", (160, 160), (40, 60, 90 + k)).save(root / f"unsplash/validation-woman-0001/{k}.png")
    free = ("benchmark",)  # the photos are other ones on purpose
    folder = changed(
        drawn, tmp_path / "images", lambda lines: [{k: v for k, v in x.items() if k not in free} for x in lines]
    )
    main(["evaluate", f"images={folder}", *benchmark(root), f"out={tmp_path / 'out'}"])
    said = capsys.readouterr().err
    assert f"no face was found in the real photo {root / 'unsplash/validation-man-0000/2.png'}" in said
    assert "validation-woman-0001 has no other photo with a face: no R-FaceSim" in said
    frame = read_scores([tmp_path / "out" / "scores.parquet"])
    rows = frame.query("method == 'mine' and identity == 'validation-woman-0001'")
    assert rows["r_face_sim"].isna().all() and rows["face_sim"].notna().any()


def test_a_baseline_that_is_not_installed_is_skipped_with_what_it_needs(
    meta_phd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["baseline", *benchmark(meta_phd), f"out={tmp_path}"]
    main(words)
    said = capsys.readouterr().err
    assert "skipped pulid: the interpreter of its environment, baseline.python: no path was given" in said
    assert "https://github.com/ToTheBeginning/PuLID at 1aa2fc7df4" in said
    main([*words, "baseline=instantid_lightning", f"baseline.python={sys.executable}"])
    said = capsys.readouterr().err
    assert "skipped instantid_lightning: a checkout of https://github.com/instantX-research/InstantID, code" in said
    assert not (tmp_path / "manifest.json").exists()
    assert len((tmp_path / "jobs.jsonl").read_text().splitlines()) == 40

"""The list of images: old ones stay readable, others' may leave out what has a default, wrong ones are told."""

import json
from pathlib import Path

import pytest

from metalora.core.contracts import GeneratedImage
from metalora.core.errors import UserError
from metalora.core.manifest import inside, read_lines, read_manifest, write_manifest

FIRST_VERSION = (
    '{"file": "images/a/lora-r1-000250/frontal-01-0.png", "method": "lora", "identity": "a", "class_noun": "man", '
    '"prompt_id": "frontal-01", "prompt": "a photo of a man", "seed": 0, "rank": 1, "iterations": 250, "lora": "x", '
    '"lora_sha256": "e4ff", "base_model": "mini@170e", "steps": 10, "guidance": 3.5, "size": [64, 48]}'
)
"""A line as version 0.1.0 wrote it first."""
LEAST = {
    "file": "a.png",
    "method": "mine",
    "identity": "a",
    "prompt_id": "frontal-01",
    "seed": 3,
    "base_model": "sdxl",
    "steps": 30,
    "guidance": 5,
    "size": [1024, 1024],
}


def written(folder: Path, *lines: str | dict) -> Path:
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "manifest.jsonl").write_text("\n".join(text) + "\n")
    return folder


def test_a_line_of_the_first_version_is_read(tmp_path: Path) -> None:
    (image,) = read_manifest(written(tmp_path, FIRST_VERSION))
    assert (image.size, image.iterations, image.lora_sha256) == ((64, 48), 250, "e4ff")
    assert (image.reference, image.seconds, image.peak_memory_mb, image.benchmark) == ("", None, None, "")


def test_another_programs_line_may_be_short_and_may_say_more(tmp_path: Path) -> None:
    (image,) = read_manifest(written(tmp_path, LEAST | {"reference_sha256": "ab", "seconds": 3, "sampler": "euler"}))
    assert (image.class_noun, image.prompt, image.rank, image.lora) == ("", "", 0, "")
    assert (image.reference_sha256, image.seconds, image.guidance) == ("ab", 3, 5)


def test_what_is_written_is_read_back_and_costs_do_not_make_another_image(tmp_path: Path) -> None:
    image = GeneratedImage(**(LEAST | {"size": (8, 8), "seconds": 1.5, "peak_memory_mb": 20}))
    write_manifest(tmp_path / "manifest.jsonl", [image])
    (back,) = read_manifest(tmp_path)
    assert back == image and (back.seconds, back.peak_memory_mb) == (1.5, 20)
    assert back == GeneratedImage(**(LEAST | {"size": (8, 8)}))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"seed": "3"}, "seed is '3' in line 2"),
        ({"seed": True}, "seed is True"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"identity": None}, "identity is None"),
        ({"guidance": "high"}, "guidance is 'high'"),
        ({"size": 64}, "in line 2"),
        ({"size": [64]}, "size is [64], not height and width in line 2"),
        ({"size": [64, 64.5]}, "size is [64, 64.5], not height and width in line 2"),
        ({"guidance": float("nan")}, "guidance is nan in line 2"),
        ({"strength": float("inf")}, "strength is inf in line 2"),
        ({"size": [float("inf"), 8]}, "in line 2"),
    ],
)
def test_a_wrong_value_is_told_with_its_line(tmp_path: Path, wrong: dict, told: str) -> None:
    with pytest.raises(UserError, match="a line of the list of images cannot be read") as caught:
        read_manifest(written(tmp_path, LEAST, LEAST | wrong))
    assert told in str(caught.value) and str(tmp_path / "manifest.jsonl") in str(caught.value)
    assert "; expected an object with file, method, identity, prompt_id, seed, base_model, " in str(caught.value)
    assert str(caught.value).endswith("; key: images")


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    written(tmp_path, LEAST)
    path = tmp_path / "manifest.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [image.file for image in read_lines(tmp_path)] == ["a.png"]


def test_a_line_cut_anywhere_is_left_out_where_that_may_be(tmp_path: Path) -> None:
    whole = json.dumps(LEAST, ensure_ascii=False).encode() + b"\n"
    second = json.dumps(LEAST | {"file": "b.png", "identity": "Ren\u00e9e"}, ensure_ascii=False).encode()
    for cut in range(1, len(second)):  # also inside a character
        (tmp_path / "manifest.jsonl").write_bytes(whole + second[:cut])
        assert [image.file for image in read_lines(tmp_path, cut_allowed=True)] == ["a.png"]
        with pytest.raises(UserError, match="in line 2"):
            read_lines(tmp_path)
    (tmp_path / "manifest.jsonl").write_bytes(second[:-60] + b"\n" + whole)  # nobody was killed inside the first line
    with pytest.raises(UserError, match="in line 1"):
        read_lines(tmp_path, cut_allowed=True)


def test_a_name_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "other").symlink_to(tmp_path / "mine")
    assert inside(tmp_path / "mine", "images/../a.png").resolve() == tmp_path / "mine" / "a.png"
    assert inside(tmp_path / "other", "a.png").is_relative_to(tmp_path / "other")
    for file in ("../x.png", "/etc/x.png", "images/../../x.png"):
        with pytest.raises(UserError, match=r"names a file outside its folder; expected files in it; got .*x\.png"):
            inside(tmp_path / "mine", file)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    for name in LEAST:
        with pytest.raises(UserError, match=f"got no {name} in line 1"):
            read_manifest(written(tmp_path, {key: value for key, value in LEAST.items() if key != name}))
    with pytest.raises(UserError, match="got no seed and no size in line 1"):
        read_manifest(written(tmp_path, {key: value for key, value in LEAST.items() if key not in ("seed", "size")}))
    with pytest.raises(UserError, match="list instead of an object in line 1"):
        read_manifest(written(tmp_path, "[1]"))


def test_every_line_is_there_for_those_who_count_them(tmp_path: Path) -> None:
    folder = written(tmp_path, LEAST, LEAST | {"seed": 4}, LEAST | {"file": "b.png"})
    assert [image.seed for image in read_lines(folder)] == [3, 4, 3]
    assert [(image.file, image.seed) for image in read_manifest(folder)] == [("a.png", 4), ("b.png", 3)]

"""One photo, one person's folder, a folder of people; and everything that can be wrong with them."""

import json
from pathlib import Path

import pytest

from metalora.core.errors import UserError
from metalora.people.folder import PersonFolder, check_unique, scan_people


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def test_one_photo_is_one_person_named_after_it(tmp_path: Path) -> None:
    touch(tmp_path, "me.jpg")
    scan = scan_people(tmp_path / "me.jpg")
    assert scan.people == (PersonFolder("me", None, (tmp_path / "me.jpg",)),)


def test_a_folder_of_photos_is_one_person_sorted_by_name(tmp_path: Path) -> None:
    touch(tmp_path / "anna", "b.png", "a.JPG", "c.webp")
    scan = scan_people(tmp_path / "anna")
    assert scan.people == (
        PersonFolder("anna", None, tuple(tmp_path / "anna" / name for name in ("a.JPG", "b.png", "c.webp"))),
    )


def test_a_folder_of_people_with_class_nouns(tmp_path: Path) -> None:
    touch(tmp_path, "ben/1.jpg", "anna/2.jpg", "anna/1.jpg", "kim/1.jpg")
    (tmp_path / "identities.json").write_text(json.dumps({"anna": "woman", "ben": "man"}))
    scan = scan_people(tmp_path)
    assert [(p.identity, p.class_noun, [x.name for x in p.photos]) for p in scan.people] == [
        ("anna", "woman", ["1.jpg", "2.jpg"]),
        ("ben", "man", ["1.jpg"]),
        ("kim", None, ["1.jpg"]),
    ]
    assert scan.skipped == ()


def test_what_is_not_used_is_listed(tmp_path: Path) -> None:
    touch(
        tmp_path,
        ".DS_Store",
        "notes.txt",
        "manifest.json",
        "anna/1.jpg",
        "anna/.1.jpg.swp",
        "anna/clip.mp4",
        "anna/raw/1.jpg",
    )
    skipped = {(item.path.relative_to(tmp_path).as_posix(), item.reason) for item in scan_people(tmp_path).skipped}
    assert skipped == {
        (".DS_Store", "hidden"),
        ("notes.txt", "not a photo (.txt)"),
        ("anna/.1.jpg.swp", "hidden"),
        ("anna/clip.mp4", "not a photo (.mp4)"),
        ("anna/raw", "a folder inside a person's folder"),
    }


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["anna/1.jpg", "ben/notes.txt"], r"the person ben has no photos; .*got 1 other files, first notes.txt"),
        (["anna/1.jpg", "1.jpg"], "mixes photos and folders"),
        (["notes.txt"], "there are no photos"),
    ],
)
def test_a_bad_folder_is_one_clear_line(tmp_path: Path, files: list[str], words: str) -> None:
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=words) as caught:
        scan_people(tmp_path, key="people.root")
    assert caught.value.key == "people.root"
    assert "\n" not in str(caught.value)


def test_names_that_differ_only_in_case_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"same name; .*got Anna and anna"):
        check_unique(["Anna", "Ben", "anna"], where=tmp_path, key="image")


def test_an_empty_person_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are no photos in .*got an empty folder"):
        scan_people(tmp_path)
    (tmp_path / "anna").mkdir()
    with pytest.raises(UserError, match=r"the person anna has no photos.*got an empty folder"):
        scan_people(tmp_path)
    with pytest.raises(UserError, match="there is no"):
        scan_people(tmp_path / "nobody")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot read"),
        ("[1]", "got list"),
        ('{"anna": 3}', "got anna: 3"),
        ('{"anna": " "}', "got anna"),
        ('{"zoe": "woman"}', "no folder.*got zoe"),
    ],
)
def test_a_bad_identities_file_is_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    touch(tmp_path, "anna/1.jpg")
    (tmp_path / "identities.json").write_text(text)
    with pytest.raises(UserError, match=words):
        scan_people(tmp_path)

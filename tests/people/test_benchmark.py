"""Meta-PHD's layout and its prompts."""

import json
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from metalora.core.errors import UserError
from metalora.miniworld.vocabulary import EXPRESSIONS, FRAMINGS, LIGHTS, POSES, SCENES, SHIRTS, STYLES
from metalora.people.benchmark import load_benchmark, load_prompts

PROMPTS = Path(__file__).parents[2] / "conf" / "prompts"


def make_benchmark(root: Path, *, nouns_at: str = ".") -> Path:
    for name in ("unsplash/anna/b.jpg", "unsplash/anna/a.jpg", "unsplash/anna/c.jpg", "unsplash/ben/1.jpg"):
        touch(root / name)
    for name in ("unsplash/ben/2.jpg", "ffhq/man/00007.png", "ffhq/woman/00007.png", "ffhq/woman/00042.png"):
        touch(root / name)
    (root / nouns_at / "identities.json").write_text(json.dumps({"anna": "woman", "ben": "man"}))
    return root


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")


@pytest.mark.parametrize("nouns_at", [".", "unsplash"])
def test_both_parts_are_read_and_the_reference_is_the_first_by_name(tmp_path: Path, nouns_at: str) -> None:
    subjects = load_benchmark(make_benchmark(tmp_path, nouns_at=nouns_at)).subjects
    assert [
        (s.part, s.identity, s.class_noun, s.reference.name, [p.name for p in s.test_photos]) for s in subjects
    ] == [
        ("unsplash", "anna", "woman", "a.jpg", ["b.jpg", "c.jpg"]),
        ("unsplash", "ben", "man", "1.jpg", ["2.jpg"]),
        ("ffhq", "ffhq-man-00007", "man", "00007.png", []),
        ("ffhq", "ffhq-woman-00007", "woman", "00007.png", []),
        ("ffhq", "ffhq-woman-00042", "woman", "00042.png", []),
    ]


def test_counts_that_differ_from_the_papers_are_told_not_refused(tmp_path: Path) -> None:
    assert load_benchmark(make_benchmark(tmp_path)).notes == (
        "unsplash people: 2, Meta-PHD has 16",
        "unsplash photos: 5, Meta-PHD has 98",
        "ffhq man: 1, Meta-PHD has 30",
        "ffhq woman: 2, Meta-PHD has 30",
    )


def test_a_benchmark_of_the_papers_size_has_nothing_to_tell(tmp_path: Path) -> None:
    sizes = [4, 10] + [6] * 14
    for person, size in enumerate(sizes):
        for photo in range(size):
            touch(tmp_path / f"unsplash/p{person:02d}/{photo}.jpg")
    for noun, photo in product(("man", "woman"), range(30)):
        touch(tmp_path / f"ffhq/{noun}/{photo:05d}.png")
    (tmp_path / "identities.json").write_text(json.dumps({f"p{person:02d}": "woman" for person in range(16)}))
    benchmark = load_benchmark(tmp_path)
    assert sum(sizes) == 98 and benchmark.notes == () and benchmark.skipped == ()
    assert Counter((s.part, s.class_noun) for s in benchmark.subjects) == {
        ("unsplash", "woman"): 16,
        ("ffhq", "man"): 30,
        ("ffhq", "woman"): 30,
    }


def test_one_part_alone_is_a_benchmark_too(tmp_path: Path) -> None:
    touch(tmp_path / "ffhq/man/1.png")
    assert [s.identity for s in load_benchmark(tmp_path).subjects] == ["ffhq-man-1"]


def test_what_is_not_used_is_listed(tmp_path: Path) -> None:
    root = make_benchmark(tmp_path)
    for name in ("unsplash/stray.jpg", "unsplash/LICENSE", "ffhq/stray.png", "ffhq/child/1.png", "ffhq/man/notes.md"):
        touch(root / name)
    skipped = {item.path.relative_to(root).as_posix() for item in load_benchmark(root).skipped}
    assert skipped == {"unsplash/stray.jpg", "unsplash/LICENSE", "ffhq/stray.png", "ffhq/child", "ffhq/man/notes.md"}


def test_a_bad_benchmark_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no benchmark"):
        load_benchmark(tmp_path / "nowhere")
    touch(tmp_path / "empty" / "readme.md")
    with pytest.raises(UserError, match=r"nobody in the benchmark .*got readme\.md; key: benchmark\.root"):
        load_benchmark(tmp_path / "empty")
    root = make_benchmark(tmp_path / "one")
    touch(root / "unsplash/cleo/1.jpg")
    with pytest.raises(UserError, match=r"person cleo has one photo; .*got 1\.jpg"):
        load_benchmark(root)
    touch(root / "unsplash/cleo/2.jpg")
    with pytest.raises(UserError, match=r"person cleo has no class noun; .*got no entry"):
        load_benchmark(root)
    (root / "identities.json").write_text(json.dumps({"anna": "woman", "ben": "man", "cleo": "cat"}))
    with pytest.raises(UserError, match=r"person cleo has no class noun; .*got cat"):
        load_benchmark(root)
    (root / "unsplash/beth").mkdir()
    with pytest.raises(UserError, match="person beth has no photos"):
        load_benchmark(root)


def test_the_papers_prompts_are_there_and_say_what_is_reconstructed() -> None:
    prompts = load_prompts(PROMPTS / "meta_phd.yaml")
    for noun, pronoun in (("man", "his"), ("woman", "her")):
        frontal, clip = prompts.of("frontal", noun), prompts.of("clip", noun)
        assert len(frontal) == 9 and all(prompt.reconstructed for prompt in frontal)  # the tenth is lost
        assert len(clip) == 20
        assert len(prompts.of("recontextualized", noun)) == len(prompts.of("stylized", noun)) == 10
        assert not any(prompt.reconstructed for prompt in prompts.of("recontextualized", noun))
        assert sum(prompt.reconstructed for prompt in prompts.of("stylized", noun)) == (9 if noun == "man" else 10)
        for prompt in frontal + clip:
            assert re.search(rf"\b{noun}\b", prompt.text) and "{" not in prompt.text
        assert f"{pronoun} face clearly visible" in frontal[1].text
    assert len(prompts.ids("clip")) == 40 and len(prompts.ids("frontal")) == 9
    assert prompts.ids("clip") == prompts.ids("recontextualized") | prompts.ids("stylized")


def test_the_mini_worlds_prompts_are_written_in_its_grammar() -> None:
    def one_of(words: dict[str, str]) -> str:
        return "|".join(re.escape(phrase) for phrase in words.values() if phrase)

    framing = f"(?:(?:{one_of(FRAMINGS)}) )?"
    style = "|".join(re.escape(phrase).replace(r"a\ ", rf"a\ {framing}", 1) for phrase in STYLES.values())
    grammar = re.compile(
        rf"(?P<style>{style}) of a (?:man|woman)(?: (?:{one_of(EXPRESSIONS)}))?(?: (?:{one_of(SHIRTS)}))?"
        rf"(?: (?P<scene>{one_of(SCENES)}))?(?:, (?:{one_of(LIGHTS)}))?(?:, (?P<pose>{one_of(POSES)}))?"
    )
    prompts = load_prompts(PROMPTS / "mini_phd.yaml")
    for noun in ("man", "woman"):
        by_kind = {kind: prompts.of(kind, noun) for kind in ("frontal", "recontextualized", "stylized")}
        for kind, chosen in by_kind.items():
            assert len({prompt.text for prompt in chosen}) == 10, kind
            for prompt in chosen:
                match = grammar.fullmatch(prompt.text)
                assert match, prompt.text
                assert len(prompt.text.replace(",", "").split()) <= 20
                assert len(prompt.text.replace(",", " ,").split()) <= 24
                assert match["style"].endswith("photo") == (kind != "stylized")
                if kind == "frontal":
                    assert match["pose"] == POSES["front"]
        assert {grammar.fullmatch(prompt.text)["scene"] for prompt in by_kind["frontal"]} == set(SCENES.values())  # type: ignore[index]
        styles = {grammar.fullmatch(prompt.text)["style"] for prompt in by_kind["stylized"]}  # type: ignore[index]
        assert styles == set(STYLES.values()) - {"a photo"}
        assert [prompt.kind for prompt in prompts.of("clip", noun)] == ["recontextualized", "stylized"] * 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prompts: [", "cannot use"),
        ("- 1", "cannot use"),
        ("prompts: []", "an empty list"),
        ("prompts: [{id: a, kind: frontal}]", "KeyError: 'text'"),
        ("prompts: [{id: a, kind: sideways, text: x}]", "kind sideways"),
        ("prompts: [{id: a, kind: frontal, text: 'a {name}'}]", "KeyError: 'name'"),
        ("prompts: [{id: a, kind: frontal, text: x, noun: man}]", "unknown entry noun"),
        ("prompts: [{id: a, kind: frontal, text: '{noun}'}, {id: a, kind: frontal, text: 'a {noun}'}]", "a twice"),
        (
            "prompts: [{id: a, kind: frontal, text: a person on a beach}]",
            "no class in the prompt 'a person on a beach'",
        ),
        ("prompts: [{id: a, kind: frontal, class_noun: man, text: a mane}]", "no man in the prompt 'a mane'"),
        ("prompts: [{id: a, kind: frontal, class_noun: cat, text: a cat}]", "class_noun cat"),
    ],
)
def test_a_bad_prompt_file_is_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "prompts.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        load_prompts(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    with pytest.raises(UserError, match="cannot read the prompts"):
        load_prompts(tmp_path / "missing.yaml")

"""The report's folder: complete in itself, drawn from whatever is there, saying what its numbers were measured on."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from made_up import make_scores
from PIL import Image

from metalora.core.errors import UserError
from metalora.miniworld.quality import WEIGHTS
from metalora.reporting import tables
from metalora.reporting.grids import TILE, Grid, Row, Tile, compose
from metalora.reporting.report import write_report
from metalora.reporting.world import write_world_page
from metalora.tasks.report import report as report_task

SETTING = {
    "world": "made-up <numbers>",
    "seconds": {"generate": 75.0, "evaluate": 3.0},
    "facts": {"command": "make it"},
}


def report(folder, *, out="report"):
    return write_report(
        folder / out, scores=sorted(folder.glob("*.parquet")), summary_path=folder / "summary.json", **SETTING
    )


class Page(HTMLParser):
    """Collects what a page refers to and what stands in it."""

    def __init__(self, path):
        super().__init__()
        self.folder, self.links, self.tags, self.text, self.open = path.parent, [], [], [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    make_scores(folder, ranks=(1, 4), iterations=(375, 625), seeds=(0, 1), people=2, clip_people=2, prompts=2)
    return folder, report(folder)


def test_the_page_is_complete_in_itself(full):
    folder, made = full
    page = Page(made.index)
    assert page.open == []
    assert "script" not in page.tags and "link" not in page.tags
    assert page.links and all((made.index.parent / link).is_file() for link in page.links)
    assert not re.search(r"https?://|url\(|@import", made.index.read_text())
    text = " ".join("".join(page.text).split())
    assert made.headline in text
    assert "measured on made-up <numbers>" in text and "Measured: made-up <numbers>" in text
    assert (folder / "summary.json").is_file()
    names = {path.name for path in made.index.parent.rglob("*.*")}
    for figure in ("tradeoff", "iterations", "ranks", "facesim"):
        assert {f"{figure}.svg", f"{figure}.png"} <= names
    grids = {"people", "identity_woman", "identity_man", "prompts_woman", "progress_man", "seeds_woman"}
    assert {f"{name}.png" for name in grids} <= names
    assert "rank 1, 2, 8, 16" not in text and "LoRA: rank 1" in text  # what the paper ran and this study did not


def test_the_papers_numbers_stand_apart(full):
    text = " ".join("".join(Page(full[1].index).text).split())
    assert "77.16" in text and "another world" in text
    assert "The two tables above were measured in different worlds" in text


def test_drawing_again_changes_nothing(full):
    folder, made = full
    before = {path: path.read_bytes() for path in made.index.parent.rglob("*.*") if path.suffix in (".html", ".svg")}
    report(folder)
    assert len(before) == 5
    for path, content in before.items():
        assert path.read_bytes() == content


def test_the_terminal_gets_the_table(full):
    lines = full[1].text.splitlines()
    assert lines[0] == "Measured: made-up <numbers>"
    assert [line.split()[0] for line in lines[3:7]] == ["untouched", "LoRA", "LoRA+aug", "Meta-LoRA"]
    assert len({len(line) for line in lines[1:7]}) == 1


@pytest.mark.parametrize(
    "present",
    [
        {"methods": ()},
        {"methods": ("lora",), "iterations": (250,)},
        {"methods": ("meta_lora",), "iterations": (375,), "clip_people": 0},
        {"methods": ("lora_aug",), "iterations": (625,), "people": 0},
    ],
)
def test_partial_results_are_reported(tmp_path, present):
    make_scores(tmp_path, **({"people": 1, "clip_people": 1, "prompts": 1} | present))
    made = report(tmp_path)
    page = Page(made.index)
    assert all((made.index.parent / link).is_file() for link in page.links)
    assert "cannot be said yet" in made.headline
    assert "nan" not in "".join(page.text).lower()


def test_a_report_wants_scores(tmp_path):
    with pytest.raises(UserError, match="there are no scores"):
        report(tmp_path)


def test_several_tables_are_one_study(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    size = {"people": 1, "clip_people": 1, "prompts": 1, "iterations": (375, 625)}
    paths = [make_scores(one, methods=("lora_aug",), **size), make_scores(two, methods=("meta_lora",), **size)]
    made = write_report(tmp_path / "out", scores=paths, summary_path=tmp_path / "summary.json", **SETTING)
    both = [c for c in made.summary["curves"] if c["class"] == "both"]
    assert [c["method"] for c in both] == ["base", "lora_aug", "lora_aug", "meta_lora", "meta_lora"]
    assert both[0]["images"] == 2 * 2  # the base's rows stand in both tables and count once
    assert made.summary["steps_to_match"]["first_checkpoint"] == 375


def test_the_page_about_the_world_says_what_was_measured(tmp_path):
    path = write_world_page(tmp_path / "report")
    page = Page(path)
    assert not page.open
    assert {"world.jpg", "index.html"} <= set(page.links)
    assert Image.open(path.parent / "world.jpg").width > 1000
    for row in json.loads((WEIGHTS / "quality.json").read_text()):
        assert row["name"] in page.text
        assert f"{row['value']:.3f}" in page.text
    make_scores(tmp_path, people=1, clip_people=1, prompts=1, iterations=(375, 625))
    scores = sorted(tmp_path.glob("*.parquet"))
    summary = tmp_path / "summary.json"
    made = write_report(path.parent, scores=scores, summary_path=summary, about_world=path.name, **SETTING)
    assert path.name in Page(made.index).links


def test_a_class_that_is_ahead_is_reported_alone(tmp_path):
    size = {"people": 1, "clip_people": 1, "prompts": 1, "iterations": (375, 625)}
    scores = pd.read_parquet(make_scores(tmp_path, **size))
    behind = (scores["class_noun"] == "woman") & ~scores["method"].str.startswith(("base", "photo"))
    scores.loc[~behind].to_parquet(tmp_path / "scores.parquet")
    made = report(tmp_path)
    assert [c["method"] for c in made.summary["curves"] if c["class"] == "both"] == ["base"]
    assert {c["method"] for c in made.summary["curves"] if c["class"] == "man"} > {"meta_lora"}
    assert "not run" in made.text and "has not been run for every class" in made.headline


def test_a_grid_shows_its_pictures_and_leaves_gaps_pale(tmp_path):
    Image.new("RGB", (64, 64), (200, 10, 10)).save(tmp_path / "red.png")
    Image.new("RGB", (30, 60), (10, 10, 200)).save(tmp_path / "blue.png")
    tiles = (Tile(tmp_path / "red.png", "42"), Tile(None), Tile(tmp_path / "gone.png"))
    row = Row("a very long identity name that has no end", "#d55e00", tiles)
    photos = Row("photos", "#222222", (Tile(tmp_path / "blue.png"), Tile(None)))
    sheet = np.asarray(compose(Grid("g", "t", ("a prompt " * 30, "b", "c"), (row,), photos=photos)))
    red = (sheet == (200, 10, 10)).all(axis=-1)
    assert red.sum() == TILE * TILE
    assert (sheet == (10, 10, 200)).all(axis=-1).sum() == TILE * TILE // 2
    assert (sheet == (245, 245, 245)).all(axis=-1).sum() == 2 * TILE * TILE
    blue = (sheet == (10, 10, 200)).all(axis=-1)
    assert blue.any(axis=1).nonzero()[0].max() < red.any(axis=1).nonzero()[0].min()


def test_numbers_of_another_base_are_not_called_the_mini_worlds(tmp_path):
    """Images of another program beside a mini base, reported as `metalora report` does."""
    table = tmp_path / "evaluate" / "a"
    make_scores(table, people=1, clip_people=1, prompts=1, iterations=(375,), methods=("lora_aug",))
    scores = pd.read_parquet(table / "scores.parquet")
    scores.loc[scores["method"] == "lora_aug", ["method", "base_model"]] = "mine", "SDXL"
    scores.to_parquet(table / "scores.parquet")
    config = {"config": {"study": "S"}, "parents": {}, "seconds": 1.0, "peak_memory_mb": 1}
    (table / "manifest.json").write_text(json.dumps(config))
    headline = {"target": "lora_aug", "target_rank": 1, "target_iterations": 625, "method": "mine"}
    made = report_task(tmp_path, study="S", headline=headline, facts={})
    world = "SDXL and the mini world: synthetic people, tiny models"
    assert made.summary["world"] == world and made.text.startswith(f"Measured: {world}\n")
    assert f"measured on {world}" in " ".join("".join(Page(made.index).text).split())
    assert made.headline.startswith("Whether mine reaches the R-FaceSim of LoRA+aug at 625 iterations")
    for key in ("target", "method"):
        with pytest.raises(UserError, match=rf"no such method; expected .*, mine; got foo; key: headline\.{key}"):
            report_task(tmp_path, study="S", headline=headline | {key: "foo"}, facts={})


def test_scores_print_like_the_papers():
    assert tables.percent(0.77163) == "77.2" and tables.percent(float("nan")) == tables.NONE

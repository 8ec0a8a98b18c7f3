"""The report: one folder with index.html, figures and image grids, and summary.json beside or inside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metalora.core.atomic import write_bytes, write_json
from metalora.evaluation.curves import CellKey
from metalora.evaluation.score_table import read_scores
from metalora.reporting import look, tables
from metalora.reporting.facesim import draw_facesim
from metalora.reporting.grids import draw_grids
from metalora.reporting.iterations import draw_iterations, draw_ranks
from metalora.reporting.study import TARGET, Study, paper_reference
from metalora.reporting.summary import check_headline, headline, summarize
from metalora.reporting.tradeoff import draw_tradeoff


@dataclass(frozen=True)
class Report:
    """What a report came to: the page, the summary's values, the sentence, and the tables for the terminal."""

    index: Path
    summary: dict[str, Any]
    headline: str
    text: str


def write_report(
    out: Path,
    *,
    scores: Sequence[Path],
    summary_path: Path,
    world: str,
    seconds: Mapping[str, float],
    facts: Mapping[str, str],
    target: CellKey = TARGET,
    method: str = "meta_lora",
    about_world: str = "",
) -> Report:
    """Write the whole report from scores alone; cells that are not there yet are left out, so call it again any time.

    Args:
        out: the report's folder.
        scores: scores.parquet files; rows that several hold count once.
        summary_path: where summary.json goes.
        world: what was measured on, in words; stands beside every number.
        seconds: wall seconds by stage, in the order to show them.
        facts: how it was run (command, learning rate, seed, hardware), shown as it is.
        target: the cell whose R-FaceSim is to be matched.
        method: the method that is to match it.
        about_world: a page beside index.html about the world, for a link.

    Raises:
        UserError: no scores, unreadable ones, or a headline about a method that neither they nor the report know.
    """
    study = Study(read_scores(scores), world=world, seconds=seconds, facts=facts, target=target, method=method)
    check_headline(target=target.method, method=method, scored={cell.key.method for cell in study.cells})
    summary = summarize(study)
    sentence = headline(summary)
    write_json(summary_path, summary)
    write_bytes(out / "index.html", _page(study, sentence, folder=out, about_world=about_world).encode())
    shown = [tables.comparison(study), tables.steps(study)]
    text = "\n\n".join(tables.as_text(table) for table in shown if table.rows)
    return Report(out / "index.html", summary, sentence, text)


def _page(study: Study, sentence: str, *, folder: Path, about_world: str) -> str:
    import jinja2

    figures = folder / "figures"
    drawn = {
        "tradeoff": draw_tradeoff(study, folder=figures),
        "iterations": draw_iterations(study, folder=figures),
        "ranks": draw_ranks(study, folder=figures),
        "facesim": draw_facesim(study, folder=figures),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("metalora.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("index.html").render(
        study=study,
        headline=sentence,
        about_world=about_world,
        colours=look.COLOURS,
        figures={name: _source(picture, folder) for name, picture in drawn.items() if picture is not None},
        grids=[(title, _source(picture, folder)) for picture, title in draw_grids(study, folder=folder / "grids")],
        comparison=tables.comparison(study),
        papers=tables.papers(),
        differences=tables.differences(study),
        steps=tables.steps(study),
        every_cell=tables.every_cell(study),
        times=tables.times(study),
        bounds=_bounds(study),
        counts=study.counts,
        paper=paper_reference(),
        missing=_missing(study),
    )


def _source(picture: look.Picture, folder: Path) -> dict[str, Any]:
    """Names relative to the page, and the size that keeps the page from jumping while it loads."""
    from PIL import Image

    with Image.open(picture.png) as image:
        width, height = image.size
    best = picture.svg or picture.png
    return {
        "src": best.relative_to(folder).as_posix(),
        "png": picture.png.relative_to(folder).as_posix(),
        "width": width,
        "height": height,
    }


def _bounds(study: Study) -> list[tuple[str, str, str, str, str]]:
    rows = []
    for class_noun in reversed(study.classes):
        found = study.bounds[class_noun]
        if found is not None:
            scores = (tables.with_interval(x) for x in (found.test, found.reference, found.stranger))
            rows.append(
                (look.CLASSES.get(class_noun, class_noun), *scores, f"{found.photos - found.missed}/{found.photos}")
            )
    return rows


def _missing(study: Study) -> list[str]:
    """What of the paper's grid has not been run."""
    grid = paper_reference()["grid"]
    run = {cell.key for cell in study.cells if cell.class_noun == study.overall}
    lacking = []
    for method in ("lora", "lora_aug", "meta_lora"):
        ranks = [rank for rank in grid["ranks"] if not all(CellKey(method, rank, n) in run for n in grid["iterations"])]
        if ranks:
            lacking.append(f"{look.label(method)}: rank {', '.join(str(rank) for rank in ranks)}")
    return lacking

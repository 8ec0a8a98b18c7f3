"""The page about the mini world beside a report: rendered against generated people, and how good its models are."""

import json
import shutil
from pathlib import Path

from metalora.core.atomic import atomic_path, write_bytes
from metalora.miniworld.quality import WEIGHTS
from metalora.miniworld.showcase import FILE
from metalora.reporting import look
from metalora.reporting.tables import Table

PAGE = "world.html"


def write_world_page(folder: Path, *, weights: Path = WEIGHTS) -> Path:
    """Write FOLDER/world.html and the picture it shows, both from what was measured of the weights."""
    import jinja2

    with atomic_path(folder / FILE) as temporary:
        shutil.copyfile(weights / FILE, temporary)
    rows = json.loads((weights / "quality.json").read_text())
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("metalora.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template(PAGE).render(
        colours=look.COLOURS, picture=FILE, quality=_table(rows), trained=_trained(weights)
    )
    write_bytes(folder / PAGE, page.encode())
    return folder / PAGE


def _table(rows: list[dict[str, object]]) -> Table:
    texts = []
    for row in rows:
        target = "" if row["target"] is None else f"{row['target']:.2f}"
        verdict = "" if row["target"] is None else "reached" if row["reached"] else "missed"
        texts.append((str(row["name"]), f"{row['value']:.3f}", target, verdict))
    return Table("Measured on people whom no training saw", ("what", "value", "target", ""), tuple(texts))


def _trained(weights: Path) -> Table:
    told = json.loads((weights / "provenance.json").read_text())["trained"]
    rows = tuple((name, f"{one['steps']:,}", f"{one['samples_seen']:,}") for name, one in told.items())
    return Table("What each model has seen", ("model", "steps", "pictures"), rows)

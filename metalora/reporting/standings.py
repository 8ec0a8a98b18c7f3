"""The table that `metalora evaluate` prints, from what `evaluation/breakdown.py` says: one row per method and class."""

from collections.abc import Mapping
from typing import Any

from metalora.reporting.look import LABELS
from metalora.reporting.tables import NONE, Table

_HEADER = (
    "method", "people", "CLIP-T", "scenes", "styles", "CLIP-I", "FaceSim", "R-FaceSim", "found only",
    "copy-paste", "faces found %", "seeds differ", "R-FaceSim, 2nd",
)  # fmt: skip
_COLUMNS = (
    "clip_t",
    "clip_t_recontextualized",
    "clip_t_stylized",
    "clip_i",
    "face_sim",
    "r_face_sim",
    "r_face_sim_detected",
    "copy_paste",
    "face_found",
    "seed_diversity",
    "r_face_sim_second",
)
_WITH_INTERVAL = ("clip_t", "r_face_sim", "copy_paste")


def tables_of(summary: Mapping[str, Any]) -> list[Table]:
    """Scores times 100 with 95% intervals over people, what bounds R-FaceSim, and paired tests: of different methods,
    each at its last rank and iteration.

    Args:
        summary: what `as_json` returns.
    """
    rows = [
        (_name(standing), f"{standing['class']} ({standing['people']})", *(_cell(standing, c) for c in _COLUMNS))
        for standing in summary["standings"]
    ]
    tables = [Table("Scores times 100, faces not found as 0; 95% intervals over people", _HEADER, tuple(rows))]
    bounds = [
        (
            noun,
            *(_number(found[name]) for name in ("ceiling_reference_photo", "ceiling_test_photos", "floor_strangers")),
            str(found["photos_without_a_found_face"]),
        )
        for noun, found in summary["bounds"].items()
        if found is not None
    ]
    if bounds:
        header = ("R-FaceSim of real photos", "the reference", "each other photo", "strangers", "no face found in")
        tables.append(Table("Ceilings and floor", header, tuple(bounds)))
    last = {key[0]: key for key in sorted(_key(standing) for standing in summary["standings"])}.values()
    tests = [
        (
            f"{_name(test['a'])} minus {_name(test['b'])}",
            test["measure"],
            _number(test["a_minus_b"], interval=True, sign="+"),
            f"{test['p']:.3f}" if test["p"] >= 0.001 else "<0.001",
            f"{' and '.join(test['classes'])} ({test['people']})",
        )
        for test in summary["paired_tests"]
        if test["a"]["method"] != test["b"]["method"] and all(_key(test[side]) in last for side in ("a", "b"))
    ]
    if tests:
        header = ("paired over people", "score", "difference", "p", "people")
        tables.append(Table("Differences in points, 95% intervals, p of sign flips", header, tuple(tests)))
    return tables


def _name(key: Mapping[str, Any]) -> str:
    label = str(LABELS.get(key["method"], key["method"]))
    if key.get("base"):
        return f"{label}, {key['base']}"
    rank = f" r{key['rank']}" if key["rank"] else ""
    return f"{label}{rank} {key['iterations']}" if key["iterations"] else label


def _key(key: Mapping[str, Any]) -> tuple[str, int, int]:
    return key["method"], key["rank"], key["iterations"]


def _cell(standing: Mapping[str, Any], column: str) -> str:
    if standing["method"] == "base" and column == "clip_i":
        return NONE  # of an image with itself
    return _number(standing[column], interval=column in _WITH_INTERVAL)


def _number(found: Mapping[str, float] | None, *, interval: bool = False, sign: str = "") -> str:
    if found is None:
        return NONE
    mean = f"{100 * found['mean']:{sign}.1f}"
    return f"{mean} [{100 * found['low']:{sign}.1f}, {100 * found['high']:{sign}.1f}]" if interval else mean

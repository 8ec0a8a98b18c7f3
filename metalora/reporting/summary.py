"""summary.json and the one sentence that says what came out."""

import math
from collections.abc import Collection
from typing import Any

from metalora.core.errors import UserError
from metalora.core.metrics import Interval, StepsToMatch
from metalora.evaluation.curves import METRICS, Cell
from metalora.reporting.look import LABELS, label
from metalora.reporting.study import Study


def summarize(study: Study) -> dict[str, Any]:
    """The summary as plain JSON values; numbers that could not be measured are null.

    `curves`: one entry per class and cell that has been run, scores as cosines, misses counted as 0, ci95 by metric;
    "both" only for cells that every class has.
    `steps_to_match`: iterations a method needs for the target's R-FaceSim at no lower CLIP-T (`plain`: at any CLIP-T).
    `seconds`: wall seconds by stage. Beside these: what the numbers were measured on, bounds, and the scores over
    images with a face alone.
    """
    return {
        "world": study.world,
        "curves": [_curve(cell) for cell in study.cells],
        "steps_to_match": _steps(study),
        "seconds": {stage: round(seconds, 2) for stage, seconds in study.seconds.items()},
        "bounds": {
            class_noun: {
                "reference_photo": _number(bounds.reference.mean),
                "test_photos": _number(bounds.test.mean),
                "stranger": _number(bounds.stranger.mean),
                "photos": bounds.photos,
                "photos_without_a_found_face": bounds.missed,
            }
            for class_noun, bounds in study.bounds.items()
            if bounds is not None
        },
        "detected_only": [_name(cell) | _detected(cell) for cell in study.cells],
        "counts": study.counts,
        "facts": dict(study.facts),
    }


def _name(cell: Cell) -> dict[str, Any]:
    return {
        "method": cell.key.method,
        "class": cell.class_noun,
        "rank": cell.key.rank,
        "iterations": cell.key.iterations,
    }


def _curve(cell: Cell) -> dict[str, Any]:
    means = {metric: _number(cell.scores[metric].mean) for metric in METRICS}
    return _name(cell) | means | {"ci95": {m: _interval(cell.scores[m]) for m in METRICS}, "images": cell.images}


def _detected(cell: Cell) -> dict[str, Any]:
    return {metric: _number(cell.scores[f"{metric}_detected"].mean) for metric in ("r_face_sim", "face_sim")}


def _steps(study: Study) -> dict[str, Any]:
    target = study.target
    name = f"{target.method} rank {target.rank} at {target.iterations}"
    match = study.match()
    found: dict[str, Any] = {
        "target": name,
        "method": study.method,
        "class": study.overall,
        study.method: None,
        "ratio": None,
    }
    found["by_class"] = {
        class_noun: _match(of_class, method=study.method)
        for class_noun in study.classes
        if class_noun != study.overall and (of_class := study.match(class_noun=class_noun)) is not None
    }
    if match is None:
        who = " for every class" if found["by_class"] else ""
        return found | {"reason": f"the target or the curve has not been run{who}"}
    best = [cell.scores["r_face_sim"].mean for cell in _curve_of(study)]
    found |= _match(match, method=study.method)
    found["best_r_face_sim"] = _number(max(best))
    found["last_checkpoint"] = max(cell.key.iterations for cell in _curve_of(study))
    found["others"] = {
        method: _match(other, method=method)
        for method in sorted({cell.key.method for cell in study.cells} - {study.method, "base"})
        if (other := study.match(method)) is not None
    }
    return found


def _curve_of(study: Study) -> list[Cell]:
    return study.curve(study.method, rank=study.target.rank, class_noun=study.overall)


def _match(match: StepsToMatch, *, method: str) -> dict[str, Any]:
    def ratio(n: float) -> float | None:
        return _number(match.target_iterations / n)  # never reached: 0 times fewer

    low, high = match.matched_interval
    plain_low, plain_high = match.plain_interval
    return {
        method: _number(match.matched),
        "ratio": _number(match.ratio),
        "ci95": [_number(low), _number(high)],
        "ratio_ci95": [ratio(high), ratio(low)],
        "share_of_resamples": _number(match.matched_share),
        "first_checkpoint": match.first_checkpoint,
        "target_iterations": match.target_iterations,
        "target_r_face_sim": _number(match.target_r_face_sim),
        "target_clip_t": _number(match.target_clip_t),
        "plain": {
            method: _number(match.plain),
            "ratio": _number(match.plain_ratio),
            "ci95": [_number(plain_low), _number(plain_high)],
            "clip_t": _number(match.clip_t_at_plain),
            "no_lower_clip_t": match.no_lower_clip_t,
        },
    }


def _interval(interval: Interval) -> list[float | None]:
    return [_number(interval.low), _number(interval.high)]


def _number(value: float | None) -> float | None:
    return round(float(value), 5) if value is not None and math.isfinite(value) else None


def check_headline(*, target: str, method: str, scored: Collection[str] = ()) -> None:
    """Refuse a headline about a method that nobody knows; one that has not been run yet only leaves it open.

    Args:
        target: the method whose R-FaceSim is to be matched.
        method: the method that is to match it.
        scored: the methods that there are scores of, other programs' among them.

    Raises:
        UserError: neither a report nor the scores know one of them.
    """
    known = list(dict.fromkeys([*LABELS, *sorted(scored)]))
    for key, name in (("headline.target", target), ("headline.method", method)):
        if name not in known:
            raise UserError("no such method", expected=", ".join(known), got=str(name), key=key)


def headline(summary: dict[str, Any]) -> str:
    """What came out, in one sentence that is true whichever way it came out."""
    steps = summary["steps_to_match"]
    method = steps["method"]
    target_method, target_iterations = steps["target"].rsplit(" rank ", 1)[0], steps["target"].split(" ")[-1]
    who, goal = label(method), f"the R-FaceSim of {label(target_method)} at {target_iterations} iterations"
    if "reason" in steps:
        return f"Whether {who} reaches {goal} cannot be said yet: {steps['reason']}."
    first, n, plain = steps["first_checkpoint"], steps[method], steps["plain"]
    if n is not None:
        reach = f"{who} reaches {goal}, at no lower CLIP-T, at"
        if n <= first:
            ratio = f"at least {steps['ratio']:.2f} times fewer"
            return f"{reach} {first} iterations, the first checkpoint, or before: {ratio}."
        if steps["ratio"] <= 1:
            return f"{reach} {n:.0f} iterations: not fewer ({steps['ratio']:.2f} times)."
        low, high = steps["ratio_ci95"]
        interval = f"95% interval over people: {f'{low:.2f}' if low else 'never'} to {high:.2f}"
        return f"{reach} {n:.0f} iterations: {steps['ratio']:.2f} times fewer ({interval})."
    last = steps["last_checkpoint"]
    if plain[method] is not None:
        where = f"at {plain[method]:.0f} iterations" if plain[method] > first else f"at {first} iterations or before"
        lower = 100 * (steps["target_clip_t"] - plain["clip_t"])
        return (
            f"{who} reaches {goal} {where} ({plain['ratio']:.2f} times fewer), "
            f"but at a CLIP-T {lower:.2f} points lower; "
            f"at no lower CLIP-T it does not reach it within {last} iterations."
        )
    return (
        f"{who} does not reach {goal} within {last} iterations: "
        f"{100 * steps['best_r_face_sim']:.1f} against {100 * steps['target_r_face_sim']:.1f}."
    )

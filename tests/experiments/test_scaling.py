"""The prediction for many processes stands on the step that was measured, and is exact for one."""

import json

import pytest

from experiments.speed.scaling import STEPS, WARM_UP, Load, load, measured, message, papers, predict


def test_one_process_takes_what_was_measured() -> None:
    steps = json.loads(STEPS.read_text())["steps"]
    warm_up, rest = (steps[name]["median_seconds"] for name in ("stage1_warmup_batch_4", "stage1_batch_4"))
    alone = predict(measured(), Load(every=4, warm_up=4), batch=4, sending=0.0)
    assert alone.times == pytest.approx(1.0)
    assert alone.seconds == pytest.approx(WARM_UP * warm_up + (1 - WARM_UP) * rest)


def test_the_papers_time_stands_beside_it_under_its_own_name() -> None:
    assert 4 * papers().seconds == 13.0 and "paper" in papers().whose and "measured here" in measured().whose
    assert papers().meta_down == 298_844_160  # r1 = 128 on FLUX.1-dev's 494 layers
    assert message(papers(), gpus=2, link=1.0) == pytest.approx(4 * 298_844_160 / 1e9)


def test_two_processes_are_at_most_twice_as_fast() -> None:
    found = load(gpus=2, batch=4, people=8, balance=1)
    assert 2 <= found.warm_up <= found.every <= 4
    assert 1 < predict(measured(), found, batch=4, sending=0.0).times <= 2

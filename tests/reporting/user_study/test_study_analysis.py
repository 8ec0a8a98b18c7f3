"""The analysis recovers what was put in, its intervals cover, its tests are exact; what was simulated says so."""

import csv
import itertools
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_images import METHODS, PAPER, study

from metalora.core.errors import UserError
from metalora.reporting.study import paper_reference
from metalora.reporting.user_study import answering
from metalora.reporting.user_study.analysis import Analysis, Choices, Comparison, Share, analyse, read_answers
from metalora.reporting.user_study.results import write_results
from metalora.reporting.user_study.significance import holm, sign_flip_p
from metalora.reporting.user_study.simulate import draw_choices, simulate
from metalora.reporting.user_study.store import Store

reference = cache(paper_reference)


def papers_shares(table: int, column: str) -> np.ndarray:
    rows = {row["method"]: row[column] for row in reference()["user_study"][f"table_{table}"]["rows"]}
    models = METHODS if table == 1 else ("pulid", "meta_lora")
    return np.array([rows[model] for model in models]) / 100


def share(found: Analysis, model: str, column: str) -> Share:
    return next(s for s in found.shares if (s.model, s.column) == (model, column))


def comparison(found: Analysis, b: str, column: str) -> Comparison:
    return next(c for c in found.comparisons if (c.b, c.column) == (b, column))


def part_1(shares: Callable[[str], np.ndarray], *, seed: int, participants: int = 25, spread: float = 20) -> Analysis:
    rng = np.random.default_rng(seed)
    choices = {
        c: Choices(METHODS, draw_choices(shares(c), participants=participants, questions=16, spread=spread, rng=rng))
        for c in ("multi", "single")
    }
    found = analyse(choices, part=1, ours="meta_lora", resamples=600)
    assert found is not None
    return found


def test_by_hand() -> None:
    """Two people, two questions each: shares, their average, differences."""
    models = ("lora_aug", "meta_lora")
    choices = {
        "multi": Choices(models, np.array([[0, 1], [1, 1]])),
        "single": Choices(models, np.array([[0, 0], [0, 1]])),
    }
    found = analyse(choices, part=1, ours="meta_lora", resamples=200)
    assert found is not None
    assert [share(found, "meta_lora", c).percent for c in ("multi", "single", "overall")] == [75, 25, 50]
    assert [share(found, "meta_lora", c).answers for c in ("multi", "single", "overall")] == [3, 1, 4]
    assert comparison(found, "lora_aug", "multi").points == 50
    assert comparison(found, "lora_aug", "multi").p == 1.0  # 0 and 1: only one can flip
    assert [c.points for c in found.shifts] == [50]  # lora_aug in single minus multi
    assert analyse(choices, part=2, ours="meta_lora") is None


@pytest.mark.parametrize("seed", range(20))
def test_the_sign_flip_p_is_that_of_trying_all_flips(seed: int) -> None:
    rng = np.random.default_rng(seed)
    differences = [Fraction(int(n), int(rng.choice([1, 3, 16]))) for n in rng.integers(-4, 6, size=rng.integers(1, 11))]
    seen = abs(sum(differences))
    flips = list(itertools.product((1, -1), repeat=len(differences)))
    slow = sum(abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= seen for signs in flips) / len(flips)
    assert sign_flip_p(differences) == pytest.approx(slow, abs=1e-12)


def test_known_p_values() -> None:
    assert sign_flip_p([1] * 10) == pytest.approx(2 / 2**10)
    assert sign_flip_p([0, 0]) == sign_flip_p([]) == sign_flip_p([3, -3]) == 1.0
    assert sign_flip_p([2] * 25) == pytest.approx(2 / 2**25)  # far more flips than could be tried
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.6]) == [1.0, 1.0]


def test_the_papers_shares_are_recovered() -> None:
    """With many participants every share is found to a point, and the paper's ranking is significant."""
    found = part_1(lambda c: papers_shares(1, c), seed=0, participants=2000)
    for column in ("multi", "single"):
        for model, wanted in zip(METHODS, papers_shares(1, column), strict=True):
            assert share(found, model, column).percent == pytest.approx(100 * wanted, abs=1.0)
    assert share(found, "meta_lora", "overall").percent == pytest.approx(30.5, abs=1.0)
    assert comparison(found, "lora_aug", "multi").points < 0 < comparison(found, "lora_aug", "single").points
    assert all(comparison(found, model, "overall").p_holm < 0.05 for model in METHODS[:3])
    (instantid,) = [c for c in found.shifts if c.column == "instantid_lightning"]
    assert instantid.points == pytest.approx(21.75, abs=1.5) and instantid.p_holm < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("spread", [5, 50])
def test_intervals_cover(spread: float) -> None:
    """Over 200 simulated studies of 25 participants, 95% intervals hold the true value about that often."""
    inside: dict[str, list[bool]] = {"multi": [], "single": [], "overall": [], "difference": []}
    for seed in range(200):
        found = part_1(lambda c: papers_shares(1, c), seed=seed, spread=spread)
        truth = {c: papers_shares(1, c) for c in ("multi", "single")}
        truth["overall"] = (truth["multi"] + truth["single"]) / 2
        for column, shares in truth.items():
            for model, wanted in zip(METHODS, 100 * shares, strict=True):
                one = share(found, model, column)
                inside[column].append(one.low <= wanted <= one.high)
            one = comparison(found, "lora_aug", column)
            inside["difference"].append(one.low <= 100 * (shares[4] - shares[3]) <= one.high)
    for name, hits in inside.items():
        assert 0.92 < np.mean(hits) < 0.98, (name, np.mean(hits))


@pytest.mark.slow
def test_false_findings_are_rare_and_people_not_answers_are_what_counts() -> None:
    """When participants differ much, answers of one person are no independent evidence; the exact test knows."""
    equal = np.full(5, 0.2)
    any_false, naive = [], []
    for seed in range(300):
        found = part_1(lambda c: equal, seed=seed, spread=2)
        any_false.append(min(c.p_holm for c in found.comparisons) < 0.05)
        one = comparison(found, "pulid", "overall")
        answers = 2 * 16 * 25
        naive.append(abs(one.points) / 100 > 1.96 * (0.4 / answers) ** 0.5)
    assert np.mean(any_false) < 0.08
    assert np.mean(naive) > 0.15  # what counting answers as independent would have claimed


def test_few_participants_widen_the_interval_and_one_has_none() -> None:
    few, many = (part_1(lambda c: np.full(5, 0.2), seed=1, participants=n) for n in (4, 100))
    width = [x.high - x.low for x in (share(f, "pulid", "multi") for f in (few, many))]
    assert width[0] > 2.5 * width[1]
    alone = share(part_1(lambda c: np.full(5, 0.2), seed=1, participants=1), "pulid", "multi")
    assert np.isnan(alone.low) and np.isnan(alone.high)


def test_drawing_questions_again_too_widens_the_interval() -> None:
    """Where everybody agrees about every question, other people change nothing, other questions do."""
    agreed = np.tile(np.arange(16) % 2, (25, 1))
    found = analyse({"recontextualized": Choices(("pulid", "meta_lora"), agreed)}, part=2, ours="meta_lora")
    assert found is not None
    one = share(found, "meta_lora", "recontextualized")
    assert (one.low, one.high) == pytest.approx((50, 50))  # equal but for the order of a sum
    assert one.low_both < 30 and one.high_both > 70


@pytest.fixture(scope="module")
def simulated(made_up: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = study(tmp_path_factory.mktemp("simulated") / "study.sqlite", made_up, counts=PAPER)
    tables = {"multi": 1, "single": 1, "recontextualized": 2, "stylized": 2}
    preferences = {
        category: dict(
            zip(METHODS if table == 1 else ("pulid", "meta_lora"), papers_shares(table, category), strict=True)
        )
        for category, table in tables.items()
    }
    simulate(store, participants=10, preferences=preferences, spread=50, seed=0)
    return store


def results(store: Store, out: Path, *, kind: str, ours: str = "meta_lora") -> tuple[str, tuple[Path, ...]]:
    answers = read_answers(store, kind=kind)
    analyses = [found for part in (1, 2) if (found := analyse(answers.choices, part=part, ours=ours))]
    written = write_results(out, answers=answers, analyses=analyses, world="made up", facts={"seed": 0})
    return written.text, written.files


def test_simulated_answers_go_the_whole_way_and_are_labelled_everywhere(simulated: Store, tmp_path: Path) -> None:
    text, files = results(simulated, tmp_path, kind="simulated")
    assert text.startswith("SIMULATED")
    assert text.count("[SIMULATED]") == 6  # every table of ours; the paper's are not
    page, shares, comparisons = files
    assert all(path.name.startswith("simulated_") for path in files)
    assert "SIMULATED: nobody was asked" in page.read_text()
    read = [list(csv.DictReader(path.open())) for path in (shares, comparisons)]
    assert all(row["answered_by"] == "simulated" for rows in read for row in rows)
    assert len(read[0]) == 5 * 3 + 2 * 3
    assert len(read[1]) == 4 * 3 + 5 + 3 + 1
    by_name = {(row["table"], row["model"], row["column"]): row for row in read[0]}
    assert by_name["1", "meta_lora", "overall"]["paper_percent"] == "30.500"
    for table, column in (("1", "multi"), ("2", "stylized")):
        found = [row for (t, _, c), row in by_name.items() if (t, c) == (table, column)]
        assert sum(int(row["answers"]) for row in found) == 160
        for row in found:
            wanted = dict(
                zip(METHODS if table == "1" else ("pulid", "meta_lora"), papers_shares(int(table), column), strict=True)
            )
            assert float(row["percent"]) == pytest.approx(100 * wanted[row["model"]], abs=15)


def test_a_model_of_one_part_is_tested_there_alone(simulated: Store, tmp_path: Path) -> None:
    """Part 2 keeps its shares, has no differences, and says so, where it is read and where it is kept."""
    text, files = results(simulated, tmp_path, kind="simulated", ours="lora_aug")
    said = "Table 2 has no differences: LoRA+aug was not in it."
    assert said in text and said in files[0].read_text() and "Table 1 has no" not in text
    shares, comparisons = (list(csv.DictReader(path.open())) for path in files[1:])
    assert {row["table"] for row in shares} == {"1", "2"}
    assert {(row["table"], row["a"]) for row in comparisons if row["kind"] == "difference"} == {("1", "lora_aug")}


def test_the_same_answers_give_the_same_files(simulated: Store, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in results(simulated, tmp_path / "1", kind="simulated")[1]]
    assert first == [path.read_bytes() for path in results(simulated, tmp_path / "2", kind="simulated")[1]]


def test_simulated_answers_never_count_as_people_s(simulated: Store) -> None:
    with pytest.raises(UserError, match=r"nobody \(person\).*10 simulated") as caught:
        read_answers(simulated, kind="person")
    assert "\n" not in str(caught.value)


def test_only_finished_participants_count(made_up: Path, tmp_path: Path) -> None:
    store = study(tmp_path / "study.sqlite", made_up)
    for count, invitation in zip((8, 5, 0), store.invite(3), strict=True):
        person = answering.find(store, invitation.token)
        assert person is not None
        answering.consent(store, person)
        person = answering.find(store, invitation.token)
        assert person is not None
        for position in range(count):
            answering.answer(store, person, position=position, place=0, seconds=1.0)
    simulate(store, participants=2, preferences=None, spread=20, seed=0)
    answers = read_answers(store, kind="person")
    assert (answers.participants, answers.unfinished) == (1, 1)
    assert {c: one.chosen_PQ.shape for c, one in answers.choices.items()} == dict.fromkeys(PAPER, (1, 2))
    text, files = results(store, tmp_path, kind="person")
    assert "1 participants who answered every question; 1 who did not finish are left out" in text
    assert "SIMULATED" not in text and [path.name for path in files] == ["study.md", "shares.csv", "comparisons.csv"]


@pytest.mark.parametrize(
    ("preferences", "told"),
    [
        ({"meta_lora": "much"}, "no number"),
        ({"meta_lora": -1}, "say nothing"),
        ({"pulid": 0, "meta_lora": 0}, "say nothing"),
        ({"instantid_lightning": 1}, "say nothing about recontextualized"),
        ({"pulid": 1, "lora_aug": 2, "metaloar": 90}, "no such model in the study; .*; got metaloar"),
        ({"stylized": {"lora_aug": 1}}, "no such model in stylized; expected pulid, meta_lora; got lora_aug"),
        ({"painted": {"meta_lora": 1}}, "no such category"),
        (0.5, "preferences go by model"),
    ],
)
def test_bad_preferences_are_one_line(simulated: Store, preferences: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        simulate(simulated, participants=1, preferences=preferences, spread=20, seed=0)


@pytest.mark.parametrize("spread", ["much", 0, float("inf")])
def test_a_bad_spread_is_one_line(simulated: Store, spread: Any) -> None:
    with pytest.raises(UserError, match="spread above 0"):
        simulate(simulated, participants=1, preferences=None, spread=spread, seed=0)


def test_an_unknown_model_to_test_against_is_one_line(simulated: Store) -> None:
    with pytest.raises(UserError, match="was not in the study"):
        analyse(read_answers(simulated, kind="simulated").choices, part=1, ours="dreambooth")

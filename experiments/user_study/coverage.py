"""How often a study's 95% intervals hold the truth, and how often its tests find what is not there, by simulation.

    python -m experiments.user_study.coverage [STUDIES]

Simulated participants choose by the shares of the paper's Table 1; `spread` says how alike they are (1000: very).
"""

import sys

import numpy as np

from metalora.reporting.study import paper_reference
from metalora.reporting.user_study.analysis import Analysis, Choices, analyse
from metalora.reporting.user_study.simulate import draw_choices

PARTICIPANTS, QUESTIONS, SPREADS = 25, 16, (2, 5, 20, 1000)


def study(shares: dict[str, np.ndarray], *, models: tuple[str, ...], spread: float, seed: int) -> Analysis:
    """One simulated study's analysis, as `metalora study analyse` does it."""
    rng = np.random.default_rng(seed)
    choices = {
        column: Choices(
            models, draw_choices(of_M, participants=PARTICIPANTS, questions=QUESTIONS, spread=spread, rng=rng)
        )
        for column, of_M in shares.items()
    }
    found = analyse(choices, part=1, ours=models[-1], resamples=2000)
    assert found is not None
    return found


def main(studies: int) -> None:
    """Print one row per spread."""
    rows = paper_reference()["user_study"]["table_1"]["rows"]
    models = tuple(row["method"] for row in rows)
    truth = {column: np.array([row[column] for row in rows]) / 100 for column in ("multi", "single")}
    alike = {column: np.full(len(rows), 1 / len(rows)) for column in truth}
    overall = (truth["multi"] + truth["single"]) / 2
    print(f"{studies} studies of {PARTICIPANTS} participants and 2 x {QUESTIONS} questions each")
    print("spread  all shares  rarest share  differences  false findings  as if answers were independent")
    for spread in SPREADS:
        shares, rarest, differences, false, naive = [], [], [], [], []
        for seed in range(studies):
            found = study(truth, models=models, spread=spread, seed=seed)
            for one in found.shares:
                wanted = 100 * (truth | {"overall": overall})[one.column][models.index(one.model)]
                shares.append(one.low <= wanted <= one.high)
                if (one.model, one.column) == ("instantid_lightning", "multi"):
                    rarest.append(shares[-1])
            for c in found.comparisons:
                of_M = (truth | {"overall": overall})[c.column]
                differences.append(c.low <= 100 * (of_M[models.index(c.a)] - of_M[models.index(c.b)]) <= c.high)
            found = study(alike, models=models, spread=spread, seed=seed)
            false.append(min(c.p_holm for c in found.comparisons) < 0.05)
            answers = {"overall": 2 * QUESTIONS * PARTICIPANTS}
            naive.append(
                any(  # z tests of single answers, Bonferroni over the same 12 comparisons
                    abs(c.points) / 100 > 2.87 * (0.4 / answers.get(c.column, QUESTIONS * PARTICIPANTS)) ** 0.5
                    for c in found.comparisons
                )
            )
        held = [np.mean(x) for x in (shares, rarest, differences, false, naive)]
        print("{:>6}  {:>10.3f}  {:>12.3f}  {:>11.3f}  {:>14.3f}  {:>30.3f}".format(spread, *held))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 500)

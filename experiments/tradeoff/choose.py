"""Learning rates from validation people: one for all methods, and each method's own.

The rate that serves all is LoRA + aug's best, as in the paper; best is the highest R-FaceSim at 625 iterations at a
CLIP-T at most 0.03 below the untouched base's.
"""

from pathlib import Path

from experiments.tradeoff import store
from experiments.tradeoff.protocol import BUDGET, RATES, TARGET
from metalora.core.errors import UserError
from metalora.evaluation.curves import RateChoice, choose_learning_rate

CHOOSING = "lora_aug"


def choice(method: str, results: Path = store.RESULTS) -> RateChoice:
    """A method's rates on validation people and the chosen one.

    Raises:
        UserError: a rate has not been run, or none keeps CLIP-T.
    """
    tables = {rate: store.read_run(f"rate-{rate:g}", results=results) for rate in RATES}
    return choose_learning_rate(tables, method=method, iterations=TARGET, budget=BUDGET)


def common_rate(results: Path = store.RESULTS) -> float:
    """The rate of all methods."""
    return choice(CHOOSING, results).chosen.rate


def own_rate(method: str, results: Path = store.RESULTS) -> float:
    """A method's own rate; the lowest one where none keeps CLIP-T, as it costs least of it."""
    try:
        return choice(method, results).chosen.rate
    except UserError as error:
        if "keeps CLIP-T" not in str(error):
            raise
        return min(RATES)

"""Paired tests over participants, exact, and Holm's correction: no assumption on how answers are distributed.

Shape legend: P participants.
"""

from collections.abc import Sequence
from fractions import Fraction
from math import lcm

import numpy as np


def sign_flip_p(differences_P: Sequence[Fraction | int]) -> float:
    """Two-sided exact p of the paired sign-flip (permutation) test.

    Under the null hypothesis each participant's difference is as likely as its negative. All 2^P flips are counted by
    convolution, so the p is exact for any number of participants; 1 when every difference is 0.
    """
    scale = lcm(*(Fraction(d).denominator for d in differences_P)) if differences_P else 1
    whole = [int(d * scale) for d in differences_P]
    steps = [abs(d) for d in whole if d]
    if not steps:
        return 1.0
    reach = sum(steps)
    chance = np.zeros(2 * reach + 1)
    chance[reach] = 1.0
    for step in steps:
        flipped = np.zeros_like(chance)  # nothing falls over the ends: they are 0 till the last
        flipped[step:] += chance[:-step]
        flipped[:-step] += chance[step:]
        chance = flipped / 2
    distance = abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chance[distance >= abs(sum(whole))].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction, in the order given: bounds the chance of any false finding among them."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for place, k in enumerate(sorted(range(len(p_values)), key=lambda k: p_values[k])):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[k]))
        adjusted[k] = highest
    return adjusted

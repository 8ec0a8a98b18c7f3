"""What the trade-off study runs, written down before it ran: people, seeds, rates, and every run by its name.

README.md says why. A run is one `metalora reproduce`; priors are made before, one Stage 1 for each class and seed.
"""

from dataclasses import dataclass
from typing import Literal

VALIDATION, TEST = "mini_validation", "mini_test"
CLASSES = ("man", "woman")
SEEDS = (0, 1, 2)
"""Each has a Stage 1, a Stage 2 and noise of its own."""
RATES = (5e-4, 1e-3, 2e-3, 5e-3, 1e-2)
SLOW = 1e-3
"""A second rate, for LoRA + aug and Meta-LoRA, where a LoRA learns slowly."""
CHECKPOINTS = (250, 375, 500, 625)
TARGET = 625
"""LoRA + aug's iterations whose R-FaceSim is to be matched."""
BUDGET = 0.03
"""How far CLIP-T may lie below the untouched base's, as a cosine, for a rate to be chosen."""
FRONTAL_PROMPTS, CLIP_PROMPTS = 5, 6
METHODS = ("lora", "lora_aug", "meta_lora")

Rate = Literal["common", "slow", "own"] | float


@dataclass(frozen=True)
class Prior:
    """How a Stage 1 is made. People: how many it sees in the same number of iterations and samples."""

    meta_rank: int = 32
    people: int = 100
    steps: int = 1000
    random: bool = False
    """Meta-Downs of the learned ones' norms that have learned nothing."""
    spectrum: bool = False
    """The same with the learned ones' singular values, each class with a draw of its own."""

    @property
    def words(self) -> tuple[str, ...]:
        """What `metalora meta-train` is told; one training serves all lengths of it."""
        uses = 10 * 100 // self.people
        return (
            f"meta_rank={self.meta_rank}",
            "stage1.q_total=1000",
            "stage1.prior_every=250",
            f"stage1.uses_per_example={uses}",
        )


@dataclass(frozen=True)
class Run:
    """One `metalora reproduce`."""

    name: str
    methods: tuple[str, ...]
    rate: Rate
    seed: int = 0
    rank: int = 1
    benchmark: str = TEST
    classes: tuple[str, ...] = CLASSES
    iterations: tuple[int, ...] = CHECKPOINTS
    prior: Prior = Prior()

    @property
    def cells(self) -> int:
        """Cells of a method and a class: how many cores it can use."""
        return len(self.methods) * len(self.classes)


def _runs() -> tuple[Run, ...]:
    rates = [
        Run(f"rate-{rate:g}", METHODS, rate, benchmark=VALIDATION, iterations=(250, 375, TARGET)) for rate in RATES
    ]
    main = [Run(f"rank01-s{s}", METHODS, "common", seed=s) for s in SEEDS]
    slow = [Run(f"slow-s{s}", ("lora_aug", "meta_lora"), "slow", seed=s) for s in SEEDS]
    random = [Run(f"random-s{s}", ("meta_lora",), "common", seed=s, prior=Prior(random=True)) for s in SEEDS]
    high = [Run(f"rank16-s{s}", ("lora_aug", "meta_lora"), "common", seed=s, rank=16) for s in SEEDS]
    middle = [Run("rank04-s0", ("lora_aug", "meta_lora"), "common", rank=4)]
    own = [Run(f"own-{method}-s{s}", (method,), "own", seed=s) for method in METHODS for s in SEEDS]
    people = [
        Run(f"people{n:03d}-s{s}", ("meta_lora",), "common", seed=s, prior=Prior(people=n), iterations=(250, 375, 625))
        for n in (50, 200)
        for s in SEEDS
    ]
    widths = [
        Run(
            f"r1-{rank:03d}-{steps:04d}-s{s}",
            ("meta_lora",),
            "common",
            seed=s,
            classes=("woman",),
            iterations=(250, 375),
            prior=Prior(meta_rank=rank, steps=steps),
        )
        for s in SEEDS[:2]
        for steps in (250, 500, 1000)
        for rank in (8, 16, 32, 64)
    ]
    spectrum = [Run(f"spectrum-s{s}", ("meta_lora",), "common", seed=s, prior=Prior(spectrum=True)) for s in SEEDS]
    return (*rates, *main, *slow, *random, *high, *own, *people, *middle, *widths, *spectrum)


RUNS = _runs()
"""In the order they are done: a study that was cut has answered its first questions."""

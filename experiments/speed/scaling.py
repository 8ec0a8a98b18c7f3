"""What Stage 1 in many processes should gain. A prediction on paper, from step times that were measured.

    python -m experiments.speed.scaling      # prints the tables of experiments/speed/scaling.md

Two times of a step: the one that `experiments.speed.steps` measured here and recorded (a scaled model, a CPU), and the
paper's (FLUX.1-dev, an RTX A6000). Which samples meet in a batch, and whose they are, comes from the very sampler and
shares of the training; everything else is arithmetic on the assumptions below.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from experiments.speed.steps import make_transformer
from metalora.adapters.inject import layer_shapes
from metalora.backbones.flux import block_linears
from metalora.core.contracts import TrainingImage, TrainingPerson
from metalora.core.schedule import BucketPlan
from metalora.people.sampler import IdentityBucketSampler
from metalora.people.share import Share

STEPS = Path(__file__).parent / "results" / "steps-width_1024-cpu-2026-11-21.json"
WARM_UP = 0.4
"""q_warmup / q_bucket: this part of the iterations sends nothing."""
LOG_EVERY = 10
"""In warm-up the processes wait for each other only here."""
BACKWARD = 2 / 3
"""Part of a step that could hide a message, if sending began as soon as the first gradients are there."""
LINKS = {
    "NVLink (one machine)": 200.0,
    "PCIe 4.0 x16 (one machine)": 20.0,
    "400 Gb Ethernet": 40.0,
    "100 Gb Ethernet": 10.0,
}
"""GB/s in one direction that a ring gets through its slowest link: assumed, about 0.8 of the nominal 50 and 12.5 for
Ethernet, below half of the nominal 450 for NVLink 4, 0.6 of 32 for PCIe. In a ring over machines each network card
carries what each GPU's link carries, so the card is the slowest link."""
PHOTOS, USES, SHAPES = 20, 10, 5


@dataclass(frozen=True)
class Step:
    """What a process needs for a sample, and what it sends."""

    seconds: float
    """Per sample, where Meta-Down learns; assumed proportional to the samples of a process."""
    warm_up: float
    """Per sample in warm-up."""
    meta_down: int
    """Meta-Down's parameters; its gradient is float32."""
    whose: str


def measured() -> Step:
    """From the recorded steps: Stage 1 at batch 4 with 50 people in the bank."""
    told = json.loads(STEPS.read_text())
    shape, rank, batch = told["settings"]["shape"], told["settings"]["meta_rank"], told["settings"]["cohort"]
    steps = told["steps"]
    return Step(
        seconds=steps[f"stage1_batch_{batch}"]["median_seconds"] / batch,
        warm_up=steps[f"stage1_warmup_batch_{batch}"]["median_seconds"] / batch,
        meta_down=parameters(shape, rank=rank),
        whose=f"measured here: {shape}, {told['settings']['pixels']} pixels, {told['threads']} threads of a CPU",
    )


def papers() -> Step:
    """The paper's 13 s per iteration of batch 4 on one RTX A6000, in warm-up too."""
    return Step(13.0 / 4, 13.0 / 4, parameters("flux_dev", rank=128), "the paper's figure: FLUX.1-dev, RTX A6000")


def parameters(shape: str, *, rank: int) -> int:
    """Of Meta-Down on every layer of the blocks."""
    with torch.device("meta"):
        layers = layer_shapes(block_linears(make_transformer(shape)))
    return sum(rank * layer.in_features for layer in layers.values())


@dataclass(frozen=True)
class Load:
    """Samples of the busiest process, averaged over iterations."""

    every: float
    """Where all wait for each other in every iteration."""
    warm_up: float
    """Where they wait once in LOG_EVERY, per iteration."""


def load(*, gpus: int, batch: int, people: int, balance: int) -> Load:
    """From the first two visits of a bucket of `people`, as the training would take them."""
    everybody = [
        TrainingPerson(
            f"p{k}",
            "",
            tuple(TrainingImage(torch.empty(2, 0), (64, 64 + n % SHAPES), f"{n}") for n in range(PHOTOS)),
        )
        for k in range(people)
    ]
    visit = round(people * PHOTOS * USES / batch)
    plan = BucketPlan(
        {one.identity: PHOTOS for one in everybody},
        q_bucket=visit,
        q_warmup=int(WARM_UP * visit),
        q_total=2 * visit,
        batch_size=batch,
        uses_per_example=USES,
        seed=0,
    )
    sampler = IdentityBucketSampler(plan, everybody, slots="reset", balance=balance)
    share = Share(plan, "reset", rank=0, world=gpus)
    every, warm_up, counts = 0, 0, [0] * gpus
    for iteration in range(2 * visit):
        parts = share.loads(sampler.samples(iteration))
        every += max(parts)
        counts = [sum(pair) for pair in zip(counts, parts, strict=True)]
        if (iteration + 1) % LOG_EVERY == 0 or iteration + 1 == 2 * visit:
            warm_up, counts = warm_up + max(counts), [0] * gpus
    return Load(every / (2 * visit), warm_up / (2 * visit))


def message(step: Step, *, gpus: int, link: float, bytes_each: int = 4) -> float:
    """Seconds of a ring all-reduce of Meta-Down's gradient: every link carries 2 (n - 1) / n of it."""
    return 2 * (gpus - 1) / gpus * bytes_each * step.meta_down / (link * 1e9)


@dataclass(frozen=True)
class Prediction:
    """Mean seconds of an iteration, and how many times the samples per second of one GPU."""

    seconds: float
    times: float


def predict(step: Step, found: Load, *, batch: int, sending: float, hidden: float = 0.0) -> Prediction:
    """Warm-up and the rest, weighted; `hidden`: part of the step's compute that a message may hide behind."""
    compute = found.every * step.seconds
    rest = compute + max(0.0, sending - hidden * compute)
    seconds = WARM_UP * found.warm_up * step.warm_up + (1 - WARM_UP) * rest
    alone = WARM_UP * step.warm_up + (1 - WARM_UP) * step.seconds
    return Prediction(seconds, batch * alone / seconds)


def main() -> None:
    """Print the tables."""
    shares = {
        (gpus, batch, people, balance): load(gpus=gpus, batch=batch, people=people, balance=balance)
        for gpus, batch, people in ((8, 4, 50), (8, 32, 50), (64, 256, 400))
        for balance in (1, gpus)
    }
    for step in (measured(), papers()):
        print(
            f"\n{step.whose}: {step.seconds:.3f} s a sample, {step.warm_up:.3f} s in warm-up; {step.meta_down:,} ",
            end="",
        )
        print(f"parameters, {4 * step.meta_down / 1e9:.4g} GB in float32, {2 * step.meta_down / 1e9:.4g} in bfloat16\n")
        print("| GPUs | link | float32, after backward | bfloat16 |\n|---|---|---|---|")
        for gpus in (8, 64):
            for name, link in LINKS.items():
                if gpus <= 8 or "machine" not in name:
                    whole, half = (message(step, gpus=gpus, link=link, bytes_each=size) for size in (4, 2))
                    print(f"| {gpus} | {name} | {whole * 1e3:.3g} ms | {half * 1e3:.3g} ms |")
        print()
        print("| GPUs | batch | people of a bucket | balance | busiest (ideal) | link | s / iteration | times 1 GPU |")
        print("|---|---|---|---|---|---|---|---|")
        for (gpus, batch, people, balance), found in shares.items():
            slow, fast = ("100 Gb Ethernet", "400 Gb Ethernet") if gpus > 8 else tuple(list(LINKS)[1::-1])
            for link in (slow, fast):
                told = predict(step, found, batch=batch, sending=message(step, gpus=gpus, link=LINKS[link]))
                print(
                    f"| {gpus} | {batch} | {people} | {balance} | {found.every:.2f} ({batch / gpus:g}) | {link} | "
                    f"{told.seconds:.3f} | {told.times:.1f} |"
                )
            for what, size, hidden in (("bfloat16", 2, 0.0), ("overlap", 4, BACKWARD)):
                sending = message(step, gpus=gpus, link=LINKS[slow], bytes_each=size)
                told = predict(step, found, batch=batch, sending=sending, hidden=hidden)
                print(f"| | | | | | {slow}, {what} | {told.seconds:.3f} | {told.times:.1f} |")


if __name__ == "__main__":
    main()

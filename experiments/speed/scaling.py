"""What Stage 1 on many GPUs should gain at FLUX.1-dev's size. A prediction on paper: nothing here is measured.

    python -m experiments.speed.scaling      # prints the tables of experiments/speed/scaling.md

Which samples meet in a batch, and whose they are, comes from the very sampler and shares of the training; everything
else is arithmetic on the assumptions below.
"""

from dataclasses import dataclass

import torch

from metalora.core.contracts import TrainingImage, TrainingPerson
from metalora.core.schedule import BucketPlan
from metalora.people.sampler import IdentityBucketSampler
from metalora.people.share import Share

SAMPLE_SECONDS = 13.0 / 4
"""The paper: 13 s per iteration of batch 4 on one RTX A6000; assumed proportional to the samples of a process."""
META_DOWN = 298_844_160
"""Meta-Down's parameters at r1 = 128, 494 layers; its gradient is float32."""
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


def message(*, gpus: int, link: float, bytes_each: int = 4) -> float:
    """Seconds of a ring all-reduce of Meta-Down's gradient: every link carries 2 (n - 1) / n of it."""
    return 2 * (gpus - 1) / gpus * bytes_each * META_DOWN / (link * 1e9)


@dataclass(frozen=True)
class Prediction:
    """Mean seconds of an iteration, and how many times the samples per second of one GPU."""

    seconds: float
    times: float


def predict(found: Load, *, batch: int, sending: float, hidden: float = 0.0) -> Prediction:
    """Warm-up and the rest, weighted; `hidden`: part of the step's compute that a message may hide behind."""
    compute = found.every * SAMPLE_SECONDS
    rest = compute + max(0.0, sending - hidden * compute)
    seconds = WARM_UP * found.warm_up * SAMPLE_SECONDS + (1 - WARM_UP) * rest
    return Prediction(seconds, batch * SAMPLE_SECONDS / seconds)


def main() -> None:
    """Print the tables."""
    print(f"message: {4 * META_DOWN / 1e9:.3f} GB in float32, {2 * META_DOWN / 1e9:.3f} GB in bfloat16\n")
    print("| GPUs | link | float32, after backward | bfloat16 |\n|---|---|---|---|")
    for gpus in (8, 64):
        for name, link in LINKS.items():
            if gpus <= 8 or "machine" not in name:
                whole, half = (message(gpus=gpus, link=link, bytes_each=size) for size in (4, 2))
                print(f"| {gpus} | {name} | {whole * 1e3:.0f} ms | {half * 1e3:.0f} ms |")
    print()
    print("| GPUs | batch | people of a bucket | balance | busiest (ideal) | link | s / iteration | times 1 GPU |")
    print("|---|---|---|---|---|---|---|---|")
    for gpus, batch, people in ((8, 4, 50), (8, 32, 50), (64, 256, 400)):
        for balance in (1, gpus):
            found = load(gpus=gpus, batch=batch, people=people, balance=balance)
            slow, fast = ("100 Gb Ethernet", "400 Gb Ethernet") if gpus > 8 else tuple(list(LINKS)[1::-1])
            for link in (slow, fast):
                sending = message(gpus=gpus, link=LINKS[link])
                told = predict(found, batch=batch, sending=sending)
                print(
                    f"| {gpus} | {batch} | {people} | {balance} | {found.every:.2f} ({batch / gpus:g}) | {link} | "
                    f"{told.seconds:.2f} | {told.times:.1f} |"
                )
            for what, size, hidden in (("bfloat16", 2, 0.0), ("overlap", 4, BACKWARD)):
                sending = message(gpus=gpus, link=LINKS[slow], bytes_each=size)
                told = predict(found, batch=batch, sending=sending, hidden=hidden)
                print(f"| | | | | | {slow}, {what} | {told.seconds:.2f} | {told.times:.1f} |")


if __name__ == "__main__":
    main()

"""How much less time a person takes in a cohort of 16 than alone, on the mini world, in one run.

    python -m experiments.speed.cohort [repeats=3] [people=16] [iterations=12]    # OMP_NUM_THREADS sets the threads

Stage-2 steps of Meta-LoRA (rank 1) and of LoRA+aug on the shipped mini FLUX with cached latents: one person per batch
against all in one batch. Only steps are timed; the repeats alternate. Writes results/cohort-DATE-N-threads.json.
"""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from experiments.speed.measuring import command, settings_of
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import eject, inject, layer_shapes
from metalora.adapters.optimizer import BankAdamW
from metalora.backbones.backbone import DiffusersBackbone
from metalora.backbones.flux import load_flux
from metalora.configuration import PACKAGE
from metalora.core.contracts import Batch, Sample
from metalora.core.noise import noise, timestep
from metalora.training.step import clip_gradients, diffusion_loss

LATENT = (8, 16, 16)
DEFAULTS = {"repeats": 3, "people": 16, "iterations": 12}


def batch_of(backbone: DiffusersBackbone, names: list[str], *, iteration: int) -> Batch:
    """One Stage-2 batch: one sample of each person, 64 x 64 pixels."""
    shape = (len(names), *LATENT)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(iteration))
    key = {"seed": 0, "iteration": iteration, "occurrence": 0}
    text = backbone.encode_text(["a photo of a woman"]).rows(torch.zeros(len(names), dtype=torch.long))
    return Batch(
        latents_BCHW=latents,
        noise_BCHW=torch.stack([noise(LATENT, identity=name, **key) for name in names]),
        t_B=torch.stack([timestep(identity=name, **key) for name in names]),
        text=text,
        rows_B=torch.arange(len(names)),
        samples=tuple(Sample(name, row, 0, False, iteration, 0) for row, name in enumerate(names)),
        iteration=iteration,
    )


def stepper(backbone: DiffusersBackbone, names: list[str], *, meta_rank: int | None) -> Callable[[int], None]:
    """A function that trains one iteration of these people."""
    bank = AdapterBank(layer_shapes(backbone.target_layers()), identities=names, rank=1, meta_rank=meta_rank, seed=0)
    bank.train_meta_down = False if meta_rank else bank.train_meta_down
    optimizer = BankAdamW(bank, lr=1e-3)
    batches = [batch_of(backbone, names, iteration=iteration) for iteration in range(4)]

    def step(iteration: int) -> None:
        injection = inject(backbone.denoiser, bank)
        diffusion_loss(backbone, bank, batches[iteration % 4], guidance=1.0).total.backward()
        clip_gradients(bank, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        eject(injection)

    return step


def seconds(step: Callable[[int], None], *, iterations: int) -> float:
    """Mean seconds of one step."""
    started = time.perf_counter()
    for iteration in range(iterations):
        step(iteration)
    return (time.perf_counter() - started) / iterations


def main(arguments: list[str]) -> None:
    """Time, print, write."""
    values = settings_of(arguments, DEFAULTS)
    backbone = load_flux(PACKAGE / "miniworld/weights/flux", name="mini", max_text_tokens=24)
    names = [f"person-{number:02d}" for number in range(values["people"])]
    results = {}
    for method, meta_rank in (("meta_lora", 32), ("lora_aug", None)):
        alone = stepper(backbone, names[:1], meta_rank=meta_rank)
        together = stepper(backbone, names, meta_rank=meta_rank)
        for step in (alone, together):
            seconds(step, iterations=2)
        runs = [
            (seconds(alone, iterations=values["iterations"]), seconds(together, iterations=values["iterations"]))
            for _ in range(values["repeats"])
        ]
        ratios = [len(names) * single / cohort for single, cohort in runs]
        results[method] = {
            "milliseconds_per_step_alone": [round(1e3 * single, 2) for single, _ in runs],
            "milliseconds_per_step_cohort": [round(1e3 * cohort, 2) for _, cohort in runs],
            "times_less_per_person": [round(ratio, 2) for ratio in ratios],
            "median_times_less_per_person": round(statistics.median(ratios), 2),
        }
        print(f"{method}: {results[method]['median_times_less_per_person']} times less time per person in a cohort")
    record = {
        "date": time.strftime("%Y-%m-%d"),
        "settings": values,
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "results": results,
    }
    target = Path(__file__).parent / "results" / f"cohort-{record['date']}-{torch.get_num_threads()}-threads.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    command("cohort", main)

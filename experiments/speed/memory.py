"""Whether the memory plan holds: what a Stage-2 and a Stage-1 step were planned to peak at, and what they did.

    python -m experiments.speed.memory shape=flux_dev device=cuda dtype=bfloat16 pixels=1024 text_tokens=512
    python -m experiments.speed.memory                      # a scaled model on the CPU
    python -m experiments.speed.memory presets=true         # only plan: every preset at the paper's sizes

Random weights at FLUX.1-dev's shape or a scaled one. Each way to save memory runs in a process of its own: the plan
first, then the model is made and three steps are taken. Measured is what torch's allocator handed out at most; on a
CPU, where torch keeps no such count, its profiler tells it of the third step. Beside it there, the process's largest
resident memory, less what it was before the model was made: it has the gaps that malloc leaves, too.

Writes results/memory-SHAPE-DEVICE-DATE.json.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from experiments.speed.measuring import command, settings_of, write
from experiments.speed.steps import POOLED, SHAPES, make_transformer, quantize
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import inject
from metalora.adapters.optimizer import BankAdamW
from metalora.backbones.backbone import DiffusersBackbone
from metalora.backbones.flux import Flux, block_linears
from metalora.configuration import conf_dir
from metalora.core.budget import GIB, MemoryPlan, settle
from metalora.core.contracts import Batch, MemoryUse, Sample, TextEmbedding
from metalora.core.errors import UserError
from metalora.core.flow import RectifiedFlow
from metalora.training.plan import Work, plan_step
from metalora.training.step import clip_gradients, diffusion_loss

DEFAULTS: dict[str, Any] = {
    "shape": "width_1024",
    "device": "cpu",
    "dtype": "float32",
    "pixels": 512,
    "text_tokens": 128,
    "people": 50,
    "meta_rank": 128,
}
WAYS = {
    "none": MemoryUse(),
    "some": MemoryUse(checkpointing="some"),
    "all": MemoryUse(checkpointing="all"),
    "all_offload": MemoryUse(checkpointing="all", offload=True),
    "float8_all": MemoryUse("float8", "all"),
    "nf4_all": MemoryUse("nf4", "all"),
}
STAGES = {"stage2": (1, 1, False), "stage1": (4, None, True)}
"""Batch, people in the bank (None: the setting's) and whether Meta-Down learns."""
CPU_WAYS = ("none", "some", "all", "float8_all")


class RandomFlux(DiffusersBackbone):
    """A FLUX of a shape with random weights, that lies nowhere on disk."""

    def __init__(self, settings: dict[str, Any], memory: MemoryUse) -> None:
        self.settings, self.family, self.component, self.name = settings, Flux(), "transformer", settings["shape"]
        self.dtype, self.device = getattr(torch, settings["dtype"]), torch.device(settings["device"])
        self.objective, self._memory = RectifiedFlow(), memory
        self._vae = self._text = self._attention = None
        self._compile = False
        self.directory: Any = type("Nowhere", (), {"vae_factor": 8})()

    @property
    def _blueprint(self) -> Any:
        with torch.device("meta"):
            return self._made()

    def _made(self) -> Any:
        torch.set_default_dtype(self.dtype)
        try:
            return make_transformer(self.settings["shape"]).requires_grad_(False).eval()
        finally:
            torch.set_default_dtype(torch.float32)

    def _paper_vae(self) -> Any:
        return None

    def _read_denoiser(self) -> Any:
        torch.manual_seed(0)
        home = torch.device("cpu") if self.memory.offload else self.device
        with home:
            denoiser = self._made()
        if self.memory.quantization is not None:
            quantize(denoiser, list(block_linears(denoiser)), kind=self.memory.quantization, dtype=self.dtype)
        return denoiser


def batch_of(settings: dict[str, Any], *, size: int, people: int) -> Batch:
    """Random latents of one step."""
    side, width = settings["pixels"] // 8, SHAPES[settings["shape"]]["joint_attention_dim"]
    device, dtype = torch.device(settings["device"]), getattr(torch, settings["dtype"])

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    rows = [number * (people // size) for number in range(size)]
    return Batch(
        latents_BCHW=random(size, 16, side, side),
        noise_BCHW=random(size, 16, side, side),
        t_B=torch.full((size,), 0.5, device=device),
        text=TextEmbedding(
            random(size, settings["text_tokens"], width, dtype=dtype), random(size, POOLED, dtype=dtype)
        ),
        rows_B=torch.tensor(rows),
        samples=tuple(Sample(str(row), row, 0, False, 0, 0) for row in rows),
        iteration=0,
    )


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def taken(tensor: Tensor) -> int:
    """Bytes of a tensor, of a quantized one those of its parts: it tells its numbers' otherwise."""
    parts: list[str] = getattr(tensor, "tensor_data_names", [])
    return sum(getattr(tensor, part).nbytes for part in parts) if parts else tensor.nbytes


def handed_out(body: Callable[[], None]) -> int:
    """What torch's allocator handed out at most during `body`, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        body()
    results: Any = told.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda it: it.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def measure(settings: dict[str, Any], *, stage: str, way: str) -> dict[str, Any]:
    """Plan, then take three steps and look."""
    size, people, train_meta_down = STAGES[stage]
    people = people or settings["people"]
    side, width = settings["pixels"] // 8, SHAPES[settings["shape"]]["joint_attention_dim"]
    text = TextEmbedding(torch.empty(1, settings["text_tokens"], width), torch.empty(1, POOLED))
    work = Work(size, people, 1, settings["meta_rank"], train_meta_down, (16, side, side), text)
    backbone = RandomFlux(settings, WAYS[way])
    started = time.perf_counter()
    plan = plan_step(backbone, work, memory=WAYS[way])
    planning = time.perf_counter() - started
    cuda = settings["device"] == "cuda"
    before = torch.cuda.memory_allocated() if cuda else resident("VmRSS")
    bank = AdapterBank(
        backbone.layer_shapes,
        identities=[str(number) for number in range(people)],
        rank=1,
        meta_rank=settings["meta_rank"],
        seed=0,
    ).to(backbone.device)
    bank.train_meta_down = train_meta_down
    optimizer = BankAdamW(bank, lr=4e-4)
    inject(backbone.denoiser, bank)
    if cuda:  # a model with random weights is quantized after it was made whole; a real one is read so
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    batch, seconds = batch_of(settings, size=size, people=people), []

    def step() -> None:
        diffusion_loss(backbone, bank, batch, guidance=1.0).total.backward()
        clip_gradients(bank, max_norm=1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        bank.clear_route()

    for _ in range(2):
        started = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    told: dict[str, Any] = {}
    if cuda:
        step()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        told["resident_gb"] = round((resident("VmHWM") - before) / 2**30, 3)
        kept = [backbone.denoiser, bank]
        held = sum(taken(it) for module in kept for it in [*module.parameters(), *module.buffers()])
        moments = [value.nbytes for state in optimizer.state.values() for value in state.values()]
        peak = held + sum(moments) + handed_out(step)
    return {
        "planned_gb": round(plan.peak / 2**30, 3),
        "measured_gb": round(peak / 2**30, 3),
        "planned_over_measured": round(plan.peak / peak, 3),
        **told,
        "plan": str(plan),
        "seconds_to_plan": round(planning, 1),
        "seconds_per_step": round(min(seconds), 3),
    }


def plan_presets() -> None:
    """What each memory preset settles on for FLUX.1-dev at 1024 px, both stages; nothing is computed."""
    settings = {"shape": "flux_dev", "device": "meta", "dtype": "bfloat16", "text_tokens": 512}
    text = TextEmbedding(torch.empty(1, 512, SHAPES["flux_dev"]["joint_attention_dim"]), torch.empty(1, POOLED))
    for file in sorted((conf_dir() / "memory").glob("*gb.yaml"), reverse=True):
        preset = yaml.safe_load(file.read_text())
        for stage, (size, people, train_meta_down) in STAGES.items():
            backbone = RandomFlux(settings, MemoryUse(preset["quantization"]))
            work = Work(size, people or 50, 1, 128, train_meta_down, (16, 128, 128), text)

            def plan(memory: MemoryUse, backbone: RandomFlux = backbone, work: Work = work) -> MemoryPlan:
                return plan_step(backbone, work, memory=memory)

            keys = {name: preset[name] for name in ("checkpointing", "offload")}
            try:
                told = settle(backbone, plan, budget=preset["budget_gb"] * GIB, preset=preset["name"], **keys)
            except UserError as error:
                told = error
            print(f"memory={preset['name']} {stage}: {told}", flush=True)


def main(arguments: list[str]) -> None:
    """Measure every way in a process of its own, and write."""
    settings = settings_of(arguments, {**DEFAULTS, "presets": False, "stage": "", "way": ""})
    presets, stage, way = (settings.pop(name) for name in ("presets", "stage", "way"))
    if presets:
        plan_presets()
        return
    if stage and way:
        print(json.dumps(measure(settings, stage=stage, way=way)))
        return
    report: dict[str, Any] = {}
    for stage in STAGES:
        for way in WAYS if settings["device"] == "cuda" else CPU_WAYS:
            words = [sys.executable, "-m", "experiments.speed.memory", *arguments, f"stage={stage}", f"way={way}"]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            told = done.stdout.strip().splitlines()
            if done.returncode or not told:
                report[f"{stage}_{way}"] = {"failed": done.stderr.strip().splitlines()[-1:]}
            else:
                report[f"{stage}_{way}"] = json.loads(told[-1])
            print(f"{stage} {way}: {report[f'{stage}_{way}']}", flush=True)
    gpu = torch.cuda.get_device_name() if settings["device"] == "cuda" else None
    name = f"memory-{settings['shape']}-{settings['device']}"
    print(write(name, {"gpu": gpu, "settings": settings, "ways": report}))


if __name__ == "__main__":
    command("memory", main)

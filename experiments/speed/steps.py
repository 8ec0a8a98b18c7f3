"""What training steps cost at FLUX.1-dev's shape or a scaled one, with random weights, on any device.

    python -m experiments.speed.steps shape=flux_dev device=cuda dtype=bfloat16 pixels=1024 checkpointing=all
    python -m experiments.speed.steps                      # a scaled model on the CPU

Variants take turns in one run: the bare model's forward and backward to its inputs (batch 1 and batch 4), a Stage-2
step in both associations of Up Mid MetaDown x, a cohort step, a Stage-1 step in the warm-up and after it with 50
identities in the bank, all on one frozen transformer; and on a copy of it PEFT's LoRA of rank 1 on the same layers,
trained as diffusers' DreamBooth-LoRA example does. Memory is what a step needs beyond what lies on the device before
it. Model FLOPs are counted by torch on the meta device, without recomputation; the ceiling is a matrix product measured
in the same run. A bucket switch (everybody's Mid and Up drawn afresh, moments forgotten) is timed beside them.

Writes results/steps-SHAPE-DEVICE-DATE.json.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from peft import LoraConfig
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.speed.measuring import alternate, command, settings_of, summary, write
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import eject, inject, layer_shapes
from metalora.adapters.optimizer import BankAdamW, clip_rows_
from metalora.backbones.attention import use_attention
from metalora.backbones.blocks import checkpoint_blocks, compile_repeated
from metalora.backbones.flux import block_linears

SHAPES: dict[str, dict[str, int]] = {
    "flux_dev": {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "joint_attention_dim": 4096},
    "width_1024": {"num_layers": 2, "num_single_layers": 4, "num_attention_heads": 8, "joint_attention_dim": 512},
}
DEFAULTS: dict[str, Any] = {
    "shape": "width_1024",
    "device": "cpu",
    "dtype": "float32",
    "pixels": 256,
    "text_tokens": 128,
    "checkpointing": "none",
    "quantization": "none",
    "attention": "best",
    "compile": False,
    "people": 50,
    "cohort": 4,
    "meta_rank": 128,
    "repeats": 9,
    "peft": True,
}
RATE = 4e-4
POOLED = 768


class Bench:
    """The transformer, its inputs, and the variants as functions that take one step each."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings, self.device = settings, torch.device(settings["device"])
        self.dtype: torch.dtype = getattr(torch, settings["dtype"])
        self.transformer = self.frozen_transformer()
        self.layers = layer_shapes(block_linears(self.transformer))

    def frozen_transformer(self) -> FluxTransformer2DModel:
        """Random weights, in the model's precision, on the device."""
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        try:
            with self.device:
                transformer = make_transformer(self.settings["shape"])
        finally:
            torch.set_default_dtype(torch.float32)
        transformer.requires_grad_(False).eval()
        if self.settings["quantization"] != "none":
            quantize(
                transformer, list(block_linears(transformer)), kind=self.settings["quantization"], dtype=self.dtype
            )
        checkpoint_blocks(transformer, which=self.settings["checkpointing"])
        use_attention(transformer, self.settings["attention"])
        if self.settings["compile"]:
            compile_repeated(transformer)
        return transformer

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """One batch of images of `pixels` and their text."""
        return make_inputs(self.settings, batch=batch, device=self.device, dtype=self.dtype)

    def loss(self, inputs: dict[str, Tensor], transformer: FluxTransformer2DModel | None = None) -> Tensor:
        """The sum over samples of each one's mean squared error against zeros."""
        model = transformer or self.transformer
        return model(**inputs, return_dict=False)[0].float().square().flatten(1).mean(1).sum()

    def frozen(self, batch: int) -> Callable[[], None]:
        """Forward and backward to the inputs: no adapter, no optimizer."""
        inputs = self.inputs(batch)
        leaves = [inputs[name].requires_grad_() for name in ("hidden_states", "encoder_hidden_states")]

        def step() -> None:
            self.loss(inputs).backward()
            for leaf in leaves:
                leaf.grad = None
            self.wait()

        return step

    def bank(self, people: int) -> AdapterBank:
        """Rank 1 for so many people."""
        names, meta_rank = [f"p{k}" for k in range(people)], self.settings["meta_rank"]
        return AdapterBank(self.layers, identities=names, rank=1, meta_rank=meta_rank, seed=0).to(self.device)

    def switch(self, people: int) -> Callable[[], None]:
        """A new bucket takes its seats."""
        bank = self.bank(people)
        optimizer, visits = BankAdamW(bank, lr=RATE), itertools.count(1)
        bank.set_route(torch.arange(people))
        sum(slot.first.sum() + slot.up.sum() for slot in bank.slots.values()).backward()
        optimizer.step()

        def step() -> None:
            visit = next(visits)
            bank.reset_rows([f"p{k}-{visit}" for k in range(people)], visit=visit)
            optimizer.reset_rows()
            self.wait()

        return step

    def ours(
        self, batch: int, *, people: int, train_meta_down: bool, meta_down_first: bool = False
    ) -> Callable[[], None]:
        """Routing, forward, loss, backward, clipping and AdamW; Meta-Down learns too or stands still.

        Args:
            meta_down_first: apply MetaDown to every token, as DESIGN's other association does, instead of forming
                Mid MetaDown once per step.
        """
        bank = self.bank(people)
        bank.train_meta_down = train_meta_down
        optimizer, inputs = BankAdamW(bank, lr=RATE), self.inputs(batch)
        rows_B = torch.arange(batch) * (people // batch)

        def step() -> None:
            injection = inject(self.transformer, bank)
            bank.set_route(rows_B)
            with association(meta_down_first=meta_down_first):
                self.loss(inputs).backward()
            clip_rows_(bank, max_norm=1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            bank.clear_route()
            eject(injection)
            self.wait()

        return step

    def peft(self) -> Callable[[], None]:
        """PEFT's LoRA of rank 1 on a transformer of its own, which keeps PEFT's wrappers."""
        transformer = self.frozen_transformer()
        config = LoraConfig(r=1, lora_alpha=1, init_lora_weights="gaussian", target_modules=list(self.layers))
        transformer.add_adapter(config)
        trained = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.data = parameter.data.float()
        optimizer, inputs = torch.optim.AdamW(trained, lr=RATE, eps=1e-6), self.inputs(1)

        def step() -> None:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = self.loss(inputs, transformer)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            self.wait()

        return step

    def wait(self) -> None:
        """Until the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def peak_gb(self, step: Callable[[], None]) -> float | None:
        """GPU memory one step needs at most beyond what lies there before it."""
        if self.device.type != "cuda":
            return None
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return round((torch.cuda.max_memory_allocated() - before) / 2**30, 2)

    def ceiling(self) -> float:
        """FLOP/s of a square matrix product in the model's precision."""
        side = 8192 if self.device.type == "cuda" else 1024
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        best = float("inf")
        for _ in range(20):
            start = time.perf_counter()
            a @ b
            self.wait()
            best = min(best, time.perf_counter() - start)
        return 2 * side**3 / best


@contextlib.contextmanager
def association(*, meta_down_first: bool) -> Iterator[None]:
    """Let the adapters compute in the other order while this is open."""
    with contextlib.ExitStack() as stack:
        if meta_down_first:
            for module in ("metalora.adapters.linear", "metalora.core.lora"):
                stack.enter_context(mock.patch(f"{module}.merges", lambda *, tokens, rank: False))
        yield


def quantize(transformer: nn.Module, names: list[str], *, kind: str, dtype: torch.dtype) -> None:
    """Keep the named layers' random weights in fewer bits, as the libraries behind diffusers' quantizers do."""
    if kind == "nf4":
        from bitsandbytes.nn import Params4bit

        for name in names:
            layer = transformer.get_submodule(name)
            packed = Params4bit(layer.weight.detach().cpu(), requires_grad=False, quant_type="nf4")
            layer.weight = packed.to(layer.weight.device)
        return
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config = Float8WeightOnlyConfig() if kind == "float8" else Int8WeightOnlyConfig(version=2)
    quantize_(transformer, config, filter_fn=lambda module, name: name in set(names))
    transformer.requires_grad_(False)


def make_transformer(shape: str) -> FluxTransformer2DModel:
    """FLUX.1-dev's layers at a shape's size."""
    return FluxTransformer2DModel(
        in_channels=64, attention_head_dim=128, pooled_projection_dim=POOLED, guidance_embeds=True, **SHAPES[shape]
    )


def make_inputs(settings: dict[str, Any], *, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Random latents, text, time and guidance of one batch."""
    side, width = settings["pixels"] // 16, SHAPES[settings["shape"]]["joint_attention_dim"]
    options = {"device": device, "dtype": dtype}
    return {
        "hidden_states": torch.randn(batch, side * side, 64, **options),
        "encoder_hidden_states": torch.randn(batch, settings["text_tokens"], width, **options),
        "pooled_projections": torch.randn(batch, POOLED, **options),
        "timestep": torch.full((batch,), 0.5, **options),
        "guidance": torch.ones(batch, device=device),
        "img_ids": FluxPipeline._prepare_latent_image_ids(batch, side, side, device, dtype),
        "txt_ids": torch.zeros(settings["text_tokens"], 3, **options),
    }


def model_flops(settings: dict[str, Any]) -> int:
    """FLOPs of one image's forward and backward to the inputs, nothing computed twice."""
    device = torch.device("meta")
    with device:
        transformer = make_transformer(settings["shape"]).requires_grad_(False)
    inputs = make_inputs(settings, batch=1, device=device, dtype=torch.float32)
    leaves = [inputs[name].requires_grad_() for name in ("hidden_states", "encoder_hidden_states")]
    with FlopCounterMode(display=False) as counter:
        transformer(**inputs, return_dict=False)[0].square().mean().backward()
    assert all(leaf.grad is not None for leaf in leaves)
    return counter.get_total_flops()


def main(arguments: list[str]) -> None:
    """Measure and write."""
    settings = settings_of(arguments, DEFAULTS)
    bench = Bench(settings)
    flops, ceiling = model_flops(settings), bench.ceiling()
    people, cohort = settings["people"], settings["cohort"]
    steps = {
        "frozen_batch_1": bench.frozen(1),
        "stage2_batch_1": bench.ours(1, people=1, train_meta_down=False),
        "stage2_meta_down_first_batch_1": bench.ours(1, people=1, train_meta_down=False, meta_down_first=True),
        f"frozen_batch_{cohort}": bench.frozen(cohort),
        f"cohort_of_{cohort}": bench.ours(cohort, people=cohort, train_meta_down=False),
        f"stage1_warmup_batch_{cohort}": bench.ours(cohort, people=people, train_meta_down=False),
        f"stage1_batch_{cohort}": bench.ours(cohort, people=people, train_meta_down=True),
    }
    if settings["peft"]:
        steps["peft_lora_batch_1"] = bench.peft()
    batches = {name: cohort if name.endswith(f"_{cohort}") else 1 for name in steps}
    seconds = alternate(steps, repeats=settings["repeats"])
    switch = bench.switch(people)
    switch()
    switches = []
    for _ in range(3):
        start = time.perf_counter()
        switch()
        switches.append(time.perf_counter() - start)
    peaks = {name: bench.peak_gb(step) for name, step in steps.items()}
    report: dict[str, Any] = {}
    for name, batch in batches.items():
        told: dict[str, Any] = summary(seconds, against=f"frozen_batch_{batch}")[name]
        median = told["median_seconds"]
        tokens = batch * ((settings["pixels"] // 16) ** 2 + settings["text_tokens"])
        told["tokens_per_second"] = round(tokens / median)
        told["utilisation_of_matrix_product"] = round(batch * flops / median / ceiling, 3)
        told["memory_of_step_gb"] = peaks[name]
        report[name] = told
    gpu = torch.cuda.get_device_name() if bench.device.type == "cuda" else None
    result = {
        "gpu": gpu,
        "settings": settings,
        "weights_gb": round(sum(p.nbytes for p in bench.transformer.parameters()) / 2**30, 2),
        "model_tflop_per_image": round(flops / 1e12, 3),
        "matrix_product_tflops": round(ceiling / 1e12, 3),
        f"seconds_of_bucket_switch_{people}_people": round(min(switches), 3),
        "steps": report,
    }
    path: Path = write(f"steps-{settings['shape']}-{settings['device']}", result)
    print(json.dumps({name: told["ratio_of_medians"] for name, told in report.items()}), path)


if __name__ == "__main__":
    command("steps", main)

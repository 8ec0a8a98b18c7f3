"""Train the FLUX transformer and both text encoders by flow matching; processes share one model in shared memory.

x_t = (1 - t) x_0 + t noise, the target is noise - x_0, t = 1 is noise. Weights live in fp32; forward and backward run
in bf16 where the CPU multiplies it. In the last part guidance is distilled into the guidance embedding, with the moving
average as teacher.
Legend: B batch, L text tokens, N image tokens, C channels of a packed token, P parameters.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metalora.miniworld.build.data import generator, torch_generator
from metalora.miniworld.build.flat import Moments, Slot, adamw_step, gather, lay_out, muon_step, scatter, share
from metalora.miniworld.build.flux_data import FluxData, image_ids, pack
from metalora.miniworld.build.forward import rotary, velocity
from metalora.miniworld.build.loop import Plan, fast_dtype, read_checkpoint, write_checkpoint
from metalora.miniworld.build.models import TEXT_LENGTH, FluxModels, make_flux
from metalora.miniworld.build.together import train_together


@dataclass(frozen=True)
class FluxRecipe:
    """Length, sizes and rates of the base's training."""

    plan: Plan
    schedule: tuple[tuple[float, float, float], ...]
    """(step, Muon's rate, AdamW's rate) at rising steps; linear in between. The plan only gives the number of steps."""
    distill: tuple[tuple[int, int], ...] = ()
    """Ranges of steps (first, end) in which half of every batch learns guidance."""
    without: tuple[int, ...] = ()
    """Joint blocks left out, between the noise levels of `between`, of the pass that guidance leads away from; that
    pass has no caption either. A model that is worse in the same way shows where faults are (Hyung et al. 2024); ()
    leaves the usual classifier-free guidance."""
    between: tuple[float, float] = (0.0, 1.0)
    """Above the second noise level no block is left out, as what is drawn is decided there; below the first guidance
    is 1 (Kynkaanniemi et al. 2024)."""
    restart: int | None = None
    """Step at which the training begins anew from its average, rounded to bf16 as it is shipped, without moments."""
    batch: int = 128
    decay: float = 0.02
    clip: float = 1.0
    average: float = 0.999
    caption_dropout: float = 0.1
    captions: int = 8
    guidance: tuple[float, float] = (1.0, 5.0)
    face_weight: float = 1.0
    """Weight of an error inside the face's box; outside it is 1. It fades where noise hides the place of the face."""
    double: int = 3
    single: int = 3
    shift: float = 1.0
    workers: int = 2
    compile: bool = True
    seed: int = 14

    def rates(self, step: int) -> tuple[float, float]:
        """Learning rates of Muon and of AdamW at a step."""
        steps, muon, adamw = zip(*self.schedule, strict=True)
        return float(np.interp(step, steps, muon)), float(np.interp(step, steps, adamw))

    def distills(self, step: int) -> bool:
        """Whether guidance is learned at a step."""
        return any(first <= step < end for first, end in self.distill)


def error_weights(faces_BN: Tensor, time_B: Tensor, *, face_weight: float) -> Tensor:
    """Weights [B, N] of the errors, on average 1.

    Up to t = 0.6 the noisy picture shows where the face is, so a weight there favours no place over another; from
    there to t = 0.9 the weight fades to 1.
    """
    seen_B = ((0.9 - time_B) / 0.3).clamp(0, 1)
    weights = 1 + (face_weight - 1) * seen_B[:, None] * faces_BN
    return weights / weights.mean()


def draw_time(count: int, *, source: torch.Generator) -> Tensor:
    """Timesteps in (0, 1), logit-normal (Esser et al. 2024)."""
    return torch.sigmoid(torch.randn(count, generator=source))


def fresh_models(*, vocabulary: int, recipe: FluxRecipe) -> FluxModels:
    """Untrained models; modulation and output start at zero, so that every block starts as the identity."""
    models = make_flux(vocabulary=vocabulary, seed=recipe.seed, double=recipe.double, single=recipe.single)
    transformer = models.transformer
    zeroed = [transformer.proj_out, transformer.norm_out.linear]
    zeroed += [x for block in transformer.transformer_blocks for x in (block.norm1.linear, block.norm1_context.linear)]
    zeroed += [block.norm.linear for block in transformer.single_transformer_blocks]
    for layer in zeroed:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return models


def working_copy(models: FluxModels, *, dtype: torch.dtype) -> FluxModels:
    """A copy that forward and backward run on, in `dtype` but for the embedding of time and guidance."""
    models = copy.deepcopy(models)
    for module in models.named_modules().values():
        module.to(dtype)
    models.transformer.time_text_embed.float()
    return models


class Predictor:
    """tokens and noisy latents to velocities, optionally compiled; holds nothing but the models."""

    def __init__(self, models: FluxModels, *, compiled: bool) -> None:
        self.models = models
        self.rotary: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._call = torch.compile(self._forward, dynamic=False) if compiled else self._forward

    def _forward(
        self,
        x_BNC: Tensor,
        time_B: Tensor,
        guidance_B: Tensor,
        tokens_BL: Tensor,
        rotary_LD: tuple[Tensor, Tensor],
        without: tuple[int, ...],
    ) -> Tensor:
        text = self.models.text_encoder_2(tokens_BL)[0]
        pooled = self.models.text_encoder(tokens_BL).pooler_output
        return velocity(
            self.models.transformer,
            x_BNC.to(text.dtype),
            time_B=time_B,
            guidance_B=guidance_B,
            text_BTW=text,
            pooled_BW=pooled,
            rotary_LD=rotary_LD,
            without=without,
        ).float()

    def __call__(
        self,
        x_BNC: Tensor,
        *,
        time_B: Tensor,
        guidance_B: Tensor,
        tokens_BL: Tensor,
        grid: tuple[int, int],
        without: tuple[int, ...] = (),
    ) -> Tensor:
        """Velocities [B, N, C] in fp32 for pictures of grid = (height, width) tokens.

        Args:
            without: joint blocks that are left out.
        """
        if grid not in self.rotary:
            ids = image_ids(*grid)
            self.rotary[grid] = rotary(self.models.transformer, text_tokens=TEXT_LENGTH, image_ids=ids)
        return self._call(x_BNC, time_B, guidance_B, tokens_BL, self.rotary[grid], without)


def draw_batch(data: FluxData, *, step: int, rank: int, recipe: FluxRecipe) -> dict[str, Any]:
    """This process's part of batch `step`, a pure function of (seed, step, rank)."""
    shared = generator(recipe.seed, "batch", step)
    sizes = sorted(data.positions)
    counts = np.array([len(data.positions[size]) for size in sizes], dtype=float)
    size = str(shared.choice(sizes, p=counts / counts.sum()))
    chosen = shared.integers(0, len(data.positions[size]), recipe.batch)[rank :: recipe.workers]
    rng, source = generator(recipe.seed, "rank", step, rank), torch_generator(recipe.seed, "noise", step, rank)
    latents = data.latents[size][torch.from_numpy(data.positions[size][chosen])].float()
    which = torch.from_numpy(rng.integers(0, recipe.captions, len(chosen)))
    tokens = data.tokens[size][torch.from_numpy(chosen), which].long()
    dropped = torch.from_numpy(rng.random(len(chosen)) < recipe.caption_dropout)
    tokens[dropped] = data.empty.long()
    clean = pack(latents)
    noise = torch.randn(clean.shape, generator=source)
    t = draw_time(len(chosen), source=source)
    noisy = (1 - t[:, None, None]) * clean + t[:, None, None] * noise
    low, high = recipe.guidance
    guidance = low + (high - low) * torch.rand(len(chosen), generator=source)
    faces = data.faces[size][torch.from_numpy(chosen)].float()
    return {
        "tokens": tokens,
        "noisy": noisy,
        "time": t,
        "target": noise - clean,
        "guidance": guidance,
        "grid": (latents.shape[-2] // 2, latents.shape[-1] // 2),
        "weights": error_weights(faces, t, face_weight=recipe.face_weight),
    }


def guided_target(
    teacher: Predictor, part: Mapping[str, Any], *, half: int, empty: Tensor, recipe: FluxRecipe
) -> Tensor:
    """Targets [half, N, C] of the first `half` samples: v_worse + g (v_caption - v_worse) (Meng et al. 2023).

    v_worse has no caption and, between the recipe's noise levels, leaves out its blocks; below them g is 1.
    """
    x, t, grid = part["noisy"][:half], part["time"][:half], part["grid"]
    low, high = recipe.between
    guidance = torch.where(t < low, 1.0, part["guidance"][:half])
    worse = torch.empty_like(x)
    with torch.no_grad():
        told = teacher(x, time_B=t, guidance_B=torch.ones(half), tokens_BL=part["tokens"][:half], grid=grid)
        for chosen, without in ((t <= high, recipe.without), (t > high, ())):
            count = int(chosen.sum())
            if count:
                blank, ones = empty.long().expand(count, -1).contiguous(), torch.ones(count)
                worse[chosen] = teacher(
                    x[chosen], time_B=t[chosen], guidance_B=ones, tokens_BL=blank, grid=grid, without=without
                )
    return worse + guidance[:, None, None] * (told - worse)


@dataclass(frozen=True)
class SharedState:
    """The training's state as flat vectors in shared memory: one row of `gradients` per process, losses in `report`."""

    parameters: Tensor
    average: Tensor
    first: Tensor
    second: Tensor
    gradients: Tensor
    report: Tensor

    @staticmethod
    def zeros(size: int, workers: int) -> "SharedState":
        flat = [torch.zeros(size).share_memory_() for _ in range(4)]
        return SharedState(*flat, torch.zeros(workers, size).share_memory_(), torch.zeros(workers, 2).share_memory_())


def begin_anew(state: SharedState) -> None:
    """Set the parameters to their average as it is shipped, in bf16, and forget the moments."""
    state.average.copy_(state.average.bfloat16())
    state.parameters.copy_(state.average)
    state.first.zero_()
    state.second.zero_()


class Worker:
    """One of the training's processes: adds its part of the gradient, updates its share of the parameters."""

    def __init__(
        self, rank: int, *, state: SharedState, data: FluxData, recipe: FluxRecipe, vocabulary: int, barrier: Any
    ) -> None:
        torch.set_num_threads(1)
        self.rank, self.state, self.data, self.recipe, self.barrier = rank, state, data, recipe, barrier
        models = fresh_models(vocabulary=vocabulary, recipe=recipe)
        self.slots: list[Slot] = lay_out(models.named_modules())
        dtype = fast_dtype()
        self.live = working_copy(models, dtype=dtype)
        self.teacher_models = working_copy(models, dtype=dtype)
        self.model = Predictor(self.live, compiled=recipe.compile)
        self.teacher = Predictor(self.teacher_models, compiled=False)  # forward only: compiling would not pay
        self.matrices, self.rest = share(self.slots, rank=rank, world=recipe.workers)
        size = state.parameters.numel()
        self.part = slice(rank * size // recipe.workers, (rank + 1) * size // recipe.workers)

    def step(self, step: int) -> None:
        """Forward, backward and update of step `step`; every process must call it."""
        recipe, state = self.recipe, self.state
        scatter(self.live.named_modules(), self.slots, state.parameters)
        part = draw_batch(self.data, step=step, rank=self.rank, recipe=recipe)
        count = len(part["time"])
        target, guidance, half = part["target"], torch.ones(count), 0
        if recipe.distills(step):
            half = count // 2
            scatter(self.teacher_models.named_modules(), self.slots, state.average)
            learned = guided_target(self.teacher, part, half=half, empty=self.data.empty, recipe=recipe)
            target = torch.cat([learned, target[half:]])
            guidance[:half] = part["guidance"][:half]
        predicted = self.model(
            part["noisy"], time_B=part["time"], guidance_B=guidance, tokens_BL=part["tokens"], grid=part["grid"]
        )
        squared = (predicted - target).square().mean(2)
        weighted, errors = (squared * part["weights"]).mean(1), squared.detach().mean(1)
        for module in self.live.named_modules().values():
            module.zero_grad(set_to_none=True)
        weighted.mean().backward()
        gather(self.live.named_modules(), self.slots, state.gradients[self.rank], gradients=True)
        state.report[self.rank, 0] = errors[half:].mean().item()
        state.report[self.rank, 1] = errors[:half].mean().item() if half else 0.0
        self.barrier.wait()
        self._update(step)
        self.barrier.wait()

    def _update(self, step: int) -> None:
        recipe, state = self.recipe, self.state
        gradient = state.gradients.mean(0)
        norm = gradient.norm()
        gradient *= (recipe.clip / (norm + 1e-6)).clamp(max=1.0)
        muon_rate, adamw_rate = recipe.rates(step)
        moments = Moments(state.first, state.second)
        common = {"parameters_P": state.parameters, "gradients_P": gradient, "moments": moments, "decay": recipe.decay}
        muon_step(self.matrices, rate=muon_rate, **common)
        adamw_step(self.rest, step=step, rate=adamw_rate, **common)
        self.barrier.wait()
        decay = min(recipe.average, (step + 1) / (step + 10))
        state.average[self.part].lerp_(state.parameters[self.part], 1 - decay)


def train_flux(
    data: FluxData,
    *,
    vocabulary: int,
    recipe: FluxRecipe,
    state: Path,
    quiet: bool = False,
    until: int | None = None,
    at_checkpoint: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Train and leave `state/flux.safetensors` (parameters, moving average); continues from it when it is there.

    The recipe's schedule may change between runs from the step on that is reached.

    Args:
        until: stop after this many steps; None for the plan's length.

    Returns:
        Steps, samples and seconds of the training.
    """
    checkpoint = state / "flux.safetensors"
    models = fresh_models(vocabulary=vocabulary, recipe=recipe)
    slots = lay_out(models.named_modules())
    shared = SharedState.zeros(slots[-1].stop, recipe.workers)
    start, seconds = 0, 0.0
    if checkpoint.is_file():
        tensors, notes = read_checkpoint(checkpoint)
        for name in ("parameters", "average", "first", "second"):
            getattr(shared, name).copy_(tensors[name])
        start, seconds = notes["step"], notes["seconds"]
        if start == recipe.restart:
            begin_anew(shared)
    else:
        gather(models.named_modules(), slots, shared.parameters, gradients=False)
        shared.average.copy_(shared.parameters)
    stop = recipe.plan.steps if until is None else min(until, recipe.plan.steps)
    summary = {"steps": stop, "samples": stop * recipe.batch}
    if start >= stop:
        return summary | {"seconds": round(seconds, 1)}
    data.share_memory()

    def told() -> Mapping[str, float]:
        loss, guided = shared.report.mean(0).tolist()
        return {"loss": loss, "guided": guided}

    def save(step: int, spent: float) -> None:
        tensors = {name: getattr(shared, name) for name in ("parameters", "average", "first", "second")}
        write_checkpoint(checkpoint, tensors, notes={"step": step, "seconds": spent})
        if at_checkpoint is not None:
            at_checkpoint(step)

    seconds = train_together(
        Worker,
        workers=recipe.workers,
        arguments={"state": shared, "data": data, "recipe": recipe, "vocabulary": vocabulary},
        name="FLUX",
        plan=recipe.plan,
        start=start,
        stop=stop,
        told=told,
        save=save,
        seconds_before=seconds,
        log=state / "flux.jsonl",
        batch=recipe.batch,
        quiet=quiet,
    )
    return summary | {"seconds": round(seconds, 1)}


def trained_flux(*, vocabulary: int, recipe: FluxRecipe, state: Path, average: bool = True) -> FluxModels:
    """The trained models, from the moving average (or the last parameters)."""
    models = fresh_models(vocabulary=vocabulary, recipe=recipe)
    tensors, _ = read_checkpoint(state / "flux.safetensors")
    scatter(models.named_modules(), lay_out(models.named_modules()), tensors["average" if average else "parameters"])
    for module in models.named_modules().values():
        module.eval()
    return models

"""Train the tuning-free rival on the Stage-1 people: `python -m metalora.miniworld.build.rival out=DIR`.

`begin=ADAPTER.safetensors steps=N people=M` begins with an adapter of an earlier base instead of from nothing.

The base is the shipped, frozen one; rectified flow as in every other training, on processes that share the
adapter as one flat vector. Running the command again continues.

Legend: B batch, N image tokens, C channels of a packed token, P parameters.
"""

import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor
from transformers import CLIPTextModel, T5EncoderModel

from metalora.adapters.artifacts import file_sha256, read_tensors
from metalora.adapters.face_adapter import FaceAdapter, FaceAdapterShape, save_face_adapter
from metalora.backbones.fingerprint import fingerprint
from metalora.core.atomic import write_json
from metalora.core.errors import UserError
from metalora.miniworld.build.data import generator, torch_generator
from metalora.miniworld.build.flat import Moments, adamw_step, gather, lay_out, scatter, share
from metalora.miniworld.build.flux import draw_time, error_weights
from metalora.miniworld.build.flux_data import image_ids, pack
from metalora.miniworld.build.forward import rotary, velocity
from metalora.miniworld.build.loop import Plan, fast_dtype, read_checkpoint, write_checkpoint
from metalora.miniworld.build.models import TEXT_LENGTH
from metalora.miniworld.build.rival_data import RivalData, load_data, write_data
from metalora.miniworld.build.together import train_together

WEIGHTS = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class RivalRecipe:
    """Length, data and rates of the rival's training."""

    plan: Plan
    people: int = 2000
    photos: int = 12
    captions: int = 4
    batch: int = 64
    rate: float = 1e-3
    decay: float = 0.01
    clip: float = 1.0
    face_weight: float = 5.0
    """Weight of an error inside the face's box, as in the base's training."""
    identity_tokens: int = 4
    workers: int = 2
    compile: bool = True
    seed: int = 21


RIVAL = RivalRecipe(plan=Plan(steps=10_000, warmup=0.018, checkpoint_seconds=60.0))


def fresh_adapter(recipe: RivalRecipe, transformer: FluxTransformer2DModel, data: RivalData) -> FaceAdapter:
    """An untrained adapter of the base's and the data's sizes."""
    config = transformer.config
    shape = FaceAdapterShape(
        width=config.num_attention_heads * config.attention_head_dim,
        heads=config.num_attention_heads,
        blocks=config.num_layers + config.num_single_layers,
        embedding=data.embeddings.shape[1],
        patches=data.patches.shape[1],
        features=data.patches.shape[2],
        identity_tokens=recipe.identity_tokens,
    )
    return FaceAdapter(shape, seed=recipe.seed)


def draw_batch(data: RivalData, *, step: int, rank: int, recipe: RivalRecipe) -> dict[str, Tensor]:
    """This process's part of batch `step`, a pure function of (seed, step, rank)."""
    rng, source = generator(recipe.seed, step, rank), torch_generator(recipe.seed, "noise", step, rank)
    count = recipe.batch // recipe.workers
    chosen = torch.from_numpy(rng.integers(0, len(data.latents), count))
    clean = pack(data.latents[chosen].float())
    noise, t = torch.randn(clean.shape, generator=source), draw_time(count, source=source)
    return {
        "noisy": (1 - t[:, None, None]) * clean + t[:, None, None] * noise,
        "time": t,
        "target": noise - clean,
        "tokens": data.tokens[chosen, torch.from_numpy(rng.integers(0, recipe.captions, count))].long(),
        "embedding": data.embeddings[chosen].to(fast_dtype()),
        "patches": data.patches[chosen].to(fast_dtype()),
        "weights": error_weights(data.faces[chosen].float(), t, face_weight=recipe.face_weight),
    }


class Worker:
    """One of the training's processes: adds its part of the gradient, updates its share of the parameters."""

    def __init__(
        self,
        rank: int,
        *,
        state: Mapping[str, Tensor],
        data: RivalData,
        recipe: RivalRecipe,
        weights: Path,
        barrier: Any,
    ) -> None:
        torch.set_num_threads(1)
        self.began = time.process_time()
        self.rank, self.state, self.data, self.recipe, self.barrier = rank, state, data, recipe, barrier
        self.transformer, self.text, self.pooled = _frozen(weights)
        self.adapter = fresh_adapter(recipe, self.transformer, data).to(fast_dtype())
        self.slots = lay_out({"adapter": self.adapter})
        self.mine = share(self.slots, rank=rank, world=recipe.workers)[1]
        side = round(data.faces.shape[1] ** 0.5)
        self.rotary = rotary(self.transformer, text_tokens=TEXT_LENGTH, image_ids=image_ids(side, side))
        self.loss = torch.compile(self._loss, dynamic=False) if recipe.compile else self._loss

    def _loss(self, part: dict[str, Tensor], text_BTW: Tensor, pooled_BW: Tensor) -> tuple[Tensor, Tensor]:
        tokens, blocks = self.adapter.tokens(part["embedding"], part["patches"]), list(self.adapter.blocks)
        predicted = velocity(
            self.transformer,
            part["noisy"].to(fast_dtype()),
            time_B=part["time"],
            guidance_B=torch.ones_like(part["time"]),
            text_BTW=text_BTW,
            pooled_BW=pooled_BW,
            rotary_LD=self.rotary,
            cross=lambda place, hidden: blocks[place](hidden, tokens),
        )
        squared = (predicted.float() - part["target"]).square().mean(2)
        return (squared * part["weights"]).mean(), squared.detach().mean()

    def step(self, step: int) -> None:
        """Forward, backward and update of step `step`; every process must call it."""
        state, recipe = self.state, self.recipe
        scatter({"adapter": self.adapter}, self.slots, state["parameters"])
        part = draw_batch(self.data, step=step, rank=self.rank, recipe=recipe)
        with torch.no_grad():
            text, pooled = self.text(part["tokens"])[0], self.pooled(part["tokens"]).pooler_output
        weighted, error = self.loss(part, text, pooled)
        self.adapter.zero_grad(set_to_none=True)
        weighted.backward()
        gather({"adapter": self.adapter}, self.slots, state["gradients"][self.rank], gradients=True)
        state["report"][self.rank, 0], state["report"][self.rank, 1] = error, weighted.detach()
        state["computed"][self.rank] = time.process_time() - self.began
        self.barrier.wait()
        gradient = state["gradients"].mean(0)
        gradient *= (recipe.clip / (gradient.norm() + 1e-6)).clamp(max=1.0)
        adamw_step(
            self.mine,
            step=step,
            parameters_P=state["parameters"],
            gradients_P=gradient,
            moments=Moments(state["first"], state["second"]),
            rate=recipe.rate * recipe.plan.rate(step),
            decay=recipe.decay,
        )
        self.barrier.wait()


def _frozen(weights: Path) -> tuple[FluxTransformer2DModel, T5EncoderModel, CLIPTextModel]:
    """The base and its text encoders in what is fast, but for the embedding of time and guidance."""
    folder, dtype = weights / "flux", fast_dtype()
    transformer = FluxTransformer2DModel.from_pretrained(folder / "transformer", torch_dtype=dtype)
    text = T5EncoderModel.from_pretrained(folder / "text_encoder_2", dtype=dtype)
    pooled = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=dtype)
    for module in (transformer, text, pooled):
        module.requires_grad_(False).eval()
    transformer.time_text_embed.float()
    return transformer, text, pooled


def _worker(rank: int, *, paths: Sequence[Path], **arguments: Any) -> Worker:
    return Worker(rank, data=load_data(paths), **arguments)


def train_rival(
    paths: list[Path],
    *,
    recipe: RivalRecipe,
    state: Path,
    weights: Path = WEIGHTS,
    begin: Path | None = None,
    quiet: bool = False,
    until: int | None = None,
) -> dict[str, Any]:
    """Train and leave `state/rival.safetensors`; continues from it when it is there.

    Args:
        paths: parts of the data, as from `write_data`.
        begin: an adapter to begin with, whatever base it was made for; None for an untrained one.
        until: stop after this many steps; None for the plan's length.

    Returns:
        Steps, samples, seconds, and the seconds that all processes computed.
    """
    checkpoint = state / "rival.safetensors"
    adapter = fresh_adapter(recipe, _frozen(weights)[0], load_data(paths))
    if begin is not None:
        adapter.load_state_dict({name: x.float() for name, x in read_tensors(begin, what="face adapter")[0].items()})
    slots = lay_out({"adapter": adapter})
    size = slots[-1].stop
    shared = {name: torch.zeros(size).share_memory_() for name in ("parameters", "first", "second")}
    shared["gradients"] = torch.zeros(recipe.workers, size).share_memory_()
    shared["report"] = torch.zeros(recipe.workers, 2).share_memory_()
    shared["computed"] = torch.zeros(recipe.workers, dtype=torch.float64).share_memory_()
    start, seconds, computed = 0, 0.0, 0.0
    if checkpoint.is_file():
        tensors, notes = read_checkpoint(checkpoint)
        for name in ("parameters", "first", "second"):
            shared[name].copy_(tensors[name])
        start, seconds, computed = notes["step"], notes["seconds"], notes.get("core_seconds", 0.0)
    else:
        gather({"adapter": adapter}, slots, shared["parameters"], gradients=False)
    stop = recipe.plan.steps if until is None else min(until, recipe.plan.steps)
    summary: dict[str, Any] = {"steps": stop, "samples_seen": stop * recipe.batch}
    if start >= stop:
        return summary | {"seconds": round(seconds, 1), "core_seconds": round(computed, 1)}

    def told() -> Mapping[str, float]:
        loss, weighted = shared["report"].mean(0).tolist()
        return {"loss": loss, "weighted": weighted}

    def save(step: int, spent: float) -> None:
        tensors = {name: shared[name] for name in ("parameters", "first", "second")}
        notes = {"step": step, "seconds": spent, "core_seconds": computed + shared["computed"].sum().item()}
        write_checkpoint(checkpoint, tensors, notes=notes)

    seconds = train_together(
        _worker,
        workers=recipe.workers,
        arguments={"paths": paths, "state": shared, "recipe": recipe, "weights": weights},
        name="rival",
        plan=recipe.plan,
        start=start,
        stop=stop,
        told=told,
        save=save,
        seconds_before=seconds,
        log=state / "rival.jsonl",
        batch=recipe.batch,
        quiet=quiet,
    )
    computed += shared["computed"].sum().item()
    return summary | {"seconds": round(seconds, 1), "core_seconds": round(computed, 1)}


def export_rival(
    folder: Path,
    *,
    recipe: RivalRecipe,
    state: Path,
    data: RivalData,
    trained: Mapping[str, Any],
    weights: Path,
    command: str,
    begin: Path | None = None,
) -> Path:
    """Write the trained adapter (bf16) with a provenance.json beside it.

    Args:
        begin: the adapter that the training began with; its iterations, on the base that it was made for, are added up.
    """
    before = read_tensors(begin, what="face adapter")[1] if begin else {}
    adapter = fresh_adapter(recipe, _frozen(weights)[0], data)
    tensors, _ = read_checkpoint(state / "rival.safetensors")
    scatter({"adapter": adapter}, lay_out({"adapter": adapter}), tensors["parameters"])
    path = folder / "model.safetensors"
    save_face_adapter(
        path,
        adapter,
        metadata={
            "backbone": "mini",
            "backbone_fingerprint": fingerprint(weights / "flux" / "transformer"),
            "face_sha256": file_sha256(weights / "face" / "model.safetensors"),
            "people": f"{recipe.people} of split stage1",
            "iterations": str(trained["steps"] + int(before.get("iterations", 0))),
        },
    )
    versions = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    write_json(
        folder / "provenance.json",
        {
            "command": command,
            "recipe": asdict(recipe),
            "trained": dict(trained),
            **({"begun_with": _told(begin, before)} if begin else {}),
            "versions": versions,
            "sha256": {path.name: file_sha256(path)},
        },
    )
    return path


def _words(begin: Path | None, recipe: RivalRecipe) -> list[str]:
    return [f"begin={begin.name}", f"steps={recipe.plan.steps}", f"people={recipe.people}"] if begin else []


def _told(begin: Path, before: Mapping[str, str]) -> dict[str, str]:
    kept = {key: before[key] for key in ("iterations", "backbone_fingerprint") if key in before}
    return {"sha256": file_sha256(begin), **kept}


def main(argv: Sequence[str]) -> int:
    """Make the data, train, export; `out=DIR [begin=ADAPTER.safetensors] [steps=N] [people=M]`."""
    options = {"out": "", "begin": "", "steps": str(RIVAL.plan.steps), "people": str(RIVAL.people)}
    for word in argv:
        name, _, value = word.partition("=")
        if name not in options or not value or (name in ("steps", "people") and not value.isdigit()):
            expected = "out=DIR [begin=ADAPTER.safetensors] [steps=N] [people=M]"
            raise UserError("unknown option", expected=expected, got=word, key=name)
        options[name] = value
    if not options["out"]:
        raise UserError("no folder for the build", expected="out=DIR", key="out")
    out, begin = Path(options["out"]), Path(options["begin"]) if options["begin"] else None
    plan, compiled = replace(RIVAL.plan, steps=int(options["steps"])), fast_dtype() != torch.float32
    recipe = replace(RIVAL, plan=plan, people=int(options["people"]), compile=compiled)
    told: Callable[[int, int], None] = lambda done, people: print(f"data: {done} of {people} people", end="\r")  # noqa: E731
    paths = write_data(
        out / "data",
        people=recipe.people,
        photos=recipe.photos,
        captions=recipe.captions,
        seed=0,
        weights=WEIGHTS,
        progress=told,
    )
    trained = train_rival(paths, recipe=recipe, state=out, begin=begin)
    path = export_rival(
        out / "ip_adapter",
        recipe=recipe,
        state=out,
        data=load_data(paths),
        trained=trained,
        weights=WEIGHTS,
        command=" ".join(["python -m metalora.miniworld.build.rival out=DIR", *_words(begin, recipe)]),
        begin=begin,
    )
    print(f"adapter: {path}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")

"""The whole chain from nothing to weights: corpus, portraits, autoencoder, face embedder, mini-CLIP, base, export.

Every stage leaves its result in the state folder and is skipped when it is there; a stage that was cut continues.
"""

import hashlib
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from rich.console import Console

from metalora.core.atomic import write_json
from metalora.miniworld.build import recipes
from metalora.miniworld.build.clip import ClipRecipe, train_clip, trained_clip
from metalora.miniworld.build.data import Corpus, load_corpus
from metalora.miniworld.build.decoder import DecoderRecipe, train_decoder, with_trained_decoder
from metalora.miniworld.build.export import export_clip, export_face, export_flux, export_vae
from metalora.miniworld.build.face import FaceRecipe, train_face, trained_face
from metalora.miniworld.build.flux import FluxRecipe, train_flux, trained_flux
from metalora.miniworld.build.flux_data import FluxData, draw_captions, join_data
from metalora.miniworld.build.loop import read_checkpoint, write_checkpoint
from metalora.miniworld.build.portraits import write_portraits
from metalora.miniworld.build.vae import VaeRecipe, encode_corpus, train_vae, trained_vae
from metalora.miniworld.build.wordlist import make_tokenizer
from metalora.miniworld.corpus import write_corpus


@dataclass(frozen=True)
class Chain:
    """All recipes of one build.

    Args:
        corpus, portraits: arguments of `write_corpus` and `write_portraits` (people, photos, seed).
        vae_rows: which of the corpus's images the autoencoder is trained on, the first so many of a size.
        clip, flux: parts of a training; each goes on where the one before ended (its steps count from the first).
    """

    corpus: dict[str, int]
    portraits: dict[str, int]
    vae_rows: dict[str, int]
    vae: VaeRecipe
    decoder: DecoderRecipe
    face: FaceRecipe
    clip: tuple[ClipRecipe, ...]
    flux: tuple[FluxRecipe, ...]


SHIPPED = Chain(
    corpus=recipes.CORPUS,
    portraits=recipes.PORTRAITS,
    vae_rows=recipes.VAE_ROWS,
    vae=recipes.VAE,
    decoder=recipes.DECODER,
    face=recipes.FACE,
    clip=recipes.CLIP,
    flux=recipes.FLUX,
)


def build(state: Path, *, chain: Chain, command: str, quiet: bool = False) -> Path:
    """Run every stage that is not done and write the weights.

    Args:
        state: folder for the corpus, checkpoints and results.
        command: what provenance.json tells as the command.

    Returns:
        The folder of weights, `state/weights`.
    """
    state.mkdir(parents=True, exist_ok=True)
    console = Console(quiet=quiet)
    weights = state / "weights"

    def stage(name: str, work: Callable[[], dict[str, Any] | None]) -> None:
        done = state / f"{name}.done.json"
        if done.is_file():
            console.print(f"{name}: done before")
            return
        began = time.monotonic()
        summary = work() or {}
        write_json(done, {"seconds": round(time.monotonic() - began, 1), **summary})
        console.print(f"{name}: done")

    def told(name: str) -> Callable[[str, int, int], None]:
        return lambda _, finished, total: console.print(f"{name}: {finished} of {total}", end="\r")

    def corpus() -> Corpus:
        return load_corpus(state / "corpus").select(held_out=False)

    def vae_corpus() -> Corpus:
        return load_corpus(state / "corpus", rows=chain.vae_rows).select(held_out=False)

    def portraits() -> Corpus:
        return load_corpus(state / "portraits").select(held_out=False)

    def latents() -> None:
        found = encode_corpus(
            load_corpus(state / "corpus"), vae=trained_vae(vae_corpus(), recipe=chain.vae, state=state)
        )
        write_checkpoint(state / "latents.safetensors", found, notes={})

    def captions() -> None:
        tokens = draw_captions(corpus(), captions=chain.flux[0].captions, seed=chain.flux[0].seed)
        write_checkpoint(state / "flux_tokens.safetensors", tokens, notes={})

    def decoder() -> dict[str, float]:
        found = read_checkpoint(state / "latents.safetensors")[0]
        vae = trained_vae(vae_corpus(), recipe=chain.vae, state=state)
        return train_decoder(corpus(), latents=found, vae=vae, recipe=chain.decoder, state=state, quiet=quiet)

    def flux_data() -> FluxData:
        tokens = read_checkpoint(state / "flux_tokens.safetensors")[0]
        return join_data(corpus(), latents=read_checkpoint(state / "latents.safetensors")[0], tokens=tokens)

    def clip() -> dict[str, float]:
        return [train_clip(corpus(), recipe=part, state=state, quiet=quiet) for part in chain.clip][-1]

    def flux() -> dict[str, float]:
        data, size = flux_data(), len(make_tokenizer())
        return [train_flux(data, vocabulary=size, recipe=part, state=state, quiet=quiet) for part in chain.flux][-1]

    stage("corpus", lambda: write_corpus(state / "corpus", **chain.corpus, progress=told("corpus")))
    stage("portraits", lambda: write_portraits(state / "portraits", **chain.portraits))
    stage("vae", lambda: train_vae(vae_corpus(), recipe=chain.vae, state=state, quiet=quiet))
    stage("face", lambda: train_face([corpus(), portraits()], recipe=chain.face, state=state, quiet=quiet))
    stage("clip", clip)
    stage("latents", latents)
    stage("decoder", decoder)
    stage("captions", captions)
    stage("flux", flux)
    stage("weights", lambda: write_weight_files(state, weights, chain=chain, vae_corpus=vae_corpus(), command=command))
    return weights


def write_weight_files(state: Path, weights: Path, *, chain: Chain, vae_corpus: Corpus, command: str) -> None:
    """Export every trained model into `weights` with its provenance."""
    vae = trained_vae(vae_corpus, recipe=chain.vae, state=state)
    export_vae(weights / "flux", vae=with_trained_decoder(vae, state=state))
    models = trained_flux(vocabulary=len(make_tokenizer()), recipe=chain.flux[-1], state=state)
    export_flux(weights / "flux", models=models, shift=chain.flux[-1].shift)
    export_face(weights / "face", model=trained_face(recipe=chain.face, state=state), config=chain.face.config())
    export_clip(weights / "clip", model=trained_clip(recipe=chain.clip[-1], state=state))
    trainings = {name: read_checkpoint(state / f"{name}.safetensors")[1] for name in parts_of(chain)}
    write_json(weights / "provenance.json", provenance(weights, chain=chain, trainings=trainings, command=command))


def parts_of(chain: Chain) -> dict[str, tuple[Any, ...]]:
    """The recipes of every training by its name, in the order they ran."""
    one = {"vae": (chain.vae,), "decoder": (chain.decoder,), "face": (chain.face,)}
    return one | {"clip": chain.clip, "flux": chain.flux}


def samples_seen(parts: Sequence[Any], *, step: int) -> int:
    """Samples of a training that has come to `step`; every part ends at its plan's step and has its own batch size."""
    ends = [min(step, part.plan.steps) for part in parts]
    return sum((end - start) * part.batch for part, start, end in zip(parts, [0, *ends], ends, strict=False))


def provenance(weights: Path, *, chain: Chain, trainings: dict[str, dict[str, Any]], command: str) -> dict[str, Any]:
    """Where the weights come from: command, recipes with seeds, steps, samples, seconds, versions, hashes of the files.

    Args:
        trainings: the notes of each checkpoint: step and seconds.
    """
    skipped = {"provenance.json", "README.md", "quality.json", "world.jpg"}
    files = sorted(path for path in weights.rglob("*") if path.is_file() and path.name not in skipped)
    parts = parts_of(chain)
    return {
        "command": command,
        "recipes": asdict(chain),
        "trained": {
            name: {
                "steps": notes["step"],
                "samples_seen": samples_seen(parts[name], step=notes["step"]),
                "seconds": round(notes["seconds"], 1),
            }
            for name, notes in trainings.items()
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
        "sha256": {
            path.relative_to(weights).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        },
    }

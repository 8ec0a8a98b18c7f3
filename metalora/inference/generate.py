"""Images from exported LoRA files: several people's files in one batch, through the stock pipeline.

Noise is keyed by (seed, prompt), so every method and the untouched base start from the same noise and CLIP-I compares
like with like; an image does not depend on its batch mates. Shape legend: B batch, H W pixels.
"""

import inspect
import io
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metalora.adapters.artifacts import file_sha256, load_lora
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import eject, inject
from metalora.adapters.transform import filled, ranks, scaled
from metalora.core.atomic import write_bytes
from metalora.core.contracts import Backbone, Drawing, GeneratedImage, LoraFile, TextEmbedding
from metalora.core.device import explained
from metalora.core.errors import UserError
from metalora.core.manifest import FILE_NAME, check_name, read_manifest, to_line, write_manifest
from metalora.core.memory import device_peak_mb
from metalora.core.noise import generator
from metalora.inference.start import Start

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class GenerationJob:
    """One image to make. `lora=None` asks for the untouched base: rank and iterations are 0 then."""

    identity: str
    class_noun: str
    method: str
    rank: int
    iterations: int
    lora: Path | None
    prompt_id: str
    prompt: str
    seed: int
    reference: Path | None = None
    """The photo the LoRA was trained on, where it is known."""
    digest: str = ""
    """sha256 of what a method without LoRAs draws the person with; part of what the image depends on."""


def image_noise(*, seed: int, prompt_id: str) -> torch.Generator:
    """Where an image's noise comes from: `pipe(prompt, generator=image_noise(...))` makes the same image."""
    return generator("generate", seed, prompt_id)


def check_size(backbone: Backbone, size: tuple[int, int]) -> None:
    """Raise UserError when the backbone cannot make images of this (height, width)."""
    if any(side % backbone.pixel_multiple for side in size):
        raise UserError(
            "the backbone cannot make images of this size",
            expected=f"height and width that are multiples of {backbone.pixel_multiple}",
            got=f"{size[0]} x {size[1]}",
            key="sampling.size",
        )


def generate(
    backbone: Backbone,
    jobs: Sequence[GenerationJob],
    *,
    steps: int,
    guidance: float,
    size: tuple[int, int],
    batch_size: int,
    out: Path,
    texts: Mapping[str, TextEmbedding] | None = None,
    strength: float = 1.0,
    start: Start | None = None,
    overwrite: bool = True,
    progress: Progress | None = None,
) -> tuple[GeneratedImage, ...]:
    """Make every image that is not there yet; returns one record per job, in the order of `jobs`.

    Writes `out/images/IDENTITY/METHOD-rRANK-ITERATIONS/PROMPT-SEED.png` and `out/manifest.jsonl`, which grows with
    every batch: a run that was cut continues. An image is there when its file is and its record is the one asked for; a
    LoRA file with other content, other steps, guidance or base make it again. One writer per folder.

    Args:
        size: (height, width) in pixels.
        batch_size: images per call of the pipeline; a batch mixes people and methods of equal rank.
        texts: prompt to its embedding, a single row; by default the backbone embeds them, before the denoiser is read.
        strength: what the LoRAs' updates are multiplied with; 1 is their full effect.
        start: a picture of this size to start from instead of noise alone.
        overwrite: whether an image that is there may make way for another one under its name.
        progress: called as progress("generate", done, total).

    Raises:
        UserError: two jobs for one file, a size the backbone cannot make, a LoRA file that does not fit, an image that
            may not make way.
    """
    check_size(backbone, size)
    out = Path(out)
    sampling = _Sampling(steps, float(guidance), (int(size[0]), int(size[1])), float(strength), start)
    records = _records(backbone, jobs, sampling)
    kept = _kept(out)
    made = {_content(image) for image in kept}
    todo = [(job, image) for job, image in zip(jobs, records, strict=True) if _content(image) not in made]
    report = progress or (lambda stage, done, total: None)
    report("generate", len(jobs) - len(todo), len(jobs))
    costs = {image.file: {"seconds": image.seconds, "peak_memory_mb": image.peak_memory_mb} for image in kept}
    if todo:
        stale = {image.file for _, image in todo}
        if not overwrite and (others := stale & {image.file for image in kept}):
            raise UserError(
                f"{out} holds other images under the same names",
                expected="a new folder, or what it was made with",
                got=", ".join(sorted(others)[:3]),
                key="out",
            )
        write_manifest(out / FILE_NAME, [image for image in kept if image.file not in stale])
        with (out / FILE_NAME).open("a", encoding="utf-8") as manifest:
            finished = len(jobs) - len(todo)
            for drawn in _batches(backbone, todo, sampling, texts=texts, batch_size=batch_size):
                batch = [image for _, image in drawn.batch]
                for image, pixels_HW3 in zip(batch, drawn.pixels_BHW3, strict=True):
                    write_bytes(out / image.file, _png(pixels_HW3))
                cost = {"seconds": round(drawn.seconds / len(batch), 4), "peak_memory_mb": device_peak_mb()}
                costs |= {image.file: cost for image in batch}
                manifest.write("".join(to_line(replace(image, **cost)) for image in batch))
                manifest.flush()
                os.fsync(manifest.fileno())
                finished += len(batch)
                report("generate", finished, len(jobs))
        asked = {image.file for image in records}
        others = [image for image in kept if image.file not in asked]
        records = [replace(image, **costs[image.file]) for image in records]
        write_manifest(out / FILE_NAME, [*others, *records])
        return tuple(records)
    return tuple(replace(image, **costs[image.file]) for image in records)


@dataclass(frozen=True)
class _Sampling:
    """How all images of a run are drawn."""

    steps: int
    guidance: float
    size: tuple[int, int]
    strength: float
    start: Start | None


def _records(backbone: Backbone, jobs: Sequence[GenerationJob], sampling: _Sampling) -> list[GeneratedImage]:
    digests = {path: _digest(path) for path in {job.lora for job in jobs} if path is not None}
    photos = {path: file_sha256(path) for path in {job.reference for job in jobs} if path is not None}
    records = [
        GeneratedImage(
            file=_file(job),
            method=job.method,
            identity=job.identity,
            class_noun=job.class_noun,
            prompt_id=job.prompt_id,
            prompt=job.prompt,
            seed=job.seed,
            rank=job.rank,
            iterations=job.iterations,
            lora="" if job.lora is None else str(job.lora),
            lora_sha256=job.digest if job.lora is None else digests[job.lora],
            base_model=f"{backbone.name}@{backbone.fingerprint[:16]}",
            steps=sampling.steps,
            guidance=sampling.guidance,
            size=sampling.size,
            strength=sampling.strength,
            start_sha256="" if sampling.start is None else sampling.start.digest,
            denoise=1.0 if sampling.start is None else sampling.start.denoise,
            reference="" if job.reference is None else f"{job.reference.parent.name}/{job.reference.name}",
            reference_sha256="" if job.reference is None else photos[job.reference],
        )
        for job in jobs
    ]
    files = [image.file for image in records]
    if len(set(files)) < len(files):
        twice = next(file for file in files if files.count(file) > 1)
        raise UserError("two images would be written to one file", got=twice, key="prompts, seeds")
    return records


def _digest(path: Path) -> str:
    if not path.is_file():
        raise UserError("the LoRA file is missing", expected="a .safetensors file", got=str(path), key="lora")
    return file_sha256(path)


def _file(job: GenerationJob) -> str:
    cell = job.method if job.lora is None else f"{job.method}-r{job.rank}-{job.iterations:06d}"
    parts = ("images", job.identity, cell, f"{job.prompt_id}-{job.seed}.png")
    check_name(*parts[1:])
    return "/".join(parts)


def _kept(out: Path) -> list[GeneratedImage]:
    if not (out / FILE_NAME).is_file():
        return []
    return [image for image in read_manifest(out, cut_allowed=True) if (out / image.file).is_file()]


def _content(image: GeneratedImage) -> GeneratedImage:
    """What an image depends on: the LoRA's bytes, not where they lie nor which photo they know."""
    return replace(image, lora="", reference="", reference_sha256="")


Todo = list[tuple[GenerationJob, GeneratedImage]]


@dataclass(frozen=True)
class _Drawn:
    """A batch of images and the seconds it took."""

    batch: Todo
    pixels_BHW3: np.ndarray
    seconds: float


def _batches(
    backbone: Backbone,
    todo: Todo,
    sampling: _Sampling,
    *,
    texts: Mapping[str, TextEmbedding] | None,
    batch_size: int,
) -> Iterator[_Drawn]:
    """Make the images batch by batch: the base first, then rank by rank with one bank injected per rank."""
    embedded = _Texts(backbone, [job.prompt for job, _ in todo], texts)
    pipe = _pipeline(backbone, sampling.start)

    def draw(batch: Todo, rows: "_LoraRows | None" = None) -> _Drawn:
        started = time.perf_counter()
        text = embedded.of([job.prompt for job, _ in batch]).to(backbone.device)
        drawing = backbone.drawing(text, empty=embedded.empty, guidance=sampling.guidance)
        noises = [image_noise(seed=job.seed, prompt_id=job.prompt_id) for job, _ in batch]
        if rows is not None:
            rows.bank.set_route(rows.of([job.lora for job, _ in batch if job.lora is not None]).repeat(drawing.copies))
        with explained(key="sampling.batch_size, sampling.size"):
            pixels_BHW3 = _run(pipe, drawing, sampling, noises=noises)
        return _Drawn(batch, pixels_BHW3, time.perf_counter() - started)

    ordered = sorted(todo, key=lambda pair: (_rank(pair[0]), str(pair[0].lora)))
    for rank, group in itertools.groupby(ordered, key=lambda pair: _rank(pair[0])):
        batches = _cut(list(group), batch_size)
        if rank == 0:
            for batch in batches:
                yield draw(batch)
            continue
        most = max(len({job.lora for job, _ in batch}) for batch in batches)
        rows = _LoraRows(backbone, rank=rank, rows=most, strength=sampling.strength)
        handle = inject(backbone.denoiser, rows.bank)
        try:
            for batch in batches:
                yield draw(batch, rows)
                rows.bank.clear_route()
        finally:
            eject(handle)


def _pipeline(backbone: Backbone, start: Start | None) -> Any:
    """The stock pipeline, or its sibling that starts from a picture; the same modules in each."""
    pipe = backbone.pipeline(text=False)
    if start is not None:
        from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting

        pipe = (AutoPipelineForImage2Image if start.mask is None else AutoPipelineForInpainting).from_pipe(pipe)
        pipe.set_progress_bar_config(disable=True)
    return pipe


def _rank(job: GenerationJob) -> int:
    return 0 if job.lora is None else job.rank


def _cut(pairs: Todo, batch_size: int) -> list[Todo]:
    return [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]


@torch.no_grad()
def _run(pipe: Any, drawing: Drawing, sampling: _Sampling, *, noises: Sequence[torch.Generator]) -> np.ndarray:
    start: dict[str, Any] = {}
    if sampling.start is not None:  # one copy per image: each then draws from its own generator alone
        start = {"image": [sampling.start.image] * len(noises), "strength": sampling.start.denoise}
        if sampling.start.mask is not None:
            start["mask_image"] = [sampling.start.mask] * len(noises)
    images_BHW3 = pipe(
        generator=list(noises),
        **_size(pipe, sampling),
        num_inference_steps=sampling.steps,
        output_type="np",
        **drawing.arguments,
        **start,
    ).images
    # A diverged LoRA gives NaN: black, in which no face is found, rather than an end to the whole sweep.
    return np.nan_to_num(images_BHW3 * 255).round().astype(np.uint8)


def _size(pipe: Any, sampling: _Sampling) -> dict[str, int]:
    """Height and width; some pipelines that start from a picture take its size instead."""
    accepted = inspect.signature(pipe.__call__).parameters
    size = {"height": sampling.size[0], "width": sampling.size[1]}
    return {name: value for name, value in size.items() if name in accepted}


def _png(pixels_HW3: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HW3).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


class _Texts:
    """Every distinct prompt, embedded once and alone: no other prompt of a run can change its last bits."""

    def __init__(self, backbone: Backbone, prompts: Sequence[str], texts: Mapping[str, TextEmbedding] | None) -> None:
        distinct = list(dict.fromkeys(prompts))
        self._row = {prompt: row for row, prompt in enumerate(distinct)}
        wanted = [*distinct, ""] if backbone.needs_empty_prompt else distinct
        with torch.no_grad():
            parts = [backbone.encode_text([prompt]) if texts is None else texts[prompt] for prompt in wanted]
        self.empty = parts.pop().to(backbone.device) if backbone.needs_empty_prompt else None
        self._all = TextEmbedding(torch.cat([p.tokens_BLD for p in parts]), torch.cat([p.pooled_BP for p in parts]))

    def of(self, prompts: Sequence[str]) -> TextEmbedding:
        """The embeddings of a batch of prompts."""
        rows_B = torch.tensor([self._row[prompt] for prompt in prompts], device=self._all.pooled_BP.device)
        return self._all.rows(rows_B)


class _LoraRows:
    """A plain bank whose rows hold LoRA files; a file stays in its row until the row is needed for another."""

    def __init__(self, backbone: Backbone, *, rank: int, rows: int, strength: float) -> None:
        self.bank = AdapterBank(
            backbone.layer_shapes,
            identities=[str(row) for row in range(rows)],
            rank=rank,
            meta_rank=None,
            seed=0,
        )
        self.bank.to(backbone.device)
        self._rank, self._strength = rank, strength
        self._held: list[Path | None] = [None] * rows

    def of(self, paths: Sequence[Path]) -> Tensor:
        """The row of each file, loading those that are not in the bank yet."""
        wanted = set(paths)
        free = [row for row, path in enumerate(self._held) if path not in wanted]
        for path in dict.fromkeys(paths):
            if path not in self._held:
                row = free.pop()
                lora = filled(scaled(_checked(load_lora(path), rank=self._rank), self._strength), self.bank.layers)
                self.bank.load_lora(str(row), lora)
                self._held[row] = path
        row_of = {path: row for row, path in enumerate(self._held)}
        return torch.tensor([row_of[path] for path in paths])


def _checked(lora: LoraFile, *, rank: int) -> LoraFile:
    if ranks(lora)[-1] != rank:
        raise UserError(
            "a LoRA file does not have the rank it is asked for with",
            expected=f"rank {rank}",
            got=f"{ranks(lora)} in {lora.path}",
            key="rank",
        )
    return lora

"""Grids of what a personalization has learned, drawn from its exported files the way `metalora generate` draws."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from metalora.core.atomic import atomic_path
from metalora.core.errors import UserError
from metalora.core.manifest import read_manifest
from metalora.core.metric_names import SAMPLES
from metalora.inference.generate import GenerationJob
from metalora.running.progress import Progress
from metalora.running.setting import Setting
from metalora.tasks.generate import embedded_prompts, generate
from metalora.tracking.tracker import Tracker
from metalora.training.cohorts import lora_path

GAP = 4
"""Pixels between the pictures of a grid."""


def chosen_people(setting: Setting, people: Mapping[str, str]) -> dict[str, str]:
    """Who is drawn: the first `logger.samples` people.

    Raises:
        UserError: that is no number of people.
    """
    count = setting["logger.samples"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise UserError("not a number of people", expected="0 or more", got=str(count), key="logger.samples")
    return dict(list(people.items())[:count])


def embed_sample_prompts(setting: Setting, *, people: Mapping[str, str]) -> None:
    """Keep the prompts' embeddings before the denoiser comes: text encoders and denoiser never share memory."""
    if chosen := chosen_people(setting, people):
        embedded_prompts(setting, {prompt for noun in chosen.values() for prompt in _prompts(setting, noun)})


def draw_samples(
    setting: Setting, *, people: Mapping[str, str], folder: Path, tracker: Tracker, progress: Progress
) -> list[Path]:
    """Draw `logger.samples` people at every checkpoint: a row per person (without a name), a column per prompt.

    After training, since the frozen base is then in memory without adapters: training waits for no picture. The grids
    stay in `folder/samples` and are handed to the dashboard, which may have been told to send no pictures.

    Args:
        people: identity to class noun.
        folder: of the personalization.
    """
    chosen = chosen_people(setting, people)
    if not chosen:
        return []
    jobs = [
        GenerationJob(
            identity=identity,
            class_noun=noun,
            method=setting["method.name"],
            rank=setting["rank"],
            iterations=iterations,
            lora=lora_path(folder, identity, iterations),
            prompt_id=f"prompt-{number:02d}",
            prompt=prompt,
            seed=setting["seed"],
        )
        for iterations in setting.iterations
        for identity, noun in chosen.items()
        for number, prompt in enumerate(_prompts(setting, noun))
    ]
    # Its own folder, and nothing of another task's keys: no starting picture.
    drawing = setting.sharing(out=str(folder / "samples"), init_image=None, mask=None)
    made = generate(drawing, jobs=jobs, label="samples", progress=progress)
    records = read_manifest(made)
    grids = []
    for iterations in setting.iterations:
        rows = [
            [made / one.file for one in records if (one.identity, one.iterations) == (identity, iterations)]
            for identity in chosen
        ]
        grids.append(made / f"grid-{iterations:06d}.png")
        with atomic_path(grids[-1]) as path:
            _grid(rows).save(path, format="PNG")
        tracker.picture(SAMPLES, grids[-1], step=iterations)
    return grids


def _prompts(setting: Setting, noun: str) -> Sequence[str]:
    return setting.words("logger.sample_prompts") or [f"a photo of a {noun}"]


def _grid(rows: Sequence[Sequence[Path]]) -> Image.Image:
    pictures = [[Image.open(path).convert("RGB") for path in row] for row in rows]
    width, height = pictures[0][0].size
    columns = max(len(row) for row in pictures)
    grid = Image.new("RGB", (columns * (width + GAP) - GAP, len(pictures) * (height + GAP) - GAP), "white")
    for y, row in enumerate(pictures):
        for x, picture in enumerate(row):
            grid.paste(picture, (x * (width + GAP), y * (height + GAP)))
    return grid

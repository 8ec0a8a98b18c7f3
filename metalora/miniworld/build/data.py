"""The corpus as the trainings read it: images by size, captions by image, people kept out of every training.

Legend: N images, B batch, H height, W width, L tokens.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from metalora.core.errors import UserError
from metalora.miniworld.shots import Shot

HELD_OUT = 0.05
"""Share of the people of each class (the last by name) that no training sees."""


def generator(seed: int, *keys: int | str) -> np.random.Generator:
    """Randomness that depends on the arguments alone, so that a resumed training draws what an uncut one draws."""
    digest = hashlib.blake2b("/".join(map(str, (seed, *keys))).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def torch_generator(seed: int, *keys: int | str) -> torch.Generator:
    """The same for torch."""
    return torch.Generator().manual_seed(int(generator(seed, *keys).integers(1 << 62)))


@dataclass(frozen=True)
class Corpus:
    """A rendered corpus: `table` has one row per image (and `held_out`), `images[size]` is uint8 [N, H, W, 3]."""

    table: pd.DataFrame
    images: dict[str, np.ndarray]

    def select(self, *, held_out: bool) -> "Corpus":
        """Only the images of people that are (not) kept out of the trainings."""
        return Corpus(self.table[self.table.held_out == held_out].reset_index(drop=True), self.images)

    def batches(self, *, batch: int, seed: int, start: int = 0) -> Iterator[tuple[str, np.ndarray]]:
        """Endless batches of one size each: (size, positions in `table`), a pure function of (seed, step).

        A size is drawn by its share of the images; the images of a size come in a new order every pass.
        """
        positions = {size: group.index.to_numpy() for size, group in self.table.groupby("size", sort=True)}
        sizes = sorted(positions)
        share = np.array([len(positions[size]) for size in sizes], dtype=float)
        share /= share.sum()
        used = dict.fromkeys(sizes, 0)
        orders: dict[tuple[str, int], np.ndarray] = {}
        step = 0
        while True:
            size = str(generator(seed, "size", step).choice(sizes, p=share))
            first, count = used[size], len(positions[size])
            used[size] += batch
            if step >= start:
                picked = np.arange(first, first + batch)
                passes = picked // count
                for number in np.unique(passes):
                    if (size, int(number)) not in orders:
                        orders = {key: order for key, order in orders.items() if key[0] != size or key[1] >= passes[0]}
                        order = generator(seed, "order", size, int(number)).permutation(count)
                        orders[size, int(number)] = order
                rows = [orders[size, int(number)][index % count] for number, index in zip(passes, picked, strict=True)]
                yield size, positions[size][rows]
            step += 1

    def pixels(self, size: str, positions: np.ndarray) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] at the given positions, which all have this size."""
        rows = self.table.row.to_numpy()[positions]
        images_BHWC = np.stack([self.images[size][row] for row in rows])
        return torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1

    def shots(self) -> list[Shot]:
        """The circumstances of every image."""
        return [Shot.from_json(text) for text in self.table["shot"]]


def load_corpus(directory: Path, *, rows: Mapping[str, int] | None = None) -> Corpus:
    """Open a corpus; pictures stay on disk and are mapped.

    Args:
        rows: only the first so many images of these sizes, which may be done before the others are; None for all.

    Raises:
        UserError: the corpus, or the part asked for, is not finished.
    """
    directory = Path(directory)
    if rows is None and not (directory / "manifest.json").is_file():
        raise UserError("the corpus is not finished", expected="a manifest.json", got=str(directory), key="corpus")
    table = pd.read_parquet(directory / "meta.parquet").reset_index(drop=True)
    table["held_out"] = False
    for _, group in table.groupby("class_noun"):
        names = sorted(set(group.identity))
        kept_out = set(names[len(names) - max(1, round(HELD_OUT * len(names))) :])
        table.loc[group.index, "held_out"] = group.identity.isin(kept_out)
    if rows is not None:
        for size, count in rows.items():
            done = finished_rows(directory, size)
            if done < count:
                raise UserError(
                    "the corpus is not finished", expected=f"{count} of {size}", got=str(done), key="corpus"
                )
        table = table[table.row < table["size"].map(rows).fillna(0)].reset_index(drop=True)
    images = {size: np.load(directory / f"images_{size}.npy", mmap_mode="r") for size in sorted(set(table["size"]))}
    if rows is not None:
        images = {size: stored[: rows[size]] for size, stored in images.items()}
    return Corpus(table, images)


def finished_rows(directory: Path, size: str) -> int:
    """How many images of a size are rendered."""
    marker = Path(directory) / f"done_{size}.json"
    return int(json.loads(marker.read_text())["rows"]) if marker.is_file() else 0

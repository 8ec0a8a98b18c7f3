"""A made-up table of scores with pictures on disk: shapes and orders as in a real run, numbers out of a formula."""

from zlib import crc32

import numpy as np
import pandas as pd
from PIL import Image

from metalora.evaluation.score_table import write_scores

GRID = (250, 375, 500, 625, 750)
SPEED = {"lora": 0.0022, "lora_aug": 0.0024, "meta_lora": 0.0041}
TOP = {"lora": 0.42, "lora_aug": 0.52, "meta_lora": 0.55}
COST = {"lora": 0.085, "lora_aug": 0.055, "meta_lora": 0.06}
COPIED = {"lora": 0.16, "lora_aug": 0.02, "meta_lora": 0.04}


def picture(path, seed):
    """A blotch of colour, different for every seed."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(40, 220, (4, 4, 3), dtype=np.uint8))
        small.resize((64, 64), Image.Resampling.BICUBIC).save(path)
    return str(path)


def make_scores(
    folder,
    *,
    ranks=(1,),
    methods=("lora", "lora_aug", "meta_lora"),
    iterations=GRID,
    seeds=(0,),
    people=8,
    clip_people=8,
    prompts=10,
    slower=1.0,
    dearer=0.0,
    pictures=True,
):
    """Write folder/scores.parquet. `slower` stretches Meta-LoRA's learning, `dearer` lowers its CLIP-T."""
    paint = picture if pictures else (lambda path, seed: str(path))
    rng = np.random.default_rng(0)
    rows = []

    def row(method, identity, noun, part, prompt_id, *, rank=0, step=0, seed=0, **scores):
        file = (
            folder
            / "images"
            / (identity if method != "base" else noun)
            / f"{method}-{rank}-{step}-{prompt_id}-{seed}.png"
        )
        empty = dict.fromkeys(("clip_t", "clip_i", "face_found", "face_sim", "r_face_sim"), np.nan)
        rows.append(
            {
                "file": paint(file, crc32(str(file.relative_to(folder)).encode())),
                "method": method,
                "identity": identity,
                "class_noun": noun,
                "part": part,
                "prompt_id": prompt_id,
                "prompt": f"a photo of a {noun} smiling in the snow, looking at the camera, number {prompt_id}",
                "seed": seed,
                "rank": rank,
                "iterations": step,
                "lora_sha256": "",
                "base_model": "mini@0123456789abcdef",
                "steps": 14,
                "guidance": 3.5,
                "height": 64,
                "width": 64,
                "test_photos": 5,
                "test_photos_missed": 0,
                "reference": paint(folder / "photos" / identity / "0.png", crc32(identity.encode())),
            }
            | empty
            | scores
        )

    def cells():
        yield "base", 0, 0, 0.03, 0.0, 0.0
        for method in methods:
            for rank in ranks:
                for step in iterations:
                    pace = SPEED[method] / (slower if method == "meta_lora" else 1)
                    learned = 1 - np.exp(-pace * step * rank**0.25)
                    cost = (
                        (COST[method] + (dearer if method == "meta_lora" else 0)) * learned * (1 + 0.25 * np.log2(rank))
                    )
                    yield method, rank, step, TOP[method] * learned, cost, COPIED[method]

    for noun in ("woman", "man"):
        for k in range(people):
            identity, likeness = f"phd-{noun}-{k:02d}", rng.normal(0, 0.04)
            for method, rank, step, face, _, copied in cells():
                for p in range(prompts):
                    for seed in seeds:
                        value = face + likeness + rng.normal(0, 0.04) + (0.03 if noun == "man" else 0)
                        found = (k + p) % 7 > 0
                        scores = {"face_found": float(found)}
                        if found:
                            scores |= {"r_face_sim": value, "face_sim": value + copied + rng.normal(0, 0.02)}
                        row(method, identity, noun, "unsplash", f"front-{p}", rank=rank, step=step, seed=seed, **scores)
            for t in range(1, 6):
                score = {"face_found": 1.0, "r_face_sim": 0.75 + rng.normal(0, 0.03), "face_sim": 0.74}
                row("photo_test", identity, noun, "unsplash", f"{identity}/{t}", **score)
            row("photo_reference", identity, noun, "unsplash", f"{identity}/0", face_found=1.0, r_face_sim=0.74)
            row("photo_stranger", identity, noun, "unsplash", f"other/{k}", face_found=1.0, r_face_sim=0.02)
        for k in range(clip_people):
            identity, ease = f"ffhq-{noun}-{k:02d}", rng.normal(0, 0.004)
            for method, rank, step, _, cost, _ in cells():
                for p in range(prompts):
                    for seed in seeds:
                        clip = 0.80 - cost + ease + 0.01 * np.sin(p) + rng.normal(0, 0.004)
                        scores = {"clip_t": clip, "clip_i": 1 - 3 * cost}
                        row(method, identity, noun, "ffhq", f"style-{p}", rank=rank, step=step, seed=seed, **scores)
    folder.mkdir(parents=True, exist_ok=True)
    write_scores(folder / "scores.parquet", pd.DataFrame(rows))
    return folder / "scores.parquet"

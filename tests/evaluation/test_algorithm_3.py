"""Algorithm 3 and its neighbours once more, slowly: from files on disk to the final numbers, sharing no code but the
models, against what is scored and averaged; with the shipped models on rendered people."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import metalora
from metalora.core.contracts import Box
from metalora.evaluation.breakdown import standings
from metalora.evaluation.embeddings import Scorers
from metalora.evaluation.score import score_images
from metalora.miniworld.folders import Photo, write_folders
from metalora.miniworld.population import identity
from metalora.miniworld.shots import sample_shot
from metalora.people.benchmark import load_benchmark
from metalora.perception.clip import OpenClipScorer
from metalora.perception.faces import MiniFaceEmbedder, MtcnnDetector

WEIGHTS = Path(metalora.__file__).parent / "miniworld" / "weights"
PROMPTS = {
    "f0": "a photo of a {}, facing the camera",
    "f1": "a photo of a {} smiling",
    "s0": "a pencil drawing of a {}",
}
FACE, CLIP = ("f0", "f1"), ("s0",)
SEEDS = (0, 1)


class Models:
    """The shipped detector, face embedder and CLIP."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.detector, self.embedder = MtcnnDetector(), MiniFaceEmbedder(WEIGHTS / "face")
        self.clip = OpenClipScorer(WEIGHTS / "clip")

    def scorers(self) -> Scorers:
        return Scorers(lambda: self.detector, lambda: self.embedder, lambda: self.clip, "shipped" * 8)


@pytest.fixture(scope="module")
def models() -> Models:
    return Models()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three people of the benchmark with three or four photos, two with one; rendered pictures stand for generated."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(1)
    folders: dict[Path, list[Photo]] = {}

    def photo(name: str, who, **fixed) -> Photo:
        return Photo(name, who, sample_shot(rng, fixed={"style": "photo", "scale": 0.8} | fixed), 160, 160)

    people = {}
    for noun, index, count in (("woman", 0, 3), ("woman", 1, 4), ("man", 0, 3)):
        who = identity("validation", noun, index)
        people[who.key] = (who, noun)
        folders[root / "unsplash" / who.key] = [photo(f"{k}.png", who, yaw=float(5 * k)) for k in range(count)]
    for noun in ("man", "woman"):
        who = identity("validation", noun, 5)
        people[f"ffhq-{noun}-0"] = (who, noun)
        folders[root / "ffhq" / noun] = [photo("0.png", who, yaw=0.0)]
    lines = []
    for name, (who, noun) in people.items():
        for prompt_id in CLIP if name.startswith("ffhq") else FACE:
            style = "pencil" if prompt_id == "s0" else "photo"
            made = [photo(f"{prompt_id}-{seed}.png", who, style=style, yaw=float(4 * seed)) for seed in SEEDS]
            folders.setdefault(root / "out" / name, []).extend(made)
            lines += [line(f"{name}/{p.name}", "mine", name, noun, prompt_id, seed) for seed, p in enumerate(made)]
    for noun in ("man", "woman"):
        made = [photo(f"s0-{seed}.png", identity("validation", noun, 9), style="pencil") for seed in SEEDS]
        folders[root / "out" / f"base-{noun}"] = made
        lines += [line(f"base-{noun}/{p.name}", "base", "base", noun, "s0", seed) for seed, p in enumerate(made)]
    write_folders(folders)
    Image.new("RGB", (160, 160), (90, 120, 90)).save(root / "out" / "validation-man-0000" / "f1-1.png")  # no face
    (root / "out" / "manifest.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    nouns = {name: noun for name, (_, noun) in people.items() if not name.startswith("ffhq")}
    (root / "identities.json").write_text(json.dumps(nouns))
    return root


def line(file: str, method: str, who: str, noun: str, prompt_id: str, seed: int) -> dict:
    settings = {"base_model": "renderer", "steps": 1, "guidance": 1.0, "size": [160, 160]}
    named = {"prompt_id": prompt_id, "prompt": PROMPTS[prompt_id].format(noun), "seed": seed}
    return {"file": file, "method": method, "identity": who, "class_noun": noun} | named | settings


def table(folder: Path, models: Models, cache: Path, *, batch_size: int):
    return score_images(
        [folder / "out"],
        load_benchmark(folder).subjects,
        face_prompts=FACE,
        clip_prompts=CLIP,
        scorers=models.scorers(),
        cache=cache,
        batch_size=batch_size,
    )


def dot(a: list[float], b: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def cosine(a: list[float], b: list[float]) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


class Slow:
    """One picture at a time, from its file."""

    def __init__(self, models: Models) -> None:
        self.models = models

    def face(self, path: Path) -> list[float] | None:
        image = np.asarray(Image.open(path).convert("RGB"))
        found = self.models.detector.detect([image])[0]
        if not found:
            return None
        best = max(found, key=lambda f: f.probability * (f.box.x1 - f.box.x0) * (f.box.y1 - f.box.y0)).box
        box = Box(best.x0, best.y0, best.x1, best.y1)
        return [float(x) for x in self.models.embedder.embed([image], [box])[0]]

    def picture(self, path: Path) -> list[float]:
        return [float(x) for x in self.models.clip.embed_images([np.asarray(Image.open(path).convert("RGB"))])[0]]

    def text(self, prompt: str) -> list[float]:
        return [float(x) for x in self.models.clip.embed_texts([prompt])[0]]


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_the_final_scores_are_algorithm_3s_and_appendix_gs(folder: Path, models: Models, tmp_path: Path) -> None:
    slow, robust, plain, clip_t, clip_i, found = Slow(models), [], [], [], [], []
    for person in sorted((folder / "unsplash").iterdir()):  # i in I
        photos = sorted(person.iterdir())
        reference, test_set = photos[0], photos[1:]  # T = i without ref
        e_ref, e_test = slow.face(reference), [slow.face(t) for t in test_set]
        assert e_ref is not None
        for prompt_id in FACE:  # p in P
            for seed in SEEDS:
                e_g = slow.face(folder / "out" / person.name / f"{prompt_id}-{seed}.png")
                found.append(float(e_g is not None))
                if e_g is None:  # the headline counts it as 0
                    robust.append(0.0)
                    plain.append(0.0)
                    continue
                sumsim, count = 0.0, 0
                for e_t in e_test:
                    if e_t is not None:
                        sumsim, count = sumsim + cosine(e_g, e_t), count + 1
                robust.append(sumsim / count)
                plain.append(cosine(e_g, e_ref))
    for noun in ("man", "woman"):
        for seed in SEEDS:
            e_g = slow.picture(folder / "out" / f"ffhq-{noun}-0" / f"s0-{seed}.png")
            clip_t.append(cosine(e_g, slow.text(PROMPTS["s0"].format(noun))))
            clip_i.append(cosine(e_g, slow.picture(folder / "out" / f"base-{noun}" / f"s0-{seed}.png")))

    scored = standings(table(folder, models, tmp_path / "cache", batch_size=64))
    (both,) = [s for s in scored if s.key.method == "mine" and s.class_noun == "both"]
    assert abs(both.scores["r_face_sim"].mean - mean(robust)) < 1e-6
    assert abs(both.scores["face_sim"].mean - mean(plain)) < 1e-6
    assert abs(both.scores["clip_t"].mean - mean(clip_t)) < 1e-6
    assert abs(both.scores["clip_i"].mean - mean(clip_i)) < 1e-6
    assert both.scores["face_found"].mean == pytest.approx(mean(found)) and 0 in found
    with_face = [score for score, seen in zip(robust, found, strict=True) if seen]
    assert both.scores["r_face_sim_detected"].mean > mean(with_face) * 0.9 > 0.1  # these are the right people
    assert abs(mean(robust) - mean(plain)) > 1e-3  # the two could be told apart


@pytest.mark.parametrize("batch_size", [1, 7])
def test_scores_do_not_depend_on_the_batch_with_real_models(
    folder: Path, models: Models, tmp_path: Path, batch_size: int
) -> None:
    columns = ["clip_t", "clip_i", "face_sim", "r_face_sim", "seed_diversity", "face_found"]
    together = table(folder, models, tmp_path / "64", batch_size=64)[columns]
    apart = table(folder, models, tmp_path / "few", batch_size=batch_size)[columns]
    assert together.notna().to_numpy().tolist() == apart.notna().to_numpy().tolist()
    assert np.nanmax(np.abs((together - apart).to_numpy())) < 1e-6

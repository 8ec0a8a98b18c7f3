"""How good the shipped mini world is: `python -m metalora.miniworld.quality [out=FILE.json] [weights=DIR]`.

Measures every target from the weights and the renderer alone, on people that no training saw, in a few minutes.
Legend: N pictures, H height, W width, E embedding.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from metalora.core.atomic import write_json
from metalora.core.errors import UserError
from metalora.miniworld import vocabulary
from metalora.miniworld.check import TARGET_ALL, TARGET_FRONTAL, draw, find_faces
from metalora.miniworld.faces_found import KEEPS_A_FACE, faces_found, frontal_prompts, rendered_frontal, to_pixels
from metalora.miniworld.identity import Identity
from metalora.miniworld.population import CLASS_NOUNS, identity
from metalora.miniworld.renderer import face_boxes, render
from metalora.miniworld.shots import Shot, sample_shot

WEIGHTS = Path(__file__).parent / "weights"
GUIDANCE = 2.5
"""What pictures are drawn with by default (conf/experiment/mini/default.yaml)."""
HELD_OUT_PEOPLE = range(1710, 1800)
"""Indices of the corpus people of each class that no training saw (the last 5%)."""


@dataclass(frozen=True)
class Row:
    """One measured number beside its target; `target` is None where there is none."""

    name: str
    value: float
    target: float | None

    @property
    def reached(self) -> bool:
        """Whether the number is at least the target."""
        return self.target is None or self.value >= self.target


def held_out_shots(*, photos: int, seed: int, **fixed: Any) -> tuple[list[Identity], list[Shot]]:
    """`photos` shots of every held-out person of both classes."""
    rng = np.random.default_rng(seed)
    people = [identity("base", noun, index) for noun in CLASS_NOUNS for index in HELD_OUT_PEOPLE for _ in range(photos)]
    return people, [sample_shot(rng, fixed=fixed) for _ in people]


def verification(embeddings_NE: Tensor, people: Sequence[str]) -> tuple[float, float]:
    """Area under the ROC curve, and true-accept rate at a false-accept rate of 1e-3, over all pairs of pictures."""
    names = np.array(people)
    cosines = (embeddings_NE @ embeddings_NE.T).numpy()
    above = np.triu_indices(len(names), 1)
    same = (names[:, None] == names[None])[above]
    genuine, strangers = cosines[above][same], np.sort(cosines[above][~same])
    area = float(np.searchsorted(strangers, genuine).mean() / len(strangers))
    threshold = strangers[int(np.ceil(len(strangers) * (1 - 1e-3))) - 1]
    return area, float((genuine > threshold).mean())


def measure_faces(weights: Path) -> list[Row]:
    """The embedder on held-out people, 8 photos each over all poses, lights, expressions and scenes."""
    from metalora.miniworld.build.face import crop_faces, load_face

    model = load_face(weights / "face")
    people, shots = held_out_shots(photos=8, seed=31, style="photo")
    rows, names = [], [person.key for person in people]
    for side, supersample, label in ((128, 2, "128 px photos"), (64, 2, "64 px photos")):
        images = to_pixels(render(people, shots, height=side, width=side, supersample=supersample))
        with torch.inference_mode():
            embeddings = torch.cat(
                [
                    model(
                        crop_faces(images[k : k + 200], face_boxes(people[k : k + 200], shots[k : k + 200], side, side))
                    )
                    for k in range(0, len(people), 200)
                ]
            )
        area, accepted = verification(embeddings, names)
        aims = (0.99, 0.80) if side == 128 else (None, None)
        rows.append(Row(f"faces of held-out people, {label}: AUC", area, aims[0]))
        rows.append(Row(f"faces of held-out people, {label}: TAR at FAR 1e-3", accepted, aims[1]))
    return rows


class Recognizer:
    """mini-CLIP as a zero-shot classifier of the mini world's traits."""

    def __init__(self, weights: Path) -> None:
        import open_clip

        from metalora.miniworld.build.traits import trait_prompts

        name = f"local-dir:{weights / 'clip'}"
        self.model = open_clip.create_model_from_pretrained(name)[0].eval()
        tokenizer = open_clip.get_tokenizer(name)
        self.values: dict[str, list[str]] = {}
        self.texts: dict[str, Tensor] = {}
        with torch.inference_mode():
            for trait, (values, prompts) in trait_prompts().items():
                embedded = [self.model.encode_text(tokenizer(group), normalize=True).mean(0) for group in prompts]
                self.values[trait], self.texts[trait] = values, functional.normalize(torch.stack(embedded), dim=-1)

    def right(self, images_NCHW: Tensor, truth: Mapping[str, Sequence[str]]) -> dict[str, float]:
        """Share of pictures whose trait is recognised, for every trait in `truth`."""
        from metalora.miniworld.build.clip import clip_pixels

        with torch.inference_mode():
            pieces = [self.model.encode_image(clip_pixels(part), normalize=True) for part in images_NCHW.split(256)]
        seen = torch.cat(pieces)
        found = {}
        for trait, values in truth.items():
            guessed = (seen @ self.texts[trait].T).argmax(1).tolist()
            found[trait] = float(
                np.mean([self.values[trait][k] == value for k, value in zip(guessed, values, strict=True)])
            )
        return found


def measure_clip(recognizer: Recognizer) -> list[Row]:
    """Zero-shot accuracy on rendered pictures of held-out people in every style."""
    people, shots = held_out_shots(photos=6, seed=32)
    images = to_pixels(render(people, shots, height=64, width=64))
    truth = {trait: [getattr(shot, trait) for shot in shots] for trait in recognizer.values if trait != "class_noun"}
    truth["class_noun"] = [person.class_noun for person in people]
    found = recognizer.right(images, truth)
    targets = {"scene": 0.95, "style": 0.95, "class_noun": 0.90, "pose": 0.80, "expression": 0.60}
    return [Row(f"mini-CLIP zero-shot, rendered: {trait}", found[trait], targets.get(trait)) for trait in found]


def generate(weights: Path, prompts: list[str], *, guidance: float, seed: int, steps: int = 16) -> Tensor:
    """Pictures [N, 3, 64, 64] in [-1, 1] of the weights' untouched base, one per prompt."""
    from metalora.miniworld.build.sample import load_pipeline_models, sample_images, start_noise

    models, vae, shift = load_pipeline_models(weights / "flux")
    noise = start_noise(len(prompts), height=64, width=64, source=torch.Generator().manual_seed(seed))
    common = {"height": 64, "width": 64, "guidance": guidance, "steps": steps, "shift": shift}
    pieces = [
        sample_images(models, vae, prompts[k : k + 50], noise_BNC=noise[k : k + 50], **common)
        for k in range(0, len(prompts), 50)
    ]
    return torch.cat(pieces)


def measure_generated(weights: Path, recognizer: Recognizer) -> list[Row]:
    """Scene, style and class of generated pictures against rendered ones of the same captions."""
    rows = []
    cases = [
        ("scene", vocabulary.SCENES, {"style": "photo"}, "a photo of a {noun} {text}"),
        ("style", vocabulary.STYLES, {}, "{text} of a {noun}"),
    ]
    for trait, table, fixed, form in cases:
        wanted = [(name, noun) for name in table for noun in CLASS_NOUNS for _ in range(100 // len(table))]
        prompts = [form.format(noun=noun, text=table[name]) for name, noun in wanted]
        made = generate(weights, prompts, guidance=GUIDANCE, seed=33)
        truth = {trait: [name for name, _ in wanted], "class_noun": [noun for _, noun in wanted]}
        generated = recognizer.right(made, truth)
        rng = np.random.default_rng(34)
        people = [
            identity("base", noun, HELD_OUT_PEOPLE[k % len(HELD_OUT_PEOPLE)]) for k, (_, noun) in enumerate(wanted)
        ]
        shots = [sample_shot(rng, fixed=fixed | {trait: name}) for name, _ in wanted]
        rendered = recognizer.right(to_pixels(render(people, shots, height=64, width=64)), truth)
        ratio = generated[trait] / max(rendered[trait], 1e-9)
        rows.append(
            Row(f"generated at guidance {GUIDANCE}: {trait} recognised, share of the rendered rate", ratio, 0.90)
        )
        rows.append(Row(f"generated at guidance {GUIDANCE}: {trait} recognised", generated[trait], None))
        rows.append(
            Row(f"generated at guidance {GUIDANCE}: class recognised, {trait} prompts", generated["class_noun"], None)
        )
    return rows


def measure_generated_faces(weights: Path) -> list[Row]:
    """MTCNN on frontal pictures, 100 of photos and 40 of every style, generated and rendered at 64 px."""
    rows = []
    for guidance, target in ((GUIDANCE, 0.95), (1.0, None)):
        made = generate(weights, frontal_prompts("photo", 100), guidance=guidance, seed=35)
        rate = float(faces_found(made).mean())
        rows.append(Row(f"generated frontal photos at guidance {guidance}: MTCNN finds the face", rate, target))
    kept = []
    for place, style in enumerate(vocabulary.STYLES):
        made = generate(weights, frontal_prompts(style, 40), guidance=GUIDANCE, seed=40 + place)
        ours, theirs = (float(faces_found(x).mean()) for x in (made, rendered_frontal(style, 40, seed=50 + place)))
        rows.append(Row(f"frontal, {style}: MTCNN finds the face, generated", ours, None))
        rows.append(Row(f"frontal, {style}: MTCNN finds the face, rendered", theirs, None))
        kept += [ours] * (style != "photo" and theirs >= KEEPS_A_FACE)
    name = f"generated frontal pictures in the {len(kept)} styles that keep a face: MTCNN finds it"
    return [*rows, Row(name, float(np.mean(kept)), 0.75)]


def measure_renderer() -> list[Row]:
    """MTCNN on rendered photos at 160 px."""
    frontal = find_faces(*draw(100, seed=1, style="photo", pose="front"), size=160)
    mixed = find_faces(*draw(100, seed=2, style="photo"), size=160)
    return [
        Row("rendered frontal photos: MTCNN finds the face", frontal.rate, TARGET_FRONTAL),
        Row("rendered photos of all poses: MTCNN finds the face", mixed.rate, TARGET_ALL),
    ]


def measure_vae(weights: Path) -> list[Row]:
    """Reconstruction of held-out people's pictures in decibels."""
    from metalora.miniworld.build.sample import load_pipeline_models

    _, vae, _ = load_pipeline_models(weights / "flux")
    people, shots = held_out_shots(photos=1, seed=36)
    images = to_pixels(render(people, shots, height=64, width=64))
    with torch.inference_mode():
        again = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    return [
        Row(
            "autoencoder: PSNR of held-out people, dB",
            float(-10 * torch.log10((again - images).square().mean() / 4)),
            None,
        )
    ]


def measure(weights: Path) -> list[Row]:
    """All numbers, in the order they are printed."""
    recognizer = Recognizer(weights)
    rows = measure_generated(weights, recognizer) + measure_generated_faces(weights)
    return rows + measure_faces(weights) + measure_clip(recognizer) + measure_vae(weights) + measure_renderer()


def main(arguments: Sequence[str]) -> int:
    """Print the table; with `out=FILE.json` also save it. Exit status 1 when a target is missed."""
    options = dict.fromkeys(("out", "weights"), "")
    for word in arguments:
        name, _, value = word.partition("=")
        if name not in options or not value:
            raise UserError("unknown option", expected="out=FILE.json or weights=DIR", got=word, key=name)
        options[name] = value
    torch.set_num_threads(1)  # the numbers must not depend on the machine's cores
    rows = measure(Path(options["weights"]) if options["weights"] else WEIGHTS)
    for row in rows:
        aim = "" if row.target is None else f"(target {row.target:.2f}{'' if row.reached else ', MISSED'})"
        print(f"{row.name:<78} {row.value:7.3f}  {aim}")
    if options["out"]:
        write_json(Path(options["out"]), [asdict(row) | {"reached": row.reached} for row in rows])
    return 0 if all(row.reached for row in rows) else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")

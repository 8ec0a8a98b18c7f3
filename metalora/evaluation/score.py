"""From images to scores: one row per image and identity, CLIP-T, CLIP-I, FaceSim and R-FaceSim (App. G, Algorithm 3).

Images of the untouched base have no identity: each counts once for every identity it is compared with. Real photos get
rows too, so that ceilings and floor stand in the same table as what they bound.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from metalora.core import metrics
from metalora.core.contracts import GeneratedImage
from metalora.core.errors import UserError
from metalora.core.manifest import FILE_NAME, inside, read_manifest
from metalora.evaluation.embeddings import Embeddings, Picture, Progress, Scorers
from metalora.evaluation.face_scores import PhotoFaces, face_scores
from metalora.evaluation.score_table import BASE, SECOND, WHOLE_NUMBERS, Subject, base_setting, unscored_row
from metalora.people.photos import load_photo

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class _Image:
    record: GeneratedImage
    picture: Picture
    folder: Path


def score_images(
    manifests: Sequence[Path],
    subjects: Sequence[Subject],
    *,
    face_prompts: Collection[str],
    clip_prompts: Collection[str],
    scorers: Scorers,
    cache: Path,
    face_part: str = "unsplash",
    clip_part: str = "ffhq",
    batch_size: int = 64,
    kinds: Mapping[str, str] | None = None,
    fill: Callable[[GeneratedImage], GeneratedImage] = lambda record: record,
    progress: Progress | None = None,
) -> "pd.DataFrame":
    """Score every image of the manifests; what was embedded before is read from `cache`.

    Args:
        manifests: manifest.jsonl files or their folders; the base's images among them, or CLIP-I is not measured.
        subjects: the benchmark's people; every identity of a manifest is one of them.
        face_prompts: ids of the prompts that FaceSim and R-FaceSim are measured on (the frontal ones).
        clip_prompts: ids of the prompts that CLIP-T and CLIP-I are measured on (scenes and styles).
        face_part: the people FaceSim and R-FaceSim are measured on.
        clip_part: the people CLIP-T and CLIP-I are measured on; it may be the same part.
        batch_size: pictures embedded at once; the scores do not depend on it.
        kinds: what each prompt is: frontal, recontextualized or stylized.
        fill: checks a line of a manifest and adds what it leaves out (`Checked.fill`).

    Returns:
        One row per image and identity. Scores are cosines, NaN where they are not measured; face_found is 1, 0 or NaN;
        face_sim, r_face_sim and copy_paste are NaN where no face was found. test_photos counts the photos R-FaceSim
        averages over, test_photos_missed those left out because no face was found in them; reference_faces is 1 where
        FaceSim has the reference's face to compare with, else 0. seed_diversity is 1 minus the image's mean CLIP cosine
        with the images of the same prompt from other seeds. With a second embedder its scores stand in columns of
        their own.

    Raises:
        UserError: an image of nobody in the benchmark, one whose file is gone, cannot be read or has another size than
            its line says, or none of a prompt that is scored.
    """
    import pandas as pd

    people = {subject.identity: subject for subject in subjects}
    embeddings = Embeddings(scorers, root=cache, batch_size=batch_size, progress=progress)
    every = _read(manifests, fill=fill)
    images = _one_per_cell(every)
    uses = {face_part: set(face_prompts)}
    uses[clip_part] = uses.get(clip_part, set()) | set(clip_prompts)
    pairs = _pairs(images, people, uses=uses)
    clip_places, face_places = _places(pairs, clip_part, clip_prompts), _places(pairs, face_part, face_prompts)
    if not clip_places and not face_places:
        raise _nothing_to_score(images, uses)
    of_class = [s for s in subjects if s.part == face_part and s.class_noun in {i.record.class_noun for i in images}]
    rows = [unscored_row(image.record, image.picture.path, subject) for image, subject in pairs]
    frame = pd.DataFrame(rows).assign(kind=[(kinds or {}).get(image.record.prompt_id, "") for image, _ in pairs])
    _add_clip(frame, clip_places, pairs, [image for image in every if image.record.method == BASE], embeddings)
    _add_diversity(frame, sorted({*clip_places, *face_places}), pairs, embeddings)
    of_photos = _add_faces(frame, face_places, pairs, PhotoFaces(of_class, embeddings), embeddings)
    if scorers.second is not None:
        second = PhotoFaces(of_class, embeddings, second=True)
        ours = frame.copy()
        photos = _add_faces(ours, face_places, pairs, second, embeddings)
        for column in ("face_sim", "r_face_sim"):
            frame[column + SECOND] = ours[column]
            of_photos = [a | {column + SECOND: b[column]} for a, b in zip(of_photos, photos, strict=True)]
    rows = pd.concat([frame, pd.DataFrame(of_photos, columns=frame.columns)], ignore_index=True)
    return rows.astype(dict.fromkeys(WHOLE_NUMBERS, int))


def _read(manifests: Sequence[Path], *, fill: Callable[[GeneratedImage], GeneratedImage]) -> list[_Image]:
    images: dict[Path, _Image] = {}
    for manifest in manifests:
        folder = (manifest if manifest.is_dir() else manifest.parent).resolve()
        for record in read_manifest(manifest):
            path = inside(manifest if manifest.is_dir() else manifest.parent, record.file)
            if not path.is_file():
                raise UserError("an image is gone", expected=f"every file of {manifest}", got=str(path), key="images")
            _check_size(path, record.size)
            images[path.resolve()] = _Image(fill(record), Picture.of(path, read=_read_image), folder)
    return list(images.values())


def _one_per_cell(images: Sequence[_Image]) -> list[_Image]:
    """Of several images of one cell the last."""
    return list({(*_setting(image.record), *_name(image.record)): image for image in images}.values())


def _name(record: GeneratedImage) -> tuple[Any, ...]:
    return record.method, record.rank, record.iterations, record.identity, record.class_noun


def _check_size(path: Path, size: tuple[int, int]) -> None:
    """Raise UserError when a picture has another (height, width) than its line says: it is another picture then."""
    try:
        with Image.open(path) as picture:
            found = (picture.height, picture.width)
    except Exception:  # the loader finds better words for what is no picture
        found = _read_image(path).shape[:2]
    if found != size:
        raise UserError(
            f"the image {path} has another size than its line in {FILE_NAME}",
            expected=f"height {size[0]}, width {size[1]}",
            got=f"height {found[0]}, width {found[1]}",
            key="images",
        )


def _read_image(path: Path) -> np.ndarray:
    return load_photo(path, min_side=1, key="images")


def _pairs(
    images: Sequence[_Image], people: Mapping[str, Subject], *, uses: Mapping[str, Collection[str]]
) -> list[tuple[_Image, Subject]]:
    """Which image is scored for whom. `uses`: the prompts that each part's people are scored on."""
    present = {image.record.identity for image in images if image.record.method != BASE}
    strangers = sorted(present - set(people))
    if strangers:
        raise UserError(
            "images of somebody who is not in the benchmark",
            expected="an identity of the benchmark",
            got=", ".join(strangers[:5]),
            key="benchmark",
        )
    pairs = []
    for image in images:
        record = image.record
        if record.method != BASE:
            pairs.append((image, people[record.identity]))
            continue
        parts = {part for part, prompt_ids in uses.items() if record.prompt_id in prompt_ids}
        of_class = [s for s in people.values() if s.class_noun == record.class_noun and s.part in parts]
        pairs += [(image, subject) for subject in [s for s in of_class if s.identity in present] or of_class]
    return pairs


def _nothing_to_score(images: Sequence[_Image], uses: Mapping[str, Collection[str]]) -> UserError:
    if not images:
        return UserError("there is no image to score", expected=f"images listed in {FILE_NAME}", key="images")
    scored = [f"{min(ids)} for {part} people" for part, ids in uses.items() if ids]
    records = [image.record for image in images]
    found = sorted({f"{record.prompt_id} of {record.identity}, {record.class_noun}" for record in records})
    return UserError(
        "no image is of a prompt that its person is scored on",
        expected=f"prompt ids of the benchmark, such as {' or '.join(scored)}",
        got="; ".join(found[:3]),
        key="images",
    )


def _places(pairs: Sequence[tuple[_Image, Subject]], part: str, prompt_ids: Collection[str]) -> list[int]:
    return [n for n, (i, subject) in enumerate(pairs) if subject.part == part and i.record.prompt_id in prompt_ids]


def _add_clip(
    frame: "pd.DataFrame",
    places: list[int],
    pairs: Sequence[tuple[_Image, Subject]],
    bases: Sequence[_Image],
    embeddings: Embeddings,
) -> None:
    """CLIP-T: image with its prompt. CLIP-I: image with what the base makes of the same prompt from the same noise; of
    several such twins the one in the image's own folder.
    """
    if not places:
        return
    wanted = [pairs[place][0] for place in places]
    anywhere = {_setting(base.record): base for base in bases}
    own = {(base.folder, *_setting(base.record)): base for base in bases}
    twins = [
        own.get((image.folder, *_setting(image.record))) or anywhere.get(_setting(image.record)) for image in wanted
    ]
    every = embeddings.pictures([image.picture for image in wanted + [twin for twin in twins if twin is not None]])
    images_ND = torch.from_numpy(every[: len(wanted)])
    texts_ND = torch.from_numpy(embeddings.prompts([image.record.prompt for image in wanted]))
    frame.loc[places, "clip_t"] = metrics.paired_cosine(images_ND, texts_ND).numpy()
    with_twin = [n for n, twin in enumerate(twins) if twin is not None]
    clip_i_N = metrics.paired_cosine(images_ND[with_twin], torch.from_numpy(every[len(wanted) :]))
    frame.loc[[places[n] for n in with_twin], "clip_i"] = clip_i_N.numpy()


def _setting(record: GeneratedImage) -> tuple[Any, ...]:
    """What an image and its twin from the base share; noise is keyed by prompt id and seed."""
    return (
        record.prompt_id,
        record.prompt,
        record.seed,
        record.base_model,
        record.steps,
        record.guidance,
        record.size,
    )


def _add_diversity(
    frame: "pd.DataFrame", places: list[int], pairs: Sequence[tuple[_Image, Subject]], embeddings: Embeddings
) -> None:
    """How much the images of one prompt differ from seed to seed; NaN where there is one seed."""
    frame["seed_diversity"] = np.nan
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place in places:
        record, subject = pairs[place][0].record, pairs[place][1]
        cell = (
            record.method,
            record.rank,
            record.iterations,
            *base_setting(record),
            subject.identity,
            record.prompt_id,
        )
        groups.setdefault(cell, []).append(place)
    several = [group for group in groups.values() if len({pairs[place][0].record.seed for place in group}) > 1]
    wanted = [place for group in several for place in group]
    if not wanted:
        return
    vectors = torch.from_numpy(embeddings.pictures([pairs[place][0].picture for place in wanted]))
    of = dict(zip(wanted, vectors, strict=True))
    for group in several:
        cosines_NN = metrics.cosine(*(torch.stack([of[place] for place in group]),) * 2)
        others_N = (cosines_NN.sum(dim=1) - cosines_NN.diagonal()) / (len(group) - 1)
        frame.loc[group, "seed_diversity"] = (1 - others_N).numpy()


def _add_faces(
    frame: "pd.DataFrame",
    places: list[int],
    pairs: Sequence[tuple[_Image, Subject]],
    faces: PhotoFaces,
    embeddings: Embeddings,
) -> list[dict[str, Any]]:
    """Fill in the face scores; the rows of the real photos, scored by the same embedder."""
    if not places:
        return faces.photo_rows()
    found = embeddings.faces([pairs[place][0].picture for place in places], second=faces.second)
    rows = []
    for place, face in zip(places, found, strict=True):
        subject = pairs[place][1]
        tests = faces.tests(subject)
        scores = face_scores(face, reference=faces.reference(subject), tests=tests)
        rows.append(scores | {"test_photos_missed": len(subject.test_photos) - len(tests)})
    for column in rows[0]:
        frame.loc[places, column] = [row[column] for row in rows]
    return faces.photo_rows()

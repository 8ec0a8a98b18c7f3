"""`metalora personalize`: Stage 2. One photo per person in, a small standard LoRA per person out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from omegaconf import DictConfig

from metalora.adapters.artifacts import Prior, check_prior, file_sha256, load_lora, load_prior, require_prior
from metalora.adapters.card import card_path, model_card
from metalora.core.atomic import write_bytes, writing
from metalora.core.errors import UserError
from metalora.evaluation.embeddings import scorer_fingerprint
from metalora.people.cache import LatentCache, prepare_people
from metalora.people.folder import PersonFolder, describe, scan_people
from metalora.people.photos import load_photo, pixel_sha256
from metalora.running.artifact import Artifact
from metalora.running.memory import measured, plan_training
from metalora.running.progress import Board, Progress
from metalora.running.setting import Setting, set_threads
from metalora.running.shards import shard_of
from metalora.tasks.samples import draw_samples, embed_sample_prompts
from metalora.tracking.loggers import tracked, with_logger
from metalora.tracking.tracker import Thing, digest_of
from metalora.training.cohorts import lora_path
from metalora.training.wishes import Wishes


def run(cfg: DictConfig) -> list[Path]:
    """The task behind the command line; returns the files it was run for."""
    setting = Setting.of(cfg)
    set_threads(setting)
    if setting["face"] not in ("only", "largest"):
        raise UserError("unknown choice of face", expected="only or largest", got=str(setting["face"]), key="face")
    if setting["image"] == "benchmark":
        from metalora.tasks.grid import personalize_benchmark  # which draws and scores, and so stands on this module

        with Board() as board:
            return personalize_benchmark(with_logger(setting, say=board.say), board=board)
    if setting["score"]:
        raise UserError("only the benchmark can be scored", expected="image=benchmark", got="score=true", key="score")
    scan = scan_people(Path(setting["image"]))
    shard = shard_of(setting, _named(scan.people, setting["identity"]))
    with Board() as board:
        if scan.skipped:
            board.say(f"skipped: {describe(scan.skipped)}")
        folder = personalize(
            with_logger(setting, say=board.say),
            people=shard.people,
            class_noun=setting["class_noun"],
            label=Path(setting["image"]).stem + shard.label,
            prior=Path(setting["prior"]) if setting["prior"] else None,
            face=setting["face"],
            progress=board.reporter("personalize"),
            say=board.say,
        )
        for person in shard.people:
            board.say(f"LoRA: {lora_path(folder, person.identity, setting.iterations[-1])}")
    return [lora_path(folder, person.identity, count) for person in shard.people for count in setting.iterations]


def _named(people: Sequence[PersonFolder], identity: str | None) -> Sequence[PersonFolder]:
    """One person under another name: the name becomes a folder's and goes into the LoRA's header."""
    if identity is None:
        return people
    if len(people) != 1 or identity in ("", "..") or Path(identity).name != identity:
        raise UserError(
            "cannot name this person so",
            expected="one person, and a name that a folder can have",
            got=f"{len(people)} people, {identity!r}",
            key="identity",
        )
    return (replace(people[0], identity=identity),)


def personalize(
    setting: Setting,
    *,
    people: Sequence[PersonFolder],
    class_noun: str,
    label: str,
    prior: Path | None,
    face: Literal["only", "largest"] = "only",
    progress: Progress,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Train (or continue, or find finished) every person's LoRA at every checkpoint; returns the folder they are in.

    Args:
        class_noun: of the people whose folder does not tell one.
        face: which face of a photo is the person's: the only one, or the largest.
        say: told one line about memory.
    """
    method = setting["method"]
    if method["prior"] and prior is None:
        raise UserError(
            "Meta-LoRA needs a Stage-1 prior",
            expected="prior=PATH of a prior.safetensors made by `metalora meta-train`, or method=lora_aug",
            got="no prior",
            key="prior",
        )
    prior = prior if method["prior"] else None
    if prior is not None:
        require_prior(prior)
    artifact = artifact_of(setting, people=people, class_noun=class_noun, label=label, prior=prior, face=face)
    wanted = [lora_path(artifact.folder, person.identity, count) for person in people for count in setting.iterations]

    def there() -> bool:
        return all(path.is_file() for path in wanted)

    if artifact.complete and there():
        return artifact.folder
    wishes = Wishes(artifact.folder)
    wishes.ask(setting.iterations)  # of whoever trains this trajectory meanwhile
    # In a folder named by its hash, LoRAs that are there are the ones wanted; one that was named may hold anything.
    served = there if not setting["out"] else (lambda: False)
    with artifact.making(progress, done=lambda: artifact.complete and there(), served=served) as owned:
        wishes.drop(setting.iterations)
        if owned is not None:
            _train(
                setting,
                artifact,
                people=people,
                class_noun=class_noun,
                prior=prior,
                face=face,
                progress=owned,
                say=say,
            )
    return artifact.folder


def _train(
    setting: Setting,
    artifact: Artifact,
    *,
    people: Sequence[PersonFolder],
    class_noun: str,
    prior: Path | None,
    face: Literal["only", "largest"],
    progress: Progress,
    say: Callable[[str], None] | None,
) -> None:
    """What is missing of a trajectory whose folder this process owns."""
    from metalora.training.personalization import run_personalization  # Lightning: seconds that only a training needs
    from metalora.training.speed import Speed

    method = setting["method"]
    artifact.begin()
    loaded = load_prior(prior) if prior else None
    if loaded is not None:
        layers = list(setting.backbone.layer_shapes)
        check_prior(
            loaded,
            backbone_fingerprint=setting.backbone.fingerprint,
            meta_rank=setting["meta_rank"],
            layers=layers,
        )
        _check_class(loaded, people, class_noun)
    cache = LatentCache(setting.cache_root, setting.backbone)
    trained = prepare_people(
        people,
        mode="crops" if method["crops"] else "whole",
        class_noun=class_noun,
        cache=cache,
        shapes=setting.shapes,
        detector=setting.detector,
        face=face,
        key="image",
        progress=lambda done, total: progress("encode", done, total),
    )
    texts = cache.texts({person.caption for person in trained})
    nouns = _class_nouns(people, class_noun)
    embed_sample_prompts(setting, people=nouns)
    cohort = min(setting["cohort_size"], len(trained))
    plan = plan_training(
        setting,
        trained,
        texts=texts,
        batch=cohort * setting["batch_size"],
        identities=cohort,
        rank=setting["rank"],
        meta_rank=setting["meta_rank"] if method["prior"] else None,
        train_meta_down=False,
        say=say,
    )
    with tracked(setting, task="personalize", digest=artifact.hash, folder=artifact.folder) as tracker:
        tracker.used(
            Thing("people", digest_of(photo for photos in artifact.config["people"].values() for photo in photos))
        )
        if prior is not None:
            tracker.used(Thing("prior", artifact.parents["prior"]))
        run_personalization(
            setting.backbone,
            trained,
            texts=texts,
            method=method["name"],
            rank=setting["rank"],
            meta_rank=setting["meta_rank"] if method["prior"] else None,
            prior=loaded,
            iterations=setting.iterations,
            learning_rate=setting["learning_rate"],
            gradient_clip=setting["gradient_clip"],
            batch_size=setting["batch_size"],
            flips=method["flips"],
            cohort_size=setting["cohort_size"],
            seed=setting["seed"],
            class_nouns=nouns,
            device=setting["trainer.device"],
            out=artifact.folder,
            checkpoint_seconds=setting["trainer.checkpoint_seconds"],
            logger=tracker.logger,
            callbacks=[Speed()],
            progress=progress,
            memory_plan=plan,
        )
        for count in setting.iterations:
            files = [lora_path(artifact.folder, person.identity, count) for person in people]
            tracker.made(Thing("lora", digest_of(map(file_sha256, files)), (("iterations", count),)))
        draw_samples(setting, people=nouns, folder=artifact.folder, tracker=tracker, progress=progress)
    counts = _made(artifact, people, earlier=artifact.read().get("iterations", ()), now=setting.iterations)
    for person in people:
        _write_card(artifact.folder, person.identity, counts)
    artifact.finish(
        iterations=counts,
        references={person.identity: [photo.name for photo in person.photos] for person in people},
        training_images={person.identity: len(person.images) for person in trained},
        **measured(setting, plan, say=say),
    )


def _made(
    artifact: Artifact, people: Sequence[PersonFolder], *, earlier: Iterable[int], now: Iterable[int]
) -> list[int]:
    """Checkpoints of this trajectory that everybody has, whichever run asked for them."""
    return [
        count
        for count in sorted({*earlier, *now})
        if all(lora_path(artifact.folder, person.identity, count).is_file() for person in people)
    ]


def _write_card(folder: Path, identity: str, iterations: Sequence[int]) -> None:
    """The README.md beside a person's LoRAs; the longest trained comes first."""
    files = [lora_path(folder, identity, count) for count in sorted(iterations, reverse=True)]
    card = card_path(files[0])
    with writing(card):
        write_bytes(card, model_card(load_lora(files[0]), files={path.name: "diffusers" for path in files}).encode())


def _check_class(prior: Prior, people: Sequence[PersonFolder], class_noun: str) -> None:
    """A prior learned from men is of no use to a woman; one whose header tells no class fits everybody."""
    learned = prior.metadata.get("class_noun")
    for identity, noun in _class_nouns(people, class_noun).items():
        if learned not in (None, noun):
            raise UserError(
                f"the prior was trained on another class than {identity} is of",
                expected=f"a prior of class {noun}",
                got=f"one of class {learned}",
                key="prior, class_noun",
            )


def _class_nouns(people: Sequence[PersonFolder], class_noun: str) -> dict[str, str]:
    return {person.identity: person.class_noun or class_noun for person in people}


def artifact_of(
    setting: Setting,
    *,
    people: Sequence[PersonFolder],
    class_noun: str,
    label: str,
    prior: Path | None,
    face: Literal["only", "largest"] = "only",
) -> Artifact:
    """Where a trajectory goes and what it depends on; `iterations` is not part of it, a longer run continues."""
    config = {
        "task": "personalize",
        "backbone": setting.backbone_key,
        "method": setting["method"],
        "class_nouns": _class_nouns(people, class_noun),
        "face": face,
        "detector": scorer_fingerprint(setting["scorer.detector"]),
        "people": {person.identity: [pixel_sha256(load_photo(photo)) for photo in person.photos] for person in people},
        "resolutions": list(setting.numbers("resolutions", least=1)),
        "meta_rank": setting["meta_rank"] if prior else None,
        "rank": setting["rank"],
        "learning_rate": setting["learning_rate"],
        "gradient_clip": setting["gradient_clip"],
        "batch_size": setting["batch_size"],
        "seed": setting["seed"],
    }
    parents = {"prior": file_sha256(prior)} if prior else {}
    label = f"{setting['method']['name']}-r{setting['rank']}-{label}"
    return Artifact(setting.folder("personalize", label, Artifact(Path(), config, parents).hash), config, parents)

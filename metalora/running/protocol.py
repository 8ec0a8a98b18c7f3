"""What a benchmark under a protocol asks for: whom, which prompts, which seeds, and so every single image."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metalora.adapters.artifacts import file_sha256
from metalora.core.atomic import write_bytes
from metalora.people.benchmark import Prompt, PromptSets, Subject, benchmark_version, load_benchmark, load_prompts
from metalora.running.setting import Setting

JOBS = "jobs.jsonl"


def subjects_of(setting: Setting, class_noun: str) -> list[Subject]:
    """The benchmark's people of one class under the protocol: all with several photos, some with one."""
    chosen, protocol = setting["benchmark"], setting["protocol"]
    people = [s for s in load_benchmark(Path(chosen["root"])).subjects if s.class_noun == class_noun]
    faces = [s for s in people if s.part == chosen["face_part"]][: protocol["several_photo_people"]]
    if chosen["clip_part"] == chosen["face_part"]:
        return faces
    return faces + [s for s in people if s.part == chosen["clip_part"]][: protocol["single_photo_people"]]


def prompts_of(setting: Setting, subject: Subject) -> list[Prompt]:
    """The prompts a subject is drawn with: frontal ones for face scores, scenes and styles for CLIP scores."""
    chosen, protocol = setting["benchmark"], setting["protocol"]
    prompts = load_prompts(Path(chosen["prompts"]))
    found: list[Prompt] = []
    if subject.part == chosen["face_part"]:
        found += prompts.of("frontal", subject.class_noun)[: protocol["frontal_prompts"]]
    if subject.part == chosen["clip_part"]:
        found += prompts.of("clip", subject.class_noun)[: protocol["clip_prompts"]]
    return found


@dataclass(frozen=True)
class DrawingJob:
    """One image that the benchmark asks for: a line of jobs.jsonl, and most of a line of manifest.jsonl.

    `reference` is the photo a method may see, empty for images of the untouched base (`method` "base", for CLIP-I).
    """

    file: str
    method: str
    identity: str
    class_noun: str
    reference: str
    reference_sha256: str
    prompt_id: str
    prompt: str
    seed: int
    benchmark: str


@dataclass(frozen=True)
class Asked:
    """A benchmark under a protocol, for some classes."""

    setting: Setting
    classes: Sequence[str]

    @cached_property
    def subjects(self) -> tuple[Subject, ...]:
        """Whom images are asked of."""
        return tuple(subject for noun in self.classes for subject in subjects_of(self.setting, noun))

    @cached_property
    def prompts(self) -> PromptSets:
        """All prompts of the benchmark."""
        return load_prompts(Path(self.setting["benchmark.prompts"]))

    @cached_property
    def version(self) -> str:
        """Of the whole benchmark, whatever the protocol takes of it."""
        everybody = load_benchmark(Path(self.setting["benchmark.root"])).subjects
        return benchmark_version(self.setting["benchmark.name"], everybody, self.prompts)

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """One image per prompt and seed."""
        return self.setting.numbers("protocol.seeds", least=0)

    @cached_property
    def prompts_by_subject(self) -> dict[str, list[Prompt]]:
        """The prompts of every identity."""
        return {subject.identity: prompts_of(self.setting, subject) for subject in self.subjects}

    def cells(self) -> set[tuple[str, str, int]]:
        """(identity, prompt id, seed) of every image of a person."""
        return {
            (identity, prompt.id, seed)
            for identity, prompts in self.prompts_by_subject.items()
            for prompt in prompts
            for seed in self.seeds
        }

    def base_cells(self) -> set[tuple[str, str, int]]:
        """(class noun, prompt id, seed) of every image of the untouched base."""
        return {
            (subject.class_noun, prompt.id, seed)
            for subject in self.subjects
            for prompt in self.prompts_by_subject[subject.identity]
            for seed in self.seeds
        }

    def jobs(self, method: str) -> list[DrawingJob]:
        """Every image, the base's last; in an order that draws all of one person's images together."""
        found = []
        for subject in self.subjects:
            photo = str(subject.reference.resolve())
            digest = file_sha256(subject.reference)
            found += self._jobs(method, subject.identity, subject, (photo, digest))
        once: dict[str, DrawingJob] = {}
        for subject in self.subjects:
            once |= {job.file: job for job in self._jobs("base", "base", subject, ("", ""))}
        return found + list(once.values())

    def _jobs(self, method: str, identity: str, subject: Subject, reference: tuple[str, str]) -> Iterable[DrawingJob]:
        where = identity if method != "base" else f"base-{subject.class_noun}"
        for prompt in self.prompts_by_subject[subject.identity]:
            for seed in self.seeds:
                file = f"images/{where}/{prompt.id}-{seed}.png"
                yield DrawingJob(
                    file=file,
                    method=method,
                    identity=identity,
                    class_noun=subject.class_noun,
                    reference=reference[0],
                    reference_sha256=reference[1],
                    prompt_id=prompt.id,
                    prompt=prompt.text,
                    seed=seed,
                    benchmark=self.version,
                )


def write_jobs(path: Path, jobs: Sequence[DrawingJob], **more: Any) -> None:
    """Write jobs as JSONL, atomically; `more` goes into every line."""
    lines = [json.dumps(dataclasses.asdict(job) | more, ensure_ascii=False) + "\n" for job in jobs]
    write_bytes(path, "".join(lines).encode())

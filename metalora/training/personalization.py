"""Stage 2 (Algorithm 2): one photo per person in, a plain LoRA per person out; many people in one batch."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import Logger
from torch import Tensor

from metalora.adapters.artifacts import Prior, check_prior, save_lora
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import eject, inject
from metalora.adapters.optimizer import BankAdamW
from metalora.core.atomic import writing
from metalora.core.budget import MemoryPlan
from metalora.core.contracts import METHODS, Backbone, Batch, TextEmbedding, TrainingPerson
from metalora.core.errors import UserError
from metalora.core.lease import Lease
from metalora.core.metric_names import NORMS
from metalora.people.datamodule import IdentityDataModule
from metalora.people.sampler import CohortSampler
from metalora.training.checkpoints import Exporter, StateKeeper, clear_leftovers, read_state
from metalora.training.cohorts import STATE, Cohort, Configurations, Leg, legs_of, lora_path, plan_cohorts, write_roster
from metalora.training.configuration import people_hash, quantization_of, tensors_hash, to_metadata
from metalora.training.monitor import FiniteLoss, Metrics, Progress, ProgressReport, counted, due
from metalora.training.step import Recipe, clip_gradients, diffusion_loss, embedded
from metalora.training.trainer import fit
from metalora.training.wishes import Wishes


class Personalization(LightningModule):
    """Stage 2 around a frozen denoiser: one row of the bank per person; Meta-Down, if there is one, never moves.

    Its state dict is the bank's.

    Args:
        backbone: carries the bank already (`inject`).
        configuration: plain values, kept in the checkpoint.
    """

    def __init__(
        self, backbone: Backbone, bank: AdapterBank, *, recipe: Recipe, configuration: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"configuration": dict(configuration)}, logger=False)  # it names people
        self.backbone, self.bank, self.recipe = backbone, bank, recipe
        bank.train_meta_down = False

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The sum over people of each one's mean loss."""
        loss = diffusion_loss(self.backbone, self.bank, batch, guidance=self.recipe.guidance)
        self._log_due = due(self.trainer, batch)
        return {"loss": loss.total, "mean": loss.mean, "finite_B": loss.finite_B}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Each person by their own norm."""
        norms = clip_gradients(self.bank, max_norm=self.recipe.gradient_clip, parts=self._log_due)
        if self._log_due:
            self.log_dict(norms.named(), batch_size=1, logger=False)

    def configure_optimizers(self) -> BankAdamW:
        """Only what has a gradient moves: the rows."""
        return BankAdamW(self.bank, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay)


@dataclass(frozen=True)
class Personalized:
    """What `run_personalization` leaves behind."""

    loras: dict[str, dict[int, Path]]
    """identity -> iterations -> file."""
    trained: tuple[str, ...]
    """Identities this call trained; empty when everything was there."""


def run_personalization(
    backbone: Backbone,
    people: Sequence[TrainingPerson],
    *,
    method: str,
    rank: int,
    meta_rank: int | None,
    prior: Prior | None,
    iterations: Sequence[int],
    learning_rate: float,
    seed: int,
    out: Path,
    batch_size: int = 1,
    flips: bool = True,
    cohort_size: int = 16,
    gradient_clip: float | None = 1.0,
    weight_decay: float = 0.01,
    checkpoint_seconds: float = 60.0,
    checkpoint_every: int | None = None,
    texts: Mapping[str, TextEmbedding] | None = None,
    class_nouns: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    device: str = "cpu",
    logger: Logger | None = None,
    log_every: int = 10,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
    memory_plan: MemoryPlan | None = None,
) -> Personalized:
    """Train a LoRA per person and write it at every checkpoint; continue cut and shorter runs; skip what is there.

    A person's LoRA does not depend on the cohort beyond rounding (batched products sum in another order: 4e-5 of a
    layer's largest weight after 20 iterations, growing), nor the LoRA at 250 iterations on whether 750 were asked for.

    Args:
        people: with cached latents: the crops for meta_lora and lora_aug, the photo for lora.
        method: meta_lora (needs a prior), lora_aug or lora.
        rank: r2, the rank of the LoRAs.
        meta_rank: the r1 that the prior must have; None takes the prior's.
        iterations: checkpoints; the last one is the end.
        batch_size: samples per person and iteration.
        flips: whether half of the samples are mirrored (App. D's augmentation).
        cohort_size: people per batch at most.
        checkpoint_seconds, checkpoint_every: how much work a killed run can lose, in seconds and in iterations.
        texts: caption to its embedding, a single row; by default the backbone embeds them.
        class_nouns: identity to class noun, kept in the header of that person's LoRAs.
        metadata: kept in every LoRA's header.
        memory_plan: what memory was expected to peak at.

    Raises:
        UserError: no prior or one that does not fit, a folder of another configuration, a full disk.
        KeyboardInterrupt: asked to stop; the state is saved.
    """
    _check(people, method=method, prior=prior, iterations=iterations)
    for key, size in (("batch_size", batch_size), ("cohort_size", cohort_size)):
        if size < 1:
            raise UserError(f"no such {key.replace('_', ' ')}", expected="1 or more", got=str(size), key=key)
    recipe = Recipe(learning_rate=learning_rate, weight_decay=weight_decay, gradient_clip=gradient_clip)
    recipe.check()
    if method != "meta_lora":
        prior = None
    shared = {
        "backbone": backbone.fingerprint,
        "batch_size": batch_size,
        "flips": flips,
        "gradient_clip": gradient_clip,
        "guidance": recipe.guidance,
        "learning_rate": learning_rate,
        "method": method,
        "prior": "" if prior is None else tensors_hash(prior.meta_down),
        "rank": rank,
        "seed": seed,
        "weight_decay": weight_decay,
        **quantization_of(backbone),
    }
    configurations = {person.identity: {**shared, "photos": people_hash([person])} for person in people}
    milestones = sorted(set(iterations))
    out.mkdir(parents=True, exist_ok=True)
    with Lease(out / ".lease", what=out.name):
        cohorts = plan_cohorts(out, people, configurations=configurations, milestones=milestones, size=cohort_size)
        texts = texts or (embedded(backbone, people) if cohorts else {})
        for number, cohort in enumerate(cohorts, start=1):
            label = f"Stage 2, {method} rank {rank}, {counted(len(cohort.people))}"
            if len(cohorts) > 1:
                label += f", cohort {number}/{len(cohorts)}"
            layers = backbone.layer_shapes
            if prior is not None:
                check_prior(prior, backbone_fingerprint=backbone.fingerprint, meta_rank=meta_rank, layers=list(layers))
            state = read_state(cohort.folder / STATE)
            for leg in legs_of(cohort, reached=0 if state is None else state.iterations):
                end = max(leg.missing)
                reports = [] if progress is None else [ProgressReport(progress, label=label, total=end)]
                bank = AdapterBank(
                    layers,
                    identities=[person.identity for person in cohort.people],
                    rank=rank,
                    meta_rank=None if prior is None else prior.meta_rank,
                    seed=seed,
                    meta_down=None if prior is None else prior.meta_down,
                )
                write_roster(cohort, configurations)
                finite = FiniteLoss(bank, key="learning_rate")
                _train(
                    backbone,
                    bank,
                    cohort,
                    leg,
                    recipe=recipe,
                    configurations=configurations,
                    sampler=CohortSampler(cohort.people, batch_size=batch_size, seed=seed, flips=flips),
                    seed=seed,
                    out=out,
                    texts=texts,
                    header={**(metadata or {}), "method": method, "rank": str(rank), "backbone": backbone.name},
                    class_nouns=class_nouns or {},
                    keeper=StateKeeper(
                        leg.folder / STATE,
                        end=end,
                        seconds=checkpoint_seconds,
                        every=checkpoint_every,
                        check=finite.check,
                    ),
                    finite=finite,
                    device=device,
                    logger=None if leg.again else logger,  # which was told these numbers before
                    log_every=log_every,
                    callbacks=[*callbacks, *reports],
                    memory_plan=memory_plan,
                )
                if leg.again:
                    shutil.rmtree(leg.folder)
    return Personalized(
        loras={p.identity: {n: lora_path(out, p.identity, n) for n in milestones} for p in people},
        trained=tuple(person.identity for cohort in cohorts for person in cohort.people),
    )


def _train(
    backbone: Backbone,
    bank: AdapterBank,
    cohort: Cohort,
    leg: Leg,
    *,
    recipe: Recipe,
    configurations: Configurations,
    sampler: CohortSampler,
    seed: int,
    out: Path,
    texts: Mapping[str, TextEmbedding],
    header: Mapping[str, str],
    class_nouns: Mapping[str, str],
    keeper: StateKeeper,
    finite: FiniteLoss,
    device: str,
    logger: Logger | None,
    log_every: int,
    callbacks: Sequence[Callback],
    memory_plan: MemoryPlan | None,
) -> None:
    captions = {person.identity: person.caption for person in cohort.people}
    wishes = Wishes(out)

    def export(iterations: int) -> None:
        for identity in leg.missing.get(iterations, captions):
            path = lora_path(out, identity, iterations)
            if iterations not in leg.missing and path.is_file():  # a wish that is fulfilled
                continue
            facts = {"identity": identity, "caption": captions[identity], "iterations": str(iterations)}
            if identity in class_nouns:
                facts["class_noun"] = class_nouns[identity]
            metadata = {**header, **facts, **to_metadata(configurations[identity])}
            clear_leftovers(path)
            with writing(path):
                save_lora(path, replace(bank.collapsed(identity, metadata=metadata), component=backbone.component))

    state = read_state(keeper.path)
    injection = inject(backbone.denoiser, bank)
    try:
        fit(
            Personalization(
                backbone,
                bank,
                recipe=recipe,
                configuration={p.identity: configurations[p.identity] for p in cohort.people},
            ),
            IdentityDataModule(cohort.people, sampler=sampler, texts=texts, objective=backbone.objective, seed=seed),
            keeper=keeper,
            callbacks=[
                finite,
                *callbacks,
                Metrics(leg.folder / "metrics.csv", columns=[metric.name for metric in NORMS]),
                Exporter(lambda done: done in leg.missing or wishes.has(done), export, check=finite.check),
            ],
            resume=state is not None and state.iterations < min(leg.missing),
            device=device,
            logger=logger,
            log_every=log_every,
            plan=memory_plan,
        )
    finally:
        eject(injection)


def _check(people: Sequence[TrainingPerson], *, method: str, prior: Prior | None, iterations: Sequence[int]) -> None:
    if method not in METHODS:
        raise UserError("no such method", expected=", ".join(METHODS), got=method, key="method")
    if method == "meta_lora" and prior is None:
        raise UserError(
            "meta_lora needs a prior", expected="the prior.safetensors that meta-train made", got="none", key="prior"
        )
    if not people:
        raise UserError("there is nobody to personalize", expected="at least one person", got="none", key="image")
    if not iterations or min(iterations) < 1:
        raise UserError(
            "no checkpoint to train to", expected="1 iteration or more", got=str(list(iterations)), key="iterations"
        )
    names = [person.identity for person in people]
    assert len(set(names)) == len(names), "an identity twice"

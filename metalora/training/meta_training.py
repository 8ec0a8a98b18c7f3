"""Stage 1 (Algorithm 1): many people in, a Meta-Down out."""

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import Logger
from torch import Tensor

from metalora.adapters.artifacts import save_prior
from metalora.adapters.bank import AdapterBank
from metalora.adapters.inject import eject, inject
from metalora.adapters.optimizer import BankAdamW
from metalora.core.atomic import write_bytes, writing
from metalora.core.budget import MemoryPlan
from metalora.core.contracts import Backbone, Batch, TextEmbedding, TrainingPerson
from metalora.core.errors import UserError
from metalora.core.lease import Lease
from metalora.core.metric_names import BUCKET, NORM_META_DOWN, NORMS, PHASE
from metalora.core.schedule import SLOTS, BucketPlan
from metalora.people.datamodule import IdentityDataModule
from metalora.people.sampler import IdentityBucketSampler
from metalora.people.share import Share
from metalora.training.bucket_schedule import BucketSchedule, bank_identities
from metalora.training.checkpoints import Exporter, StateKeeper, clear_leftovers, read_state
from metalora.training.configuration import (
    check_file,
    check_same,
    people_hash,
    quantization_of,
    read_metadata,
    to_metadata,
)
from metalora.training.identity_parallel import IdentityParallel, summed
from metalora.training.monitor import FiniteLoss, Metrics, Progress, ProgressReport, due
from metalora.training.priors import PRIOR, photos_of, prior_name
from metalora.training.ranks import Ranks
from metalora.training.speed import FILE as SPEED_FILE
from metalora.training.step import Recipe, clip_gradients, diffusion_loss, embedded
from metalora.training.trainer import fit

STATE, METRICS = "last.ckpt", "metrics.csv"
AGAIN = "again"
"""The folder of a run that makes priors from before the saved state."""


class MetaTraining(LightningModule):
    """Stage 1 around a frozen denoiser: Mid and Up of the bucket's identities, and Meta-Down after the warm-up.

    Its state dict is the bank's. `BucketSchedule` seats the identities and opens Meta-Down.

    Args:
        backbone: carries the bank already (`inject`).
        configuration: plain values, kept in the checkpoint.
    """

    def __init__(
        self, backbone: Backbone, bank: AdapterBank, *, recipe: Recipe, configuration: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self.save_hyperparameters({"configuration": dict(configuration)}, logger=False)
        self.backbone, self.bank, self.recipe = backbone, bank, recipe

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """The sum over identities of each one's mean loss."""
        loss = diffusion_loss(self.backbone, self.bank, batch, guidance=self.recipe.guidance)
        self._log_due = due(self.trainer, batch)
        self._part = len({sample.identity for sample in batch.samples}) / (batch.people or 1)
        return {"loss": loss.total, "mean": loss.mean, "finite_B": loss.finite_B}

    def configure_gradient_clipping(self, optimizer: Any, *_: Any, **__: Any) -> None:
        """Each identity by its own norm, Meta-Down by its own."""
        if self._log_due or self.recipe.gradient_clip is not None:
            norms = clip_gradients(self.bank, max_norm=self.recipe.gradient_clip, parts=self._log_due)
        if self._log_due:
            told = norms.named()  # Meta-Down's gradient is everybody's already
            names = [metric.name for metric in NORMS]
            means = self._of_all(torch.stack([told[name] for name in names]))
            self.log_dict(told | dict(zip(names, means, strict=True)), batch_size=1, logger=False)

    def _of_all(self, means: Tensor) -> Tensor:
        """Means over this process's identities of the iteration as means over everybody's."""
        return summed(means * self._part if self._part else torch.zeros_like(means), self.trainer)

    def configure_optimizers(self) -> BankAdamW:
        """One optimizer with two groups, so that Lightning's global_step counts iterations."""
        return BankAdamW(self.bank, lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay)


def run_meta_training(
    backbone: Backbone,
    people: Sequence[TrainingPerson],
    *,
    meta_rank: int,
    q_bucket: int,
    q_warmup: int,
    q_total: int,
    uses_per_example: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
    out: Path,
    rank: int = 1,
    slots: str = "reset",
    balance: int = 1,
    gradient_clip: float | None = None,
    weight_decay: float = 0.01,
    prior_every: int | None = None,
    checkpoint_seconds: float = 60.0,
    checkpoint_every: int | None = None,
    texts: Mapping[str, TextEmbedding] | None = None,
    metadata: Mapping[str, str] | None = None,
    device: str = "cpu",
    logger: Logger | None = None,
    log_every: int = 10,
    callbacks: Sequence[Callback] = (),
    progress: Progress | None = None,
    memory_plan: MemoryPlan | None = None,
    ranks: Ranks | None = None,
    say: Callable[[str], None] | None = None,
) -> Path:
    """Train a prior and write `out/prior.safetensors`; continue a cut or shorter run; return at once when it is there.

    Args:
        people: identities of one class with cached latents.
        meta_rank: r1, the width of Meta-Down.
        q_bucket, q_warmup, q_total: iterations; see `BucketPlan`.
        uses_per_example: how often a bucket visit uses each image.
        batch_size: samples per iteration.
        rank: r2 of the identities' Mid and Up during Stage 1.
        slots: reset, reuse or persist; see `BucketSchedule`.
        balance: see `IdentityBucketSampler`.
        prior_every: also write `prior-<iterations>.safetensors` at multiples of this; those of before the saved state
            are trained from the start, aside.
        checkpoint_seconds, checkpoint_every: how much work a killed run can lose, in seconds and in iterations.
        texts: caption to its embedding, a single row; by default the backbone embeds them.
        metadata: kept in the prior's header, e.g. class_noun.
        memory_plan: what memory was expected to peak at.
        ranks: the processes that train together; one by default. Every one calls this function with the same values.
        say: told one line about buckets, and about images that are not used.

    Returns:
        the prior's path.

    Raises:
        UserError: numbers that cannot work together, a folder of another or a longer run, a full disk, a lost process.
        KeyboardInterrupt: asked to stop; the state is saved.
    """
    if slots not in SLOTS:
        raise UserError("no such way to treat slots", expected=", ".join(SLOTS), got=slots, key="stage1.slots")
    if balance < 1:
        raise UserError("no such balance", expected="1 or more", got=str(balance), key="stage1.balance")
    plan = BucketPlan(
        photos_of(people),
        q_bucket=q_bucket,
        q_warmup=q_warmup,
        q_total=q_total,
        batch_size=batch_size,
        uses_per_example=uses_per_example,
        seed=seed,
    )
    ranks = ranks or Ranks()
    share = Share(plan, slots, rank=ranks.rank, world=ranks.world)
    first = ranks.rank == 0
    recipe = Recipe(learning_rate=learning_rate, weight_decay=weight_decay, gradient_clip=gradient_clip)
    recipe.check(section="stage1.")
    configuration = {
        "backbone": backbone.fingerprint,
        "meta_rank": meta_rank,
        "people": people_hash(people),
        "seed": seed,
        "stage1.rank": rank,
        "stage1.slots": slots,
        **{f"stage1.{key}": getattr(plan, key) for key in ("q_bucket", "q_warmup", "batch_size", "uses_per_example")},
        **{f"stage1.{key}": value for key, value in asdict(recipe).items()},
        **({} if balance == 1 else {"stage1.balance": balance}),
        **quantization_of(backbone),
    }
    out.mkdir(parents=True, exist_ok=True)
    with Lease(out / ".lease", what=out.name) if first else contextlib.nullcontext():
        missing = _missing_priors(out, configuration, q_total=q_total, prior_every=prior_every, write=first)
        if not missing:
            return out / PRIOR
        leg = _leg_of(out, missing, configuration)
        layers = backbone.layer_shapes
        bank = AdapterBank(layers, identities=bank_identities(share), rank=rank, meta_rank=meta_rank, seed=seed)
        sampler = IdentityBucketSampler(plan, people, slots=slots, balance=balance)
        if say is not None:
            for line in _notes(share, sampler, leg):
                say(line)
        header = {**(metadata or {}), **to_metadata(configuration), "people": str(len(people)), "rank": str(rank)}

        def export(iterations: int) -> None:
            if not first:  # Meta-Down is the same everywhere
                return
            for path in missing[iterations]:
                clear_leftovers(path)
                with writing(path):
                    save_prior(
                        path,
                        bank,
                        backbone=backbone.name,
                        backbone_fingerprint=backbone.fingerprint,
                        metadata={**header, "iterations": str(iterations)},
                    )

        finite = FiniteLoss(bank, key="stage1.learning_rate")
        hooks: list[Callback] = [
            BucketSchedule(share, bank),
            finite,
            Metrics(
                leg.folder / METRICS,
                columns=[metric.name for metric in (NORM_META_DOWN, *NORMS, BUCKET, PHASE)],
                warm_up=lambda iteration: plan.visit(iteration).warm_up,
            ),
            Exporter(lambda done: done in missing, export, check=finite.check),
            *callbacks,
        ]
        if progress is not None:
            hooks.append(ProgressReport(progress, label="Stage 1", total=leg.end, plan=plan))
        texts = texts or embedded(backbone, people)
        injection = inject(backbone.denoiser, bank)
        try:
            fit(
                MetaTraining(backbone, bank, recipe=recipe, configuration=configuration),
                IdentityDataModule(
                    people,
                    sampler=sampler,
                    texts=texts,
                    objective=backbone.objective,
                    seed=seed,
                    part=share.samples,
                ),
                keeper=StateKeeper(
                    leg.folder / STATE,
                    end=leg.end,
                    seconds=checkpoint_seconds,
                    every=checkpoint_every,
                    check=finite.check,
                ),
                callbacks=hooks,
                resume=leg.resume,
                device=device,
                logger=logger if leg.end > leg.kept else None,  # which was told these numbers before
                log_every=log_every,
                memory_key="stage1.batch_size",
                plan=memory_plan,
                parallel=IdentityParallel(ranks, share=share, bank=bank) if ranks.world > 1 else None,
            )
        finally:
            eject(injection)
        if first and leg.kept:
            _take_over(leg, out)
    return out / PRIOR


def _missing_priors(
    out: Path, configuration: Mapping[str, Any], *, q_total: int, prior_every: int | None, write: bool
) -> dict[int, list[Path]]:
    """What is still to be trained, by iteration count; whatever is there must come from this very run. Of two files of
    the same iteration one that is missing is a copy of the other.

    Args:
        write: make the copies.
    """
    wanted = [(n, out / prior_name(n)) for n in (range(prior_every, q_total + 1, prior_every) if prior_every else ())]
    wanted.append((q_total, out / PRIOR))
    there: dict[int, Path] = {}
    missing: dict[int, list[Path]] = {}
    for iterations, path in wanted:
        reached = 0
        if path.is_file():
            check_file(path, configuration)
            reached = int(read_metadata(path)["iterations"])
        if reached > iterations:
            key = "stage1.q_total or out"
            raise UserError(f"{path} is of a longer run", expected=f"at least {reached}", got=str(q_total), key=key)
        if reached:
            there[reached] = path
        if reached < iterations:
            missing.setdefault(iterations, []).append(path)
    for iterations in sorted(there.keys() & missing.keys()):  # a shorter run's prior.safetensors goes last
        for path in missing.pop(iterations):
            if write:
                with writing(path):
                    write_bytes(path, there[iterations].read_bytes())
    return missing


@dataclass(frozen=True)
class _Leg:
    """Iterations that are trained in one go."""

    folder: Path
    """Of the state and the metrics."""
    end: int
    resume: bool
    kept: int
    """Iterations of another state, which stays as it is meanwhile; 0: this is the only one."""


def _leg_of(out: Path, missing: Mapping[int, Sequence[Path]], configuration: Mapping[str, Any]) -> _Leg:
    """Go on from the saved state; aside and from the start when a prior of before it is missing.

    Raises:
        UserError: a state that another configuration made.
    """
    begin, end, kept = min(missing), max(missing), 0
    for folder in (out, out / AGAIN):
        state = read_state(folder / STATE)
        if state is not None:
            check_same(configuration, state.configuration, where=folder / STATE)
        if state is None or state.iterations < begin:
            return _Leg(folder, end=end, resume=state is not None, kept=kept)
        kept = kept or state.iterations
    return _Leg(out / AGAIN, end=end, resume=False, kept=kept)


def _take_over(leg: _Leg, out: Path) -> None:
    """Keep the state that is further, with its metrics."""
    if leg.end > leg.kept:
        for name in (METRICS, SPEED_FILE, STATE):  # rows beyond a state are dropped when it goes on
            if (leg.folder / name).is_file():
                (leg.folder / name).replace(out / name)
    shutil.rmtree(leg.folder)


def _notes(share: Share, sampler: IdentityBucketSampler, leg: _Leg) -> Iterator[str]:
    """What is worth knowing before the first iteration, a line each."""
    plan = share.plan
    unused = sampler.unused()
    yield plan.note() + (f"; {unused} images of rare shapes are not used" if unused else "")
    if leg.kept:
        yield f"priors of before iteration {leg.kept} are missing: trained again, aside; the state there is kept"
    if share.world > 1:
        visit = range(min(plan.q_bucket, plan.q_total))
        load = sum(max(share.loads(sampler.samples(iteration))) for iteration in visit) / len(visit)
        yield (
            f"{share.world} processes; of an iteration's {plan.batch_size} samples, "
            f"{plan.batch_size / share.world:g} each, the busiest one has {load:.1f} on average"
        )

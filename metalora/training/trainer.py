"""The Lightning Trainer, set up the same way for both stages."""

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from metalora.core.budget import MemoryPlan
from metalora.core.device import explained
from metalora.core.errors import TERMINATED
from metalora.training.checkpoints import AtomicCheckpointIO, StateKeeper, clear_leftovers
from metalora.training.identity_parallel import IdentityParallel
from metalora.training.ranks import Ranks


def fit(
    module: LightningModule,
    data: LightningDataModule,
    *,
    keeper: StateKeeper,
    callbacks: Sequence[Callback],
    resume: bool,
    device: str,
    logger: Logger | None,
    log_every: int,
    memory_key: str = "batch_size, cohort_size",
    plan: MemoryPlan | None = None,
    parallel: IdentityParallel | None = None,
) -> None:
    """Train until `keeper.end`, from the keeper's state or from the start.

    Args:
        device: cpu or cuda.
        memory_key: the configuration keys that say how much is trained at once.
        plan: what memory was expected to peak at, told when there is not enough.
        parallel: the processes that train together, each calling this function; none: one process and one device.

    Raises:
        UserError: the device's memory is full, or it failed, or another process was lost; the last saved state is kept.
        KeyboardInterrupt: it was asked to stop; the state is saved.
        SystemExit: the same by SIGTERM, with status 143.
    """
    ranks = Ranks() if parallel is None else parallel.ranks
    if ranks.rank == 0:
        clear_leftovers(keeper.path)
    with _quiet(), _own_interrupts(), ranks.joined():
        trainer = Trainer(
            accelerator={"cuda": "gpu"}.get(device, device),
            devices=ranks.devices,
            num_nodes=ranks.nodes,
            strategy=parallel or "auto",
            max_steps=keeper.end,
            max_epochs=-1,
            callbacks=[*callbacks, keeper],
            # Ours: one process stays one, also inside a cluster job whose environment Lightning would act upon.
            plugins=[AtomicCheckpointIO(), ranks.environment()],
            logger=(logger or False) if ranks.rank == 0 else False,
            log_every_n_steps=log_every,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=keeper.path.parent,
        )
        try:
            told = {} if plan is None else {"less": plan.less, "planned": str(plan)}
            with explained(key=f"memory, {memory_key}, resolutions", **told):
                trainer.fit(module, datamodule=data, ckpt_path=keeper.path if resume else None)
        except SIGTERMException:  # without a status of its own, it would pass for success
            raise SystemExit(TERMINATED) from None
        except SystemExit as stop:  # what Lightning makes of a KeyboardInterrupt
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            raise KeyboardInterrupt from None
    if keeper.interrupted:
        raise KeyboardInterrupt
    if keeper.terminated:
        raise SystemExit(TERMINATED)
    assert trainer.global_step == keeper.end, f"stopped at {trainer.global_step} of {keeper.end}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning tells about accelerators and reached limits; the caller's own output says what counts."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Give Ctrl-C back to whoever had it: Lightning leaves it ignored after one, and its callbacks after an error."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

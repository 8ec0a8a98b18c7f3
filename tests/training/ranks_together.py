"""Runs Stage 1 in several real processes joined by gloo, and writes down what each saw; importable by the processes."""

import multiprocessing
import os
import signal
import socket
import time
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from training_runs import before_call, stage1

from metalora.adapters.bank import AdapterBank
from metalora.backbones.flux import load_flux
from metalora.core.contracts import Batch
from metalora.core.errors import UserError
from metalora.training.ranks import Ranks
from metalora.training.speed import Speed

# One server process imports everything once; each rank is a fork of it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["metalora.training.meta_training", "metalora.backbones.flux"])

SENDING = ("all_reduce", "broadcast", "broadcast_object_list", "send", "recv", "barrier", "reduce", "gather", "scatter")
SENDING += ("all_gather", "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor", "all_to_all")


@dataclass
class Seen(Callback):
    """What a process had at the end of every iteration, and what it sent in it."""

    messages: list[list[tuple[str, int]]] = field(default_factory=list)
    """Per iteration, until the next one begins: function and bytes."""
    samples: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rows: list[dict[str, torch.Tensor]] = field(default_factory=list)
    """Per iteration, every own identity's row."""
    meta_down: list[torch.Tensor] = field(default_factory=list)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        self.messages.append([])
        self.samples.append(len(batch.samples))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        bank: AdapterBank = pl_module.bank
        self.losses.append(float(outputs["mean"]))
        self.rows.append({identity: bank.rows.detach()[row].clone() for row, identity in enumerate(bank.identities)})
        self.meta_down.append(torch.cat([value.detach().flatten() for value in bank.meta_down.values()]))

    def listen(self) -> None:
        """Note every message of torch.distributed from now on."""
        for name in SENDING:
            setattr(dist, name, self._noting(name, getattr(dist, name)))

    def _noting(self, name: str, function: Any) -> Any:
        def noting(*arguments: Any, **options: Any) -> Any:
            tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
            if self.messages:
                self.messages[-1].append((name, sum(value.numel() * value.element_size() for value in tensors)))
            return function(*arguments, **options)

        return noting


def free_port() -> int:
    """A port of this machine that nobody has now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def one_rank(rank: int, world: int, port: int, flux: Path, out: Path, settings: dict[str, Any]) -> None:
    """What one process does. `moments`: rank -> (kill | interrupt | spoil, the forward before which it happens)."""
    if world > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    settings = dict(settings)
    moment, number = settings.pop("moments", {}).get(rank, ("", 0))
    timeout = settings.pop("timeout", 60.0)
    backbone, seen = load_flux(flux, name="tiny"), Seen()
    seen.listen()
    acts = {
        "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
        "freeze": lambda: time.sleep(10),
        "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
        "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    }
    if moment in acts:
        backbone.predict = before_call(backbone.predict, number, acts[moment])  # type: ignore[method-assign]
    try:
        stage1(backbone, out, ranks=Ranks(devices=world, timeout=timeout), callbacks=[seen, Speed()], **settings)
    except UserError as error:
        seen_file(out, rank).with_suffix(".txt").write_text(str(error))
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    finally:
        torch.save({item.name: getattr(seen, item.name) for item in fields(seen)}, seen_file(out, rank))


def seen_file(out: Path, rank: int) -> Path:
    """Where a process leaves what it saw."""
    return out.parent / f"{out.name}-{rank}.pt"


@dataclass(frozen=True)
class Together:
    """What all processes of a run left behind."""

    out: Path
    statuses: list[int | None]
    """None: still running after the limit."""
    seen: list[dict[str, Any]]
    told: list[str]
    """Each process's error, or nothing."""


def together(world: int, flux: Path, out: Path, *, seconds: float = 600, **settings: Any) -> Together:
    """Run Stage 1 in `world` processes and wait for them."""
    port = free_port()
    processes = [
        CONTEXT.Process(target=one_rank, args=(rank, world, port, flux, out, settings)) for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
    statuses = [process.exitcode for process in processes]
    for process in processes:
        if process.exitcode is None:
            process.kill()
    files = [seen_file(out, rank) for rank in range(world)]
    seen = [torch.load(file, weights_only=False) if file.is_file() else {} for file in files]
    told = [file.with_suffix(".txt").read_text() if file.with_suffix(".txt").is_file() else "" for file in files]
    return Together(out, statuses, seen, told)

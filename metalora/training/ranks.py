"""How many processes train together, which one this is, and who started it."""

import contextlib
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.distributed as dist

from metalora.core.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment

KEYS = "trainer.devices, trainer.nodes"
_MEETING = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """Processes of one training run, one per device.

    Args:
        devices: processes on this machine.
        nodes: machines.
        timeout: seconds that the others wait for one that does not answer.
        command: starts another process of the same run on this machine; empty when all are started from outside
            (torchrun, srun, or LOCAL_RANK and its like in the environment).
    """

    devices: int = 1
    nodes: int = 1
    timeout: float = 900.0
    command: tuple[str, ...] = ()

    @property
    def world(self) -> int:
        """Processes in all."""
        return self.devices * self.nodes

    @property
    def local_rank(self) -> int:
        """Which of this machine's processes this one is."""
        return self.environment().local_rank() if self.world > 1 else 0

    @property
    def rank(self) -> int:
        """Which of all processes this one is; 0 writes the files."""
        return self.environment().node_rank() * self.devices + self.local_rank if self.world > 1 else 0

    @property
    def run(self) -> str:
        """A name of this run that all its processes know when they were started from outside, else nothing."""
        if self.world == 1:
            return ""
        from lightning.fabric.plugins.environments import SLURMEnvironment

        environment = self.environment()
        if isinstance(environment, SLURMEnvironment):
            names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        elif environment.creates_processes_externally or self.nodes > 1:
            names = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
        else:
            return ""
        where = [platform.node()] if self.nodes == 1 else []  # 127.0.0.1 and the port by default are anybody's
        return " ".join([*where, *(os.environ.get(name, "-") for name in names)])

    def environment(self) -> "ClusterEnvironment":
        """Who started the processes: torchrun, Slurm's srun with as many tasks, or nobody but ourselves.

        Raises:
            UserError: another number of processes was started than the configuration says.
        """
        from lightning.fabric.plugins.environments import (
            LightningEnvironment,
            SLURMEnvironment,
            TorchElasticEnvironment,
        )

        if self.world > 1 and started_by_torchrun() is not None:
            return self._checked(TorchElasticEnvironment())
        # Only srun sets this one: a batch script that runs one process of a large allocation starts the others itself.
        if self.world > 1 and os.environ.get("SLURM_STEP_NUM_TASKS") == str(self.world):
            os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(self.devices))  # `srun -n 2` without it is refused
            return self._checked(SLURMEnvironment(auto_requeue=False))
        if missing := [name for name in _MEETING if self.nodes > 1 and name not in os.environ]:
            raise UserError(
                "the machines do not know where to meet",
                expected="the command started by torchrun or srun, or on each machine with NODE_RANK, MASTER_ADDR and "
                "MASTER_PORT",
                got=f"no {', '.join(missing)}",
                key="trainer.nodes",
            )
        return LightningEnvironment()

    def _checked(self, environment: "ClusterEnvironment") -> "ClusterEnvironment":
        try:
            environment.validate_settings(num_devices=self.devices, num_nodes=self.nodes)
        except ValueError as error:
            raise UserError(
                "another number of processes was started than the configuration says",
                expected=f"{self.devices} on each of {self.nodes} machine(s)",
                got=str(error).split(" HINT")[0],
                key=KEYS,
            ) from None
        return environment

    @contextlib.contextmanager
    def joined(self) -> Iterator[None]:
        """Around a run: leave no process group and no environment behind, and say in one line who is missing.

        Raises:
            UserError: another process has ended, or did not answer in time.
        """
        names = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")
        before = {name: os.environ.get(name) for name in names}
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not _lost(error):
                raise
            raise UserError(
                f"process {self.rank} of {self.world} has lost another one; what was saved is kept, and the same "
                "command continues",
                expected=f"an answer within {self.timeout:g} s; the other process's own message may say more",
                got=str(error).splitlines()[0].partition("] ")[2].partition(". ")[0] or type(error).__name__,
                key=f"{KEYS}, trainer.rank_timeout",
            ) from error
        finally:
            if self.world > 1:
                if dist.is_initialized():
                    dist.destroy_process_group()
                for name, value in before.items():
                    os.environ.pop(name, None)
                    if value is not None:
                        os.environ[name] = value


def started_by_torchrun() -> int | None:
    """How many processes torchrun started; None when it did not."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_available() and dist.is_torchelastic_launched() else None


def _lost(error: RuntimeError) -> bool:
    """gloo's errors have no type of their own."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)

"""Starts the other processes of a run on this machine, and ends the run when one of them is lost."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from lightning.fabric.plugins.environments import ClusterEnvironment
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from metalora.core.errors import INTERRUPTED, TERMINATED
from metalora.training.ranks import Ranks

_GRACE = 20.0
"""Seconds in which the others may notice by themselves that one is lost; one that hangs in a GPU's kernel cannot."""


class RankLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher with a command of our own, because Lightning's runs the script again: inside a sweep or a
    worker process that would be all of it. Nothing is left in this process's environment."""

    def __init__(self, environment: ClusterEnvironment, ranks: Ranks) -> None:
        super().__init__(environment, num_processes=ranks.devices, num_nodes=ranks.nodes)
        self._ranks = ranks

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the others (if nobody else does), run `function` here, and see them end."""
        if self.cluster_environment.creates_processes_externally:
            return function(*args, **kwargs)
        self._start()
        over = threading.Event()
        threading.Thread(target=self._watch, args=(over,), daemon=True).start()
        try:
            return function(*args, **kwargs)
        finally:
            over.set()
            if dist.is_initialized():  # the others leave the group together with this one, or wait for it
                dist.destroy_process_group()
            self._end()

    def _start(self) -> None:
        environment = self.cluster_environment
        shared = {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(environment.node_rank()),
            "WORLD_SIZE": str(self._ranks.world),
        }
        for local_rank in range(1, self.num_processes):
            variables = os.environ | shared | {"LOCAL_RANK": str(local_rank)}
            self.procs.append(subprocess.Popen(list(self._ranks.command), env=variables))

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(0.5):
            if any(process.poll() for process in self.procs):
                if not over.wait(_GRACE):
                    self._tell()
                    self._kill()
                    os._exit(1)
                return

    def _end(self) -> None:
        deadline = time.monotonic() + _GRACE
        for process in self.procs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
        self._tell()
        self._kill()
        self.procs = []

    def _tell(self) -> None:
        for local_rank, process in enumerate(self.procs, start=1):
            if process.poll() not in (0, None, INTERRUPTED, TERMINATED):
                print(
                    f"metalora: process {local_rank} ended with status {process.returncode}",
                    file=sys.stderr,
                    flush=True,
                )

    def _kill(self) -> None:
        for process in self.procs:
            if process.poll() is None:
                process.kill()

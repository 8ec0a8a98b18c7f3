"""How many processes train Stage 1 together, from the configuration; each with a device and threads of its own."""

import json
import sys

from metalora.core.cores import cores
from metalora.core.errors import UserError
from metalora.running.setting import Setting
from metalora.training.ranks import KEYS, Ranks, started_by_torchrun


def ranks_of(setting: Setting, *, class_noun: str) -> Ranks:
    """The processes of a run, and how another one of them is started.

    Raises:
        UserError: no whole numbers, or torchrun started another number.
    """
    (devices,) = setting.numbers("trainer.devices", least=1, count=1)
    (nodes,) = setting.numbers("trainer.nodes", least=1, count=1)
    started = started_by_torchrun()
    if started is not None and started != devices * nodes:
        raise UserError(
            "another number of processes was started than the configuration says",
            expected=f"trainer.devices x trainer.nodes = {devices * nodes}",
            got=f"{started}, by torchrun",
            key=KEYS,
        )
    timeout = setting["trainer.rank_timeout"]
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout < 1e9:
        raise UserError("no time to wait", expected="seconds", got=str(timeout), key="trainer.rank_timeout")
    command = (sys.executable, "-m", "metalora.tasks.rank", json.dumps([setting.values, class_noun]))
    return Ranks(devices=devices, nodes=nodes, timeout=float(timeout), command=command)


def take_place(setting: Setting, ranks: Ranks) -> None:
    """Take this process's GPU, or its part of the machine's cores; nothing changes for one process.

    Raises:
        UserError: fewer GPUs than processes.
    """
    if ranks.world == 1:
        return
    import torch

    if setting["trainer.device"] == "cuda":
        if (found := torch.cuda.device_count()) < ranks.devices:
            raise UserError("not enough GPUs", expected=str(ranks.devices), got=str(found), key="trainer.devices")
        torch.cuda.set_device(ranks.local_rank)
    elif setting["trainer.threads"] == "auto":
        torch.set_num_threads(max(1, min(torch.get_num_threads(), cores() // ranks.devices)))

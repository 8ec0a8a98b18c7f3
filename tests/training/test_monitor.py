"""What a run tells: rows of metrics, whatever device its losses are on."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from metalora.training import monitor
from metalora.training.monitor import Metrics


def test_a_row_that_was_cut_goes_on_where_the_model_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state is read on the CPU, and the model may be elsewhere (here: on the meta device)."""
    metrics = Metrics(tmp_path / "metrics.csv")
    metrics.load_state_dict({"losses": torch.tensor([1.0, 2.0])})
    model: Any = SimpleNamespace(device=torch.device("meta"))
    trainer: Any = SimpleNamespace(is_global_zero=True, global_step=2, log_every_n_steps=10, max_steps=10)
    batch: Any = SimpleNamespace(iteration=2)
    metrics.on_train_start(trainer, model)
    metrics.on_train_batch_end(trainer, model, {"mean": torch.zeros((), device="meta")}, batch, 2)
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(monitor, "summed", lambda losses, trainer: seen.append(losses) or torch.zeros(3))
    metrics.state_dict()
    assert [(losses.device.type, len(losses)) for losses in seen] == [("meta", 3)]

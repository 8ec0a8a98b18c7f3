"""A loss that is no number, a full GPU, a lost GPU: one line, nothing spoilt, and the same command goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_runs import same_file, stage1, stage2

from metalora.backbones.backbone import DiffusersBackbone
from metalora.core.budget import GIB, MemoryPlan, smaller
from metalora.core.contracts import MemoryUse
from metalora.core.errors import UserError
from metalora.training.checkpoints import read_state


def at_call(function: Callable[..., Tensor], number: int, change: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """`function`, whose `number`-th result (from 1) is changed."""
    calls = 0

    def wrapped(*arguments: Any, **options: Any) -> Tensor:
        nonlocal calls
        calls += 1
        result = function(*arguments, **options)
        return change(result) if calls == number else result

    return wrapped


def spoil_second(prediction_BCHW: Tensor) -> Tensor:
    return prediction_BCHW * torch.tensor([1.0, float("nan"), 1.0]).view(-1, 1, 1, 1)


def test_a_lost_loss_stops_stage_2_and_says_whose_and_when(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    run = {"iterations": [10, 20], "checkpoint_every": 5, "log_every": 10}
    stage2(tiny_backbone, tmp_path / "whole", **run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_backbone, "predict", at_call(tiny_backbone.predict, 17, spoil_second))
        message = r"not a number at iteration 17; .*kept; .*got 1 of 3 samples without, of p1; key: learning_rate"
        with pytest.raises(UserError, match=message):
            stage2(tiny_backbone, tmp_path / "cut", **run)
    (state,) = (tmp_path / "cut").glob("cohort-*/last.ckpt")
    saved = read_state(state)
    assert saved is not None and saved.iterations == 15  # not 20: that one is spoilt
    for person in ("p0", "p1", "p2"):
        assert not (tmp_path / "cut" / person / "lora-000020.safetensors").exists()
    stage2(tiny_backbone, tmp_path / "cut", **run)
    for person in ("p0", "p1", "p2"):
        for name in ("lora-000010.safetensors", "lora-000020.safetensors"):
            assert same_file(tmp_path / "whole" / person / name, tmp_path / "cut" / person / name)


def test_a_lora_of_a_lost_loss_is_never_written(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    """Between two rows of metrics: the export itself looks first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_backbone, "predict", at_call(tiny_backbone.predict, 3, spoil_second))
        with pytest.raises(UserError, match="not a number at iteration 3"):
            stage2(tiny_backbone, tmp_path, iterations=[4, 20], log_every=50)
    assert not list(tmp_path.glob("*/lora-*.safetensors")) and not list(tmp_path.glob("cohort-*/last.ckpt"))


def test_a_lost_loss_stops_stage_1(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_backbone, "predict", at_call(tiny_backbone.predict, 12, lambda p: p / 0))
        with pytest.raises(UserError, match=r"iteration 12; .*4 of 4 samples.*key: stage1.learning_rate"):
            stage1(tiny_backbone, tmp_path / "cut", checkpoint_every=5)
    saved = read_state(tmp_path / "cut" / "last.ckpt")
    assert saved is not None and saved.iterations == 10 and not (tmp_path / "cut" / "prior.safetensors").exists()
    assert same_file(stage1(tiny_backbone, tmp_path / "cut"), stage1(tiny_backbone, tmp_path / "whole"))


def test_a_gradient_that_overflows_is_not_kept_either(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    """The loss of that step is a number still; the weights after it are not."""

    class Overflow(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad / 0

    run = {"iterations": [10, 20], "checkpoint_every": 5, "log_every": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_backbone, "predict", at_call(tiny_backbone.predict, 10, Overflow.apply))
        with pytest.raises(
            UserError, match="an adapter is not a number at iteration 10; what was saved before is kept"
        ):
            stage2(tiny_backbone, tmp_path / "cut", **run)
    (state,) = (tmp_path / "cut").glob("cohort-*/last.ckpt")
    saved = read_state(state)
    assert saved is not None and saved.iterations == 5 and not list((tmp_path / "cut").glob("*/lora-*.safetensors"))
    stage2(tiny_backbone, tmp_path / "cut", **run)
    stage2(tiny_backbone, tmp_path / "whole", **run)
    for name in ("p0/lora-000010.safetensors", "p2/lora-000020.safetensors"):
        assert same_file(tmp_path / "whole" / name, tmp_path / "cut" / name)


FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which 1.31 GiB is "
    "free. Process 1 has 22.32 GiB memory in use."
)


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (
            torch.OutOfMemoryError(FULL),
            "GPU's memory is full; .*than one of 23.64 GiB; got Tried to allocate 2.00 GiB; key: memory, batch_size",
        ),
        (torch.AcceleratorError("CUDA error: device lost\nmore"), "GPU failed; .*got CUDA error: device lost"),
    ],
)
def test_a_device_that_fails_is_one_line(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, failure: Exception, message: str
) -> None:
    def fail(_: Tensor) -> Tensor:
        raise failure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_backbone, "predict", at_call(tiny_backbone.predict, 8, fail))
        with pytest.raises(UserError, match=message):
            stage2(tiny_backbone, tmp_path, iterations=[10], checkpoint_every=4)
    (state,) = tmp_path.glob("cohort-*/last.ckpt")
    saved = read_state(state)
    assert saved is not None and saved.iterations == 4


def test_a_full_gpu_is_told_with_the_plan_and_what_needs_less(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    plan = MemoryPlan(MemoryUse("float8", "all"), 12 * GIB, GIB, 0, 2 * GIB, less=smaller("24gb", 24 * GIB))

    def full(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError(FULL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_backbone, "predict", at_call(tiny_backbone.predict, 1, full))
        told = (
            r"expected memory=16gb, or smaller resolutions or batches, or a larger GPU than one of 23.64 GiB; "
            r"got Tried to allocate 2.00 GiB; planned was a peak of 15.0 GiB \(weights 12.0, .*float8 weights.*"
            r"key: memory"
        )
        with pytest.raises(UserError, match=told):
            stage2(tiny_backbone, tmp_path, iterations=[2], memory_plan=plan)

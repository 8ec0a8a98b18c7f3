"""A run killed at any moment and started again ends with bitwise the files of the uncut run."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import STAGE1, before_call, same_file, stage1, stage2

from metalora.backbones.backbone import DiffusersBackbone
from metalora.backbones.flux import load_flux
from metalora.core.errors import UserError
from metalora.training import checkpoints, personalization

# One server process imports everything once; each run is a fork of it, so a kill costs no new start.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["metalora.training.meta_training", "metalora.backbones.flux"])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


COUNT = "forwards"
"""File beside the run's folder with the number of forwards of its last process."""


def run(stage: str, flux: Path, out: Path, moment: str, number: int, settings: dict[str, Any]) -> None:
    """In a process of its own: one stage, killed at the `number`-th forward, save or export when there is a moment."""
    torch.set_num_threads(1)
    backbone = load_flux(flux, name="tiny")
    calls, predict = 0, backbone.predict

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        out.with_suffix(f".{COUNT}").write_text(str(calls))
        return predict(*arguments, **options)

    backbone.predict = counted  # type: ignore[method-assign]
    if moment == "forward":
        backbone.predict = before_call(backbone.predict, number, die)  # type: ignore[method-assign]
    elif moment == "term":
        backbone.predict = before_call(backbone.predict, number, terminate)  # type: ignore[method-assign]
    elif moment == "save":  # the new state is written, but not yet in the old one's place
        Path.replace = before_call(Path.replace, number, die)  # type: ignore[method-assign]
    elif moment == "export":
        personalization.save_lora = before_call(personalization.save_lora, number, die)  # type: ignore[attr-defined]
    {"stage1": stage1, "stage2": stage2}[stage](backbone, out, **settings)


def in_process(*arguments: Any) -> int:
    process = CONTEXT.Process(target=run, args=arguments)
    process.start()
    process.join(600)
    assert process.exitcode is not None, "still running"
    return process.exitcode


@pytest.fixture(scope="module")
def uncut(tiny_flux_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of an uncut run, made once for each stage and setting."""
    made: dict[str, Path] = {}

    def folder(stage: str, **settings: Any) -> Path:
        key = f"{stage} {settings}"
        if key not in made:
            made[key] = tmp_path_factory.mktemp("uncut")
            assert in_process(stage, tiny_flux_dir, made[key], "", 0, settings) == 0
        return made[key]

    return folder


@pytest.mark.parametrize(
    ("stage", "moments", "settings"),
    [
        # q_bucket 8, q_warmup 3: iterations 8 to 10 and 24 to 26 are warm-up, 11 to 15 train Meta-Down.
        pytest.param("stage1", [("forward", 11)], {"checkpoint_every": 1}, id="stage 1 in warm-up"),
        pytest.param(
            "stage1", [("forward", 15), ("forward", 12)], {"checkpoint_every": 5, "log_every": 4}, id="stage 1 after it"
        ),
        pytest.param(
            "stage1", [("save", 6)], {"checkpoint_every": 4, "slots": "reuse"}, id="stage 1, while the state is saved"
        ),
        pytest.param(
            "stage1", [("forward", 14)], {"checkpoint_every": 1, "slots": "reuse"}, id="stage 1, reused slots"
        ),
        pytest.param("stage1", [("forward", 22)], {"checkpoint_every": 1, "slots": "persist"}, id="stage 1, own rows"),
        pytest.param("stage2", [("forward", 14)], {"checkpoint_every": 4}, id="stage 2"),
        pytest.param("stage2", [("export", 5)], {"checkpoint_every": 7}, id="stage 2, between two people's LoRAs"),
        # Roster, metrics.csv, state of iteration 9, LoRAs of iteration 10: the second one is not yet in its place.
        pytest.param("stage2", [("save", 5)], {"checkpoint_every": 9}, id="stage 2, while a LoRA is written"),
    ],
)
def test_killed_and_started_again_ends_like_uncut(
    stage: str,
    moments: list[tuple[str, int]],
    settings: dict[str, Any],
    uncut: Callable[..., Path],
    tiny_flux_dir: Path,
    tmp_path: Path,
) -> None:
    whole = uncut(stage, **{key: value for key, value in settings.items() if key != "checkpoint_every"})
    out = tmp_path / "run"
    for moment, number in moments:
        assert in_process(stage, tiny_flux_dir, out, moment, number, settings) == -signal.SIGKILL
        assert list(out.rglob("last.ckpt")), "killed before anything was saved"
    saved = [checkpoints.read_state(path).iterations for path in out.rglob("last.ckpt")]
    assert in_process(stage, tiny_flux_dir, out, "", 0, settings) == 0
    iterations_left = {"stage1": STAGE1["q_total"], "stage2": 20}[stage] - saved[0]
    assert int(out.with_suffix(f".{COUNT}").read_text()) == iterations_left, "it started again instead of going on"

    def files(folder: Path) -> list[Path]:
        return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file() and p.parent.name != ".lease")

    assert files(out) == files(whole)  # and no half-written file is left
    compared = [path for path in files(whole) if path.suffix in (".safetensors", ".csv")]
    assert len(compared) >= 2
    for path in compared:
        assert same_file(out / path, whole / path), path


def test_ctrl_c_saves_and_stops_after_the_iteration_at_hand(
    tiny_backbone: DiffusersBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncut = stage1(tiny_backbone, tmp_path / "uncut", q_total=12)

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_backbone, "predict", before_call(tiny_backbone.predict, 7, interrupt))
        with pytest.raises(KeyboardInterrupt):
            stage1(tiny_backbone, tmp_path / "cut", q_total=12)
    assert signal.getsignal(signal.SIGINT) is handler
    state = checkpoints.read_state(tmp_path / "cut" / "last.ckpt")
    assert state is not None and state.iterations == 7
    assert "forward" not in vars(next(iter(tiny_backbone.target_layers().values())))  # adapters are taken out again
    assert same_file(stage1(tiny_backbone, tmp_path / "cut", q_total=12), uncut)


def test_sigterm_saves_and_does_not_pass_for_success(
    uncut: Callable[..., Path], tiny_flux_dir: Path, tmp_path: Path
) -> None:
    whole, out = uncut("stage1"), tmp_path / "run"
    assert in_process("stage1", tiny_flux_dir, out, "term", 7, {}) == 143
    state = checkpoints.read_state(out / "last.ckpt")
    assert state is not None and state.iterations == 7
    assert in_process("stage1", tiny_flux_dir, out, "", 0, {}) == 0
    assert same_file(out / "prior.safetensors", whole / "prior.safetensors")


def full(*_: Any, **__: Any) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("what", ["state", "lora"])
def test_a_full_disk_is_one_clear_line_and_harms_nothing(
    what: str, tiny_backbone: DiffusersBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uncut = stage2(tiny_backbone, tmp_path / "uncut", people=2, iterations=[4, 8])
    stage2(tiny_backbone, tmp_path / "cut", people=2, iterations=[4])
    made = {
        path: path.read_bytes()
        for path in (tmp_path / "cut").rglob("*")
        if path.suffix != ".csv" and path.parent.name != ".lease" and path.is_file()
    }
    with monkeypatch.context() as patch:
        if what == "state":
            patch.setattr(checkpoints, "write_bytes", full)
        else:
            patch.setattr(personalization, "save_lora", full)
        with pytest.raises(UserError, match=r"cannot write .*free space.*No space left"):
            stage2(tiny_backbone, tmp_path / "cut", people=2, iterations=[4, 8], checkpoint_every=6)
    for path, content in made.items():
        if path.name != "last.ckpt" or what == "state":
            assert path.read_bytes() == content
    resumed = stage2(tiny_backbone, tmp_path / "cut", people=2, iterations=[4, 8])
    for identity in ("p0", "p1"):
        assert same_file(resumed.loras[identity][8], uncut.loras[identity][8])


def test_other_errors_while_writing_are_not_called_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="boom"), checkpoints.writing(tmp_path):
        raise OSError(5, "boom")
    with pytest.raises(UserError, match="cannot write"), checkpoints.writing(tmp_path):
        from safetensors import SafetensorError

        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: b"x" * 100])
def test_a_damaged_state_is_refused(
    damage: Callable[[bytes], bytes], tiny_backbone: DiffusersBackbone, tmp_path: Path
) -> None:
    stage1(tiny_backbone, tmp_path, q_total=4)
    state = tmp_path / "last.ckpt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(UserError, match=r"last\.ckpt cannot be read"):
        stage1(tiny_backbone, tmp_path, q_total=8)

"""Every logger tells the same numbers under the same names; none tells a person's name, a file's or a picture."""

import csv
import os
import re
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_wandb import KEY
from PIL import Image
from training_runs import stage1, stage2
from wandb_file import artifacts, config, history, records, run_record, texts

from metalora.backbones.backbone import DiffusersBackbone
from metalora.cli import main
from metalora.core.errors import UserError
from metalora.core.metric_names import METRICS, SAMPLES, TABLE
from metalora.running.setting import Setting
from metalora.tracking import loggers, wandb_run
from metalora.tracking.loggers import tracked, with_logger
from metalora.tracking.tracker import NAMES, Thing, Tracker
from metalora.training.speed import Speed

WANDB = {
    "name": "wandb",
    "project": "p",
    "entity": None,
    "group": "mini/reproduce",
    "mode": "offline",
    "upload_images": False,
    "finish_seconds": 60,
}


def setting(**logger: Any) -> Setting:
    return Setting({"logger": WANDB | logger, "rank": 1, "method": {"name": "lora"}, "class_noun": "Jane", "seed": 0})


def rows(path: Path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def test_names_are_told_once_with_their_units() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert all(metric.unit and metric.meaning and "/" in metric.name for metric in METRICS)
    with pytest.raises(AssertionError, match="without a name"):
        Tracker().scalars({"train/surprise": 1.0}, step=1)


def test_wandb_and_the_files_hold_the_same_numbers(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    with tracked(setting(), task="meta-train", digest="abc", folder=tmp_path / "log") as tracker:
        stage1(tiny_backbone, tmp_path / "run", q_total=12, log_every=4, logger=tracker.logger, callbacks=[Speed()])
    (path,) = (tmp_path / "log").rglob("*.wandb")
    told = history(path)
    found: dict[float, dict[str, float]] = {}
    for row in told:
        found.setdefault(row["iteration"], {}).update({name: row[name] for name in row if name in NAMES})
    written = rows(tmp_path / "run" / "metrics.csv")
    assert [row["iteration"] for row in written] == sorted(found) == [4, 8, 12]
    for row, speed in zip(written, rows(tmp_path / "run" / "speed.csv"), strict=True):
        iteration = row.pop("iteration")
        assert speed.pop("iteration") == iteration
        assert found[iteration] == pytest.approx(row | speed, rel=1e-2)
        assert set(found[iteration]) == set(row | speed)
    # Iterations 0 to 2 and 8 to 10 are warm-up, the others train Meta-Down.
    first, second, third = written
    assert first["train/loss"] == pytest.approx((3 * first["train/loss_warm_up"] + first["train/loss_meta"]) / 4)
    assert "train/loss_warm_up" not in second and second["train/loss_meta"] == second["train/loss"]
    assert third["train/loss"] == pytest.approx((3 * third["train/loss_warm_up"] + third["train/loss_meta"]) / 4)
    assert all(row["train/grad_norm_mid"] < row["train/grad_norm_rows"] for row in written)
    assert all(row["train/images_per_second"] > 0 for row in rows(tmp_path / "run" / "speed.csv"))
    run = run_record(path)
    assert (run.project, run.run_group, run.job_type) == ("p", "mini/reproduce", "meta-train")
    assert run.host == "-" and config(path) == {"rank": 1, "method": "lora", "seed": 0, "task": "meta-train"}  # no Jane


def test_tensorboard_holds_the_same_numbers(tiny_backbone: DiffusersBackbone, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "log"
    Image.new("RGB", (8, 8)).save(tmp_path / "grid.png")
    with tracked(setting(name="tensorboard"), task="personalize", digest="abc", folder=folder) as tracker:
        stage2(
            tiny_backbone, tmp_path, people=2, iterations=[4], log_every=2, logger=tracker.logger, callbacks=[Speed()]
        )
        tracker.picture(SAMPLES, tmp_path / "grid.png", step=4)
        tracker.table(TABLE, ("method", "rank"), [("lora", 1)])
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    (cohort,) = tmp_path.glob("cohort-*")
    names = {"train/loss", "train/grad_norm_rows", "train/grad_norm_mid", "train/grad_norm_up"}
    assert set(events.Tags()["scalars"]) == names | {"train/images_per_second", "train/peak_memory_mb"}
    for name in names:
        told = {event.step: event.value for event in events.Scalars(name)}
        assert told == pytest.approx({int(row["iteration"]): row[name] for row in rows(cohort / "metrics.csv")})
    assert events.Tags()["images"] == [SAMPLES] and f"{TABLE}/text_summary" in events.Tags()["tensors"]


def test_without_tensorboard_one_line_says_what_to_install_before_anything_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_logger(setting(name="tensorboard"))
    monkeypatch.setattr("metalora.tracking.tensorboard_run.importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"make setup.*uv pip install -e '\.\[tensorboard\]'.*key: logger"):
        with_logger(setting(name="tensorboard"))


def test_without_a_key_runs_are_kept_offline_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(wandb_run, "_in_netrc", lambda _: False)
    monkeypatch.setattr(wandb_run, "_TOLD", set())
    said: list[str] = []
    for _ in range(2):
        assert with_logger(setting(mode="online"), say=said.append)["logger.mode"] == "offline"
    assert len(said) == 1 and "there is no key" in said[0] and "wandb sync" in said[0]
    assert with_logger(setting(mode="disabled"), say=said.append)["logger.mode"] == "disabled"
    with pytest.raises(UserError, match=r"key: logger\.mode"):
        with_logger(setting(mode="sometimes"))
    with pytest.raises(UserError, match="key: logger"):
        with_logger(setting(name="paper"))


def test_disabled_writes_nothing(tmp_path: Path) -> None:
    with tracked(setting(mode="disabled"), task="evaluate", digest="abc", folder=tmp_path) as tracker:
        assert tracker.logger is None and not tracker.listens
    assert not list(tmp_path.iterdir())


class Broken:
    """A dashboard that fails at everything."""

    def __getattr__(self, name: str) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"{name} failed\nwith many lines")

        return fail


def test_a_dashboard_that_fails_ends_no_run_and_is_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    with Tracker(Broken(), say=said.append) as tracker:
        logger = tracker.logger
        assert logger is not None
        logger.log_metrics({"train/loss": 1.0}, step=1)
        logger.log_metrics({"train/loss": 1.0}, step=2)
        tracker.made(Thing("lora", "abc"))
    assert said == ["logging ended, the run goes on: RuntimeError: scalars failed"]
    with pytest.raises(ValueError, match="mine"), Tracker(Broken(), say=said.append):
        raise ValueError("mine")


SMALL = ("resolutions=[64]", "iterations=[1,2]", "sampling.steps=1", "trainer.threads=1", "logger.samples=1")


@pytest.fixture(scope="module")
def outputs(mini_phd: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A named person, personalized, drawn and scored with `logger=wandb`, without and with leave to send grids."""
    folder = tmp_path_factory.mktemp("outputs")
    shutil.copytree(mini_phd, folder / "data" / "mini_phd")
    os.environ |= {"METALORA_OUTPUTS": str(folder)}
    few = ["benchmark=mini", "people.count=2", "people.photos=2", "protocol.several_photo_people=1"]
    few += ["protocol.single_photo_people=1", "protocol.frontal_prompts=1", "protocol.clip_prompts=1"]
    main(["prepare", *few, "trainer.threads=1"])
    photo = sorted((folder / "data" / "mini_phd" / "ffhq" / "woman").glob("*.png"))[0]
    (folder / "photos").mkdir()
    secret = folder / "photos" / "Jane_Secret.png"
    secret.write_bytes(photo.read_bytes())
    words = ["class_noun=woman", "method=lora_aug", "face=largest", *SMALL]
    wandb = ["logger=wandb", "logger.mode=offline", "logger.project=p"]
    for name, consent in (("quiet", "false"), ("open", "true")):
        told = [*wandb, f"logger.upload_images={consent}"]
        main(["personalize", f"image={secret}", *words, *told, f"name={name}_secret", f"out={folder}/{name}"])
    lora = folder / "quiet" / "Jane_Secret" / "lora-000002.safetensors"
    prompt = "prompt=a pencil drawing of a woman smiling, facing the camera"
    main(["generate", f"lora={lora}", prompt, "sampling.steps=1", "trainer.threads=1", f"out={folder}/images"])
    who = f"ffhq-woman-{photo.stem}"  # what the benchmark calls her
    listed = folder / "images" / "manifest.jsonl"
    listed.write_text(listed.read_text().replace('"identity": "Jane_Secret"', f'"identity": "{who}"'))
    scored = [f"images={folder}/images", "allow_missing=true", f"out={folder}/scores", "trainer.threads=1"]
    main(["evaluate", *scored, *wandb])
    yield folder
    del os.environ["METALORA_OUTPUTS"]


def kept(folder: Path) -> dict[Path, bytes]:
    """Everything wandb keeps of a run that it could send; its debug logs are never sent."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    (log,) = run.glob("*.wandb")
    assert records(log)  # it is whole
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.parent.name != "logs"}


def test_no_name_no_file_and_no_picture_is_kept_to_be_sent(outputs: Path) -> None:
    secrets = ["Jane", "Secret", ".png", "lora-00000", "ffhq-woman", "quiet_secret", "requirements"]
    secrets += [str(outputs), str(Path.cwd())]
    host = re.compile(rf"\b{re.escape(socket.gethostname())}\b")  # a short name may stand inside some other word
    for name in ("quiet", "scores"):
        files = kept(outputs / name)
        assert any(path.suffix == ".wandb" for path in files)
        for path, data in files.items():
            assert path.suffix in (".wandb", ".json"), path
            for secret in secrets:
                assert secret.encode() not in data, f"{secret} in {path}"
            told = list(texts(path)) if path.suffix == ".wandb" else [data.decode()]
            assert told and not [text for text in told if host.search(text)]
            for magic in (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8"):
                assert magic not in data
    assert list((outputs / "quiet" / "samples").glob("grid-*.png"))  # drawn, and kept here


def test_pictures_are_kept_to_be_sent_only_when_asked_for(outputs: Path) -> None:
    files = kept(outputs / "open")
    pictures = [path for path in files if path.suffix == ".png"]
    assert len(pictures) == 2  # a grid per checkpoint: no photo, no crop
    assert {files[path] for path in pictures} == {
        path.read_bytes() for path in (outputs / "open" / "samples").glob("grid-*.png")
    }
    assert not any(b"Jane" in data for data in files.values())
    (log,) = (path for path in files if path.suffix == ".wandb")
    assert [row["iteration"] for row in history(log) if any(SAMPLES in name for name in row)] == [1, 2]


def test_a_grid_shows_what_generate_draws(outputs: Path) -> None:
    (drawn,) = (outputs / "quiet" / "samples" / "images").rglob("*-000002/*.png")
    grid = Image.open(outputs / "quiet" / "samples" / "grid-000002.png").convert("RGB")
    assert grid.tobytes() == Image.open(drawn).convert("RGB").tobytes()  # one person, one prompt


def test_lineage_goes_from_people_over_the_lora_to_scores(outputs: Path) -> None:
    (trained,) = (path for path in kept(outputs / "quiet") if path.suffix == ".wandb")
    (scored,) = (path for path in kept(outputs / "scores") if path.suffix == ".wandb")
    first, second = artifacts(trained), [one for one in artifacts(scored) if one.type != "run_table"]
    assert [(one.type, one.use_after_commit) for one in first] == [("people", True), ("lora", False), ("lora", False)]
    assert [(one.type, one.use_after_commit) for one in second] == [("lora", True), ("scores", False)]
    made = {one.name: one.digest for one in first}
    assert made[second[0].name] == second[0].digest  # the very artifact that was made
    assert '"parent/people"' in first[1].metadata and '"parent/lora"' in second[1].metadata
    for one in (*first, *second):
        (entry,) = one.manifest.contents
        assert entry.ref.startswith(f"metalora://{one.type}/") and not entry.local_path and not entry.size
    rows = history(scored)
    assert any(TABLE in "/".join(row) for row in rows)
    curve = [row for row in rows if "eval/clip_t" in row]
    (cell,) = [row for row in csv.DictReader((outputs / "scores" / "metrics.csv").open()) if row["rank"] != "0"]
    assert [row["iteration"] for row in curve] == [2] and curve[0]["eval/clip_t"] == float(cell["eval/clip_t"])
    assert config(scored)["method"] == "lora_aug"


def test_what_is_told_of_the_configuration_is_chosen_not_typed() -> None:
    free = ("name", "image", "prompt", "identity", "prior", "path", "root", "out", "samples", "project")
    assert not [key for key in loggers.TOLD if key.split(".")[-1] in free and not key.endswith(".name")]
    assert len(KEY) == 40

"""The command line as a person meets it: help, unknown words, bad keys; one line and exit status 2."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from metalora.cli import main, one_line, quoted
from metalora.configuration import conf_dir, general_help, read_keys, summary, task_help, task_names


def metalora(*words: str, cwd: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metalora", *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=240,
    )


def test_help_answers_without_torch() -> None:
    found = metalora("--help")
    assert found.returncode == 0
    assert all(name in found.stdout for name in task_names())
    code = "import sys, metalora.cli; sys.exit(any(m in sys.modules for m in ('torch', 'hydra', 'wandb', 'lightning')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_what_trains_or_draws_waits_for_its_libraries() -> None:
    """A typing error, scores, a report and what is there already are told without the seconds they take to import."""
    code = """if True:
        import importlib, pkgutil, sys
        import metalora.tasks
        for module in pkgutil.iter_modules(metalora.tasks.__path__, "metalora.tasks."):
            if module.name != "metalora.tracking.lightning_logger":
                importlib.import_module(module.name)
        slow = ("lightning", "diffusers", "transformers", "matplotlib", "wandb")
        print(len(sys.modules), *(name for name in slow if name in sys.modules))"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240).stdout
    count, *loaded = told.split()
    assert int(count) > 100 and not loaded


def test_every_task_has_help_that_explains_every_key() -> None:
    for name in task_names():
        text = task_help(name)
        assert summary(name) in text
        for entry in read_keys(_task_file(name)):
            assert entry.key in text
    explained = [entry for name in task_names() for entry in read_keys(_task_file(name)) if not entry.text]
    assert [entry.key for entry in explained if not entry.default.startswith(("[", "{"))] in ([], ["class_noun"])


def _task_file(name: str) -> Path:
    return conf_dir() / "task" / f"{name}.yaml"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("paint",), "unknown task"),
        (("reproduce", "colour=red"), "colour"),
        (("reproduce", "experiment=mini/nothing"), "mini/nothing"),
        (("reproduce", "method=dreambooth"), "dreambooth"),
        (("personalize", "class_noun=woman"), "image"),
        (("reproduce", "rank=64"), "rank"),
        (("reproduce", "methods=[lora,dreambooth]"), "dreambooth"),
        (("study",), "metalora study build | serve | analyse | simulate"),
        (("study", "build", "images=[nowhere]"), "there is no folder nowhere"),
        (("study", "serve", "study=nowhere.sqlite"), "there is no study nowhere.sqlite"),
    ],
)
def test_bad_words_end_in_one_line_and_status_2(
    words: tuple[str, ...], told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(list(words))
    stderr = capfd.readouterr().err
    assert stop.value.code == 2, stderr
    assert told in stderr
    assert len(stderr.strip().splitlines()) == 1, stderr
    assert "Traceback" not in stderr


def test_a_whole_process_ends_so() -> None:
    found = metalora("reproduce", "colour=red")
    assert found.returncode == 2 and len(found.stderr.strip().splitlines()) == 1, found.stderr


def test_a_second_word_is_an_action_only_where_there_are_actions() -> None:
    assert "action: ???" in metalora("study", "--cfg", "job").stdout
    found = metalora("study", "serve", "--cfg", "job")
    assert "action: serve" in found.stdout, found.stderr
    assert metalora("study", "build", "--help").stdout == metalora("study", "--help").stdout
    assert metalora("generate", "serve", "--cfg", "job").returncode != 0


def test_help_that_nobody_reads_is_no_error() -> None:
    for words in (["generate", "--help"], ["--help"]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "metalora", *words]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
        os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")


def test_no_task_prints_help_and_fails() -> None:
    found = metalora()
    assert found.returncode == 2
    assert general_help() in found.stdout


def test_cfg_job_prints_the_configuration() -> None:
    found = metalora("meta-train", "--cfg", "job")
    assert found.returncode == 0, found.stderr
    assert "q_warmup: 80" in found.stdout


def test_one_line_keeps_what_counts() -> None:
    text = "Could not override 'foo'.\nTo append to your config use +foo=1\nKey 'foo' is not in struct\n"
    assert one_line(text) == "Could not override 'foo'.; Key 'foo' is not in struct"


@pytest.mark.parametrize(
    "value",
    [
        "a woman smiling, facing the camera",
        "it's a woman (on a {beach}) = [fun]",
        'a "red" shirt',
        "back\\slash\\",
        "quote after a backslash \\' here",
        "a photo",
        "~/my photo (1).jpg",
        "x#y; a & b!",
        "a photo of José",
        "'tis a woman",
        "[1].jpg",
        '"x" is y',
        "2024",
        "1e5",
        "1_000",
        "-.5",
        "True",
        "nan",
    ],
)
def test_sentences_and_file_names_need_no_quotes_of_hydra_s(value: str) -> None:
    parser = OverridesParser.create()
    override = parser.parse_override(quoted(f"prompt={value}"))
    assert override.key_or_group == "prompt" and override.value() == value


def test_lists_interpolations_and_other_keys_stay_as_they_are() -> None:
    for word in (
        "prompt=['a, b',c]",
        "out=${paths.outputs}/x",
        "prompt='a, b'",
        'image="a b"',
        "rank=1,2",
        "prompt=",
        "lora=null",
    ):
        assert quoted(word) == word

"""Where the configuration lives and how a task's help is read out of it; light enough for `metalora --help`."""

import re
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def conf_dir() -> Path:
    """The configuration folder: `conf/` beside the package in a checkout, inside it when installed from a wheel."""
    checkout = PACKAGE.parent / "conf"
    return checkout if (checkout / "config.yaml").is_file() else PACKAGE / "conf"


def task_names() -> list[str]:
    """Every task, in the order of the data flow."""
    order = [
        "prepare",
        "meta-train",
        "personalize",
        "generate",
        "baseline",
        "evaluate",
        "report",
        "export",
        "reproduce",
    ]
    found = {path.stem for path in (conf_dir() / "task").glob("*.yaml")}
    return [name for name in order if name in found] + sorted(found - set(order))


@dataclass(frozen=True)
class KeyHelp:
    """One configuration key: its dotted name, default and explanation."""

    key: str
    default: str
    text: str


_LINE = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z_][\w-]*):(?: (?P<default>[^#]*?))?(?: *# (?P<text>.*))?$")


def read_keys(path: Path) -> list[KeyHelp]:
    """The keys of one YAML file with the comment behind each; nested keys get dotted names."""
    keys: list[KeyHelp] = []
    parents: list[str] = []
    skipping = False
    for line in path.read_text().splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "-")):
            continue
        match = _LINE.match(line)
        if match is None:
            continue
        depth = len(match["indent"]) // 2
        if depth == 0:
            skipping = match["key"] in ("defaults", "hydra", "task")
        if skipping:
            continue
        parents[depth:] = [match["key"]]
        default = (match["default"] or "").strip()
        if default or match["text"]:
            keys.append(KeyHelp(".".join(parents), default, match["text"] or ""))
    return keys


def has_actions(task: str) -> bool:
    """Whether a task's second bare word says what it does: `metalora study build`."""
    return any(entry.key == "action" for entry in read_keys(conf_dir() / "task" / f"{task}.yaml"))


def summary(task: str) -> str:
    """The comment line at the head of a task's file."""
    lines = (conf_dir() / "task" / f"{task}.yaml").read_text().splitlines()
    return next(line[2:] for line in lines if line.startswith(f"# {task}:")).removeprefix(f"{task}: ")


def general_help() -> str:
    """What `metalora --help` prints."""
    lines = ["usage: metalora TASK [key=value ...]", "", "tasks:"]
    lines += [f"  {name:<12} {summary(name)}" for name in task_names()]
    lines += [
        "",
        "metalora TASK --help        the task's keys with defaults",
        "metalora TASK --cfg job     the whole configuration (with --resolve: references filled in)",
        "metalora TASK -m key=a,b    one run per combination (Hydra multirun)",
        "",
        "examples:",
        "  metalora reproduce experiment=mini/reproduce",
        "  metalora personalize image=me.jpg class_noun=woman prior=prior.safetensors",
    ]
    return "\n".join(lines)


def task_help(task: str) -> str:
    """What `metalora TASK --help` prints: the task's own keys, then those every task shares, then the groups."""
    lines = [f"metalora {task}: {summary(task)}", ""]
    sections = [
        (f"keys of {task}", conf_dir() / "task" / f"{task}.yaml"),
        (
            "recipe (experiment=mini/default; another backbone brings its own)",
            conf_dir() / "experiment/mini/default.yaml",
        ),
        ("every task", conf_dir() / "config.yaml"),
        ("trainer", conf_dir() / "trainer/auto.yaml"),
        ("memory (presets: 80gb, 48gb, 24gb, 16gb)", conf_dir() / "memory/auto.yaml"),
        ("paths", conf_dir() / "paths/default.yaml"),
        ("backbone=flux_dev", conf_dir() / "backbone/flux_dev.yaml"),
        ("people=folder (people of Stage 1)", conf_dir() / "people/folder.yaml"),
        ("benchmark=meta_phd", conf_dir() / "benchmark/meta_phd.yaml"),
        ("protocol=quick", conf_dir() / "protocol/quick.yaml"),
        ("scorer=paper", conf_dir() / "scorer/paper.yaml"),
        ("baseline=pulid", conf_dir() / "baseline/pulid.yaml"),
        ("logger=csv, and every other", conf_dir() / "logger/csv.yaml"),
        ("logger=wandb", conf_dir() / "logger/wandb.yaml"),
    ]
    for title, path in sections:
        lines.append(f"{title}:")
        for entry in read_keys(path):
            if entry.key.rpartition(".")[2] in ("name", "_target_") and path.parent != conf_dir():
                continue
            prefix = "" if path.parent.name in ("task", "conf", "mini") else f"{path.parent.name}."
            lines.append(f"  {prefix + entry.key:<28} {entry.default:<24} {entry.text}".rstrip())
        lines.append("")
    lines.append("groups (GROUP=CHOICE):")
    for folder in sorted(
        path for path in conf_dir().iterdir() if path.is_dir() and path.name not in ("task", "prompts", "hydra")
    ):
        choices = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
        if choices:
            lines.append(f"  {folder.name:<12} {', '.join(choices)}")
    launchers = sorted(path.stem for path in (conf_dir() / "hydra" / "launcher").glob("*.yaml"))
    lines.append(f"  hydra/launcher {', '.join(['basic', *launchers])}")
    return "\n".join(lines)

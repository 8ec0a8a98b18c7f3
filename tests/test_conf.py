"""Every preset composes, with every task, and keeps the paper's ratios."""

import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from metalora.cli import register_resolvers, with_companions
from metalora.configuration import conf_dir, task_names
from metalora.core.budget import PRESETS

GROUPS = (
    "baseline",
    "backbone",
    "method",
    "people",
    "benchmark",
    "protocol",
    "scorer",
    "trainer",
    "memory",
    "logger",
    "experiment",
)
REQUIRED = {
    "personalize": ["image=me.jpg", "class_noun=woman"],
    "evaluate": ["images=made"],
    "report": ["scores=made"],
    "export": ["lora=me.safetensors"],
    "study": ["action=build"],
}


def composed(*overrides: str) -> DictConfig:
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def choices(group: str) -> list[str]:
    folder = conf_dir() / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


@pytest.mark.parametrize(("group", "choice"), [(g, c) for g in GROUPS for c in choices(g)])
def test_every_preset_composes(group: str, choice: str) -> None:
    cfg = composed("task=reproduce", f"{group}={choice}")
    fill = {"backbone.path": "flux", "people.root": "people", "benchmark.root": "photos"}
    for key, value in fill.items():
        if OmegaConf.is_missing(OmegaConf.select(cfg, key.split(".")[0]), key.split(".")[1]):
            OmegaConf.update(cfg, key, value)
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("task", task_names())
def test_every_task_composes_by_default(task: str) -> None:
    cfg = composed(f"task={task}", *REQUIRED.get(task, []))
    assert OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def test_targets_exist() -> None:
    from hydra.utils import get_class, get_method

    for path in itertools.chain((conf_dir() / "backbone").glob("*.yaml"), (conf_dir() / "scorer").glob("*.yaml")):
        for node in _targets(OmegaConf.load(path)):
            assert callable(get_method(node) if node.rsplit(".", 1)[1].islower() else get_class(node))


def _targets(node: object) -> list[str]:
    if not isinstance(node, DictConfig):
        return []
    found = [str(node["_target_"])] if "_target_" in node else []
    return found + [target for key in node for target in _targets(node._get_node(key))]


@pytest.mark.parametrize("backbone", ["mini", "flux_dev"])
def test_recipes_keep_the_papers_ratios(backbone: str) -> None:
    recipe = OmegaConf.load(conf_dir() / "experiment" / backbone / "default.yaml")
    stage1 = recipe.stage1
    assert stage1.q_warmup == 0.4 * stage1.q_bucket
    assert stage1.uses_per_example == 10
    assert recipe.rank == 1


def test_one_word_switches_the_world() -> None:
    mini, flux = composed("task=reproduce"), composed("task=reproduce", "backbone=flux_dev")
    assert (mini.learning_rate, flux.learning_rate) == (2e-3, 4e-4)
    assert flux.stage1.q_bucket == 2500
    assert flux.benchmark.name == "meta_phd"
    assert flux.sampling.steps == 30
    assert Path(str(mini.paths.weights)).name == "weights"


def test_unknown_keys_are_errors() -> None:
    from hydra.errors import ConfigCompositionException

    with pytest.raises(ConfigCompositionException):
        composed("task=reproduce", "sampling.stepz=3")


PAPER = {
    "stage1_female": {"class_noun": "woman", "stage1.q_total": 50000, "stage1.batch_size": 4, "meta_rank": 128},
    "stage1_male": {
        "class_noun": "man",
        "stage1.q_bucket": 2500,
        "stage1.q_warmup": 1000,
        "stage1.uses_per_example": 10,
    },
    "stage2": {"iterations": [375], "rank": 1, "batch_size": 1, "learning_rate": 4e-4, "method.name": "meta_lora"},
    "tradeoff": {
        "iterations": [250, 375, 500, 625, 750],
        "protocol.seeds": [0, 1, 2, 3, 4],
        "sampling.steps": 30,
        "sampling.guidance": 3.5,
        "sampling.size": [1024, 1024],
    },
    "r1_selection": {
        "stage1.q_total": 60000,
        "stage1.prior_every": 10000,
        "iterations": list(range(125, 1001, 125)),
        "classes": ["woman"],
    },
}


def test_every_paper_preset_is_checked() -> None:
    assert {f"paper/{name}" for name in PAPER} == {name for name in choices("experiment") if name.startswith("paper/")}


@pytest.mark.parametrize("name", PAPER)
def test_the_commands_of_paper_presets_compose_to_the_papers_numbers(name: str) -> None:
    """Each preset's head says the command, the hardware and the hours; the command is composed as it stands there."""
    head = [line[1:].strip() for line in (conf_dir() / f"experiment/paper/{name}.yaml").read_text().splitlines()]
    head = head[1 : next(k for k, line in enumerate(head) if line == "efaults:")]
    assert "Hardware: " in " ".join(head) and "hours" in " ".join(head)
    commands = [line.split() for line in " ".join(head).replace("\\ ", "").split("metalora ")[1:]]
    assert commands
    for words in commands:
        overrides = list(itertools.takewhile(lambda word: "=" in word, (word for word in words[1:] if word != "-m")))
        assert words[0] in task_names() and f"experiment=paper/{name}" in overrides
        overrides = [word for word in overrides if not word.startswith("hydra/launcher=")]
        single = [override if "[" in override else override.split(",")[0] for override in overrides]
        cfg = composed(f"task={words[0]}", *(o.replace("meta_rank=R1", "meta_rank=128") for o in single))
        assert cfg.backbone.name == "flux_dev" and cfg.trainer.device == "cuda"
        expected = {key: value for key, value in PAPER[name].items() if OmegaConf.select(cfg, key) is not None}
        assert {key: OmegaConf.select(cfg, key) for key in expected} == expected
        assert len(expected) == len(PAPER[name]) or words[0] != "reproduce"


def test_memory_presets() -> None:
    """What each stands for; whether it fits is for the plan to say."""
    presets = {name: composed("task=reproduce", "backbone=flux_dev", f"memory={name}") for name in choices("memory")}
    chosen = {name: (cfg.memory.budget_gb, cfg.backbone.memory.quantization) for name, cfg in presets.items()}
    assert chosen == {
        "auto": (None, None),
        "80gb": (80, None),
        "48gb": (48, None),
        "24gb": (24, "float8"),
        "16gb": (16, "nf4"),
    }
    assert {int(name.removesuffix("gb")) for name in presets if name != "auto"} == set(PRESETS)
    assert {cfg.memory.name for cfg in presets.values()} == set(presets)


def test_the_tradeoff_is_the_papers_grid() -> None:
    preset = OmegaConf.load(conf_dir() / "experiment/paper/tradeoff.yaml")
    assert preset.hydra.sweeper.params.rank == "1,2,4,8,16"


@pytest.mark.parametrize(
    ("words", "protocol", "seeds", "scorer"),
    [
        ([], "quick", [0], "MiniFaceEmbedder"),
        (["benchmark=mini_validation"], "quick", [0], "MiniFaceEmbedder"),
        (["benchmark=mini_test"], "quick", [0], "MiniFaceEmbedder"),
        (["benchmark=meta_phd"], "full", [0, 1, 2, 3, 4], "FacenetEmbedder"),
        (["backbone=flux_dev"], "full", [0, 1, 2, 3, 4], "FacenetEmbedder"),
        (["backbone=flux_dev", "benchmark=mini"], "quick", [0], "MiniFaceEmbedder"),
        (["benchmark=meta_phd", "protocol=quick", "scorer=mini"], "quick", [0], "MiniFaceEmbedder"),
        (["experiment=mini/learning_rate"], "quick", [0], "MiniFaceEmbedder"),
    ],
)
def test_protocol_and_scorer_follow_the_benchmark(
    words: list[str], protocol: str, seeds: list[int], scorer: str
) -> None:
    cfg = composed("task=reproduce", *with_companions(words))
    assert (cfg.protocol.name, list(cfg.protocol.seeds)) == (protocol, seeds)
    assert cfg.scorer.embedder._target_.endswith(scorer)


def test_every_benchmark_has_its_protocol_and_scorer() -> None:
    for group in ("protocol", "scorer"):
        assert set(choices("benchmark")) <= set(choices(group))


def test_a_second_face_embedder_of_another_architecture_can_be_configured() -> None:
    words = ["scorer.second_embedder={_target_:metalora.perception.arcface.ArcFaceEmbedder,path:r50.safetensors}"]
    cfg = composed("task=evaluate", "images=made", "benchmark=meta_phd", *words)
    assert cfg.scorer.second_embedder.path == "r50.safetensors"


@pytest.mark.parametrize("name", choices("hydra/launcher"))
def test_launcher_presets_extend_their_plugins(name: str) -> None:
    """Composed where the plugin is installed; everywhere, no key is misspelt silently: plugins' schemas are strict."""
    import importlib.util

    from metalora.cli import LAUNCHERS

    preset = OmegaConf.load(conf_dir() / f"hydra/launcher/{name}.yaml")
    (base,) = preset.defaults
    assert base in LAUNCHERS and LAUNCHERS[name] == LAUNCHERS[base]
    if importlib.util.find_spec(f"hydra_plugins.{LAUNCHERS[name][0]}") is None:
        pytest.skip(f"not installed: metalora[{LAUNCHERS[name][1]}]")
    register_resolvers()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        words = ["task=meta-train", f"hydra/launcher={name}"]
        launcher = compose("config", overrides=words, return_hydra_config=True).hydra.launcher
    assert launcher["_target_"].startswith(f"hydra_plugins.{LAUNCHERS[name][0]}")
    values = OmegaConf.to_container(preset, resolve=False)
    assert isinstance(values, dict)
    own = {key: value for key, value in values.items() if key not in ("defaults", "submitit_folder", "ray")}
    assert {key: launcher[key] for key in own} == own


def test_the_grid_of_a_sweep_is_the_presets_until_it_is_typed() -> None:
    """methods x ranks x iterations x classes, iterations slowest: cells of one trajectory lie far apart."""
    from hydra_plugins.metalora_cells import CellSweeper

    def cells(experiment: str, task: str, *typed: str) -> list[list[str]]:
        from hydra.core.override_parser.overrides_parser import OverridesParser

        node = OmegaConf.load(conf_dir() / f"experiment/{experiment}.yaml").hydra.sweeper
        sweeper = CellSweeper(None, node.get("params"), node.get("tasks"))
        sweeper.config = OmegaConf.create({"task": task})
        overrides = OverridesParser.create().parse_overrides([*sweeper._parse_config(), *typed])
        (batch,) = sweeper.split_arguments(overrides, None)
        return batch

    for experiment in ("mini/tradeoff", "paper/tradeoff"):
        whole = cells(experiment, "personalize")
        assert len(whole) == len({tuple(words) for words in whole}) == 3 * 5 * 5 * 2
        assert [words[0] for words in whole[:30]] == ["iterations=250"] * 30
        assert len(cells(experiment, "reproduce")) == 5  # one per rank, as ever
        assert len(cells(experiment, "personalize", "rank=1", "method=lora")) == 5 * 2
    for world in ("paper", "mini"):
        assert len(cells(f"{world}/r1_selection", "meta-train")) == 3
        assert len(cells(f"{world}/r1_selection", "personalize")) == 18
        for words in cells(f"{world}/r1_selection", "personalize"):
            needed = [f"backbone={'mini' if world == 'mini' else 'flux_dev'}", "benchmark.root=b", "people.root=p"]
            cfg = composed("task=personalize", f"experiment={world}/r1_selection", *needed, *words)
            assert (cfg.image, cfg.score, cfg.class_noun) == ("benchmark", True, "woman")
            assert cfg.prior_at % cfg.stage1.prior_every == 0 and cfg.prior_at <= cfg.stage1.q_total

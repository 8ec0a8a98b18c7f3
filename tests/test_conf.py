"""Every preset composes, with every task, and keeps the paper's ratios."""

import itertools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from metalora.cli import register_resolvers
from metalora.configuration import conf_dir, task_names

GROUPS = ("backbone", "method", "people", "benchmark", "protocol", "scorer", "trainer", "logger", "experiment")
REQUIRED = {
    "personalize": ["image=me.jpg", "class_noun=woman"],
    "evaluate": ["images=made"],
    "report": ["scores=made"],
    "export": ["lora=me.safetensors"],
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
    assert (mini.learning_rate, flux.learning_rate) == (5e-3, 4e-4)
    assert flux.stage1.q_bucket == 2500
    assert flux.benchmark.name == "meta_phd"
    assert flux.sampling.steps == 30
    assert Path(str(mini.paths.weights)).name == "weights"


def test_unknown_keys_are_errors() -> None:
    from hydra.errors import ConfigCompositionException

    with pytest.raises(ConfigCompositionException):
        composed("task=reproduce", "sampling.stepz=3")

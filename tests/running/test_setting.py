"""The composed configuration as tasks see it: what is missing or of the wrong kind is one line with its key."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from metalora.core.errors import UserError
from metalora.running.setting import Setting


def test_a_missing_value_matters_only_to_who_asks_for_it() -> None:
    setting = Setting({"people": {"root": "???", "count": 3}, "rank": 1})
    assert setting["rank"] == 1 and setting["people.count"] == 3
    for key in ("people", "people.root"):
        with pytest.raises(UserError, match=r"missing.*people\.root=VALUE.*key: people\.root"):
            setting[key]


@pytest.mark.parametrize(("given", "numbers"), [(375, (375,)), ([250, 375], (250, 375)), ([0], (0,))])
def test_one_number_is_as_good_as_a_list(given: Any, numbers: tuple[int, ...]) -> None:
    assert Setting({"seeds": given}).numbers("seeds", least=0) == numbers


@pytest.mark.parametrize("given", [[], "few", [1, "a"], [0], 1.5, True, None, [1, 2, 3]])
def test_what_is_no_whole_number_is_refused_by_its_key(given: Any) -> None:
    with pytest.raises(UserError, match="key: size"):
        Setting({"size": given}).numbers("size", least=1, count=2)


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("rank", 0),
        ("rank", [1, 2]),
        ("cohort_size", True),
        ("batch_size", 1.5),
        ("stage1.prior_every", -1),
        ("stage1.q_warmup", None),
        ("learning_rate", -0.01),
        ("stage1.learning_rate", "fast"),
        ("gradient_clip", 0.0),
        ("stage1.uses_per_example", float("inf")),
        ("sampling.guidance", -1),
        ("trainer.workers", 0),
        ("trainer.threads", "many"),
        ("trainer.checkpoint_seconds", "often"),
        ("protocol.single_photo_people", "all"),
        ("seed", None),
    ],
)
def test_numbers_no_run_can_use_are_refused_before_anything_is_read(key: str, given: Any) -> None:
    sound = {"rank": 1, "gradient_clip": None, "stage1": {"q_warmup": 0, "prior_every": None, "learning_rate": "???"}}
    sound |= {"trainer": {"device": "cpu", "workers": "auto"}, "sampling": {"guidance": 0}}
    sound |= {"protocol": {"single_photo_people": None}}
    Setting.of(OmegaConf.create(sound))
    config = OmegaConf.create(sound)
    OmegaConf.update(config, key, given)
    with pytest.raises(UserError, match=rf"not the number needed.*key: {key}"):
        Setting.of(config)


def test_one_word_is_as_good_as_a_list() -> None:
    setting = Setting({"one": "lora", "more": ["lora", "lora_aug"], "none": None, "path": 5})
    assert [setting.words(key) for key in ("one", "more", "none", "path")] == [
        ["lora"],
        ["lora", "lora_aug"],
        [],
        ["5"],
    ]
    assert setting.words("more", known=("lora_aug", "lora")) == ["lora", "lora_aug"]
    with pytest.raises(UserError, match="unknown in more; expected lora, meta_lora; got lora_aug; key: more"):
        setting.words("more", known=("lora", "meta_lora"))


def test_checkpoints_come_in_order_and_once() -> None:
    assert Setting({"iterations": [375, 250, 375]}).iterations == (250, 375)


def test_a_gpu_that_is_not_there_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    setting = Setting({"trainer": {"device": "cuda"}, "backbone": {"_target_": "never.Reached"}})
    with pytest.raises(UserError, match=r"no GPU.*key: trainer\.device"):
        _ = setting.backbone


def test_a_bad_second_embedder_names_its_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    node = {"_target_": "metalora.perception.faces.FacenetEmbedder", "path": str(path)}
    for more, told in (
        ({"path": str(tmp_path / "no.safetensors")}, "cannot read the weights"),
        ({"sha256": "1" * 64}, f"another file; expected sha256 {'1' * 64}; got {digest}"),
        ({"sha256": digest}, "do not fit"),
    ):
        setting = Setting({"scorer": {"second_embedder": node | more, "embedder": node | more}})
        with pytest.raises(UserError, match=told) as caught:
            _ = setting.second_embedder
        assert caught.value.key == "scorer.second_embedder.path"
        with pytest.raises(UserError, match=told) as caught:
            _ = setting.embedder
        assert caught.value.key == "scorer.embedder.path"

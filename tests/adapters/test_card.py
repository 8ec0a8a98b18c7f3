"""The model card: what the hub reads in it, and what a person needs."""

from pathlib import Path

from huggingface_hub import ModelCard

from metalora.adapters.card import card_path, model_card
from metalora.core.contracts import LoraFile

TOLD = {
    "backbone": "flux_dev",
    "caption": "a photo of a woman",
    "class_noun": "woman",
    "configuration": '{"learning_rate": 0.0004, "prior": "0123456789abcdef", "seed": 0}',
    "identity": "eve",
    "iterations": "375",
    "method": "meta_lora",
    "rank": "1",
}


def test_the_hub_reads_what_it_needs() -> None:
    samples = {"samples/a-0.png": 'a "photo" of a woman: on a beach'}
    card = ModelCard(model_card(LoraFile({}, {}, TOLD), files={"lora.safetensors": "diffusers"}, samples=samples))
    data = card.data.to_dict()
    assert data["base_model"] == "black-forest-labs/FLUX.1-dev" and data["license"] == "other"
    assert data["license_name"] == "flux-1-dev-non-commercial-license" and "lora" in data["tags"]
    assert data["widget"] == [{"text": samples["samples/a-0.png"], "output": {"url": "samples/a-0.png"}}]


def test_a_person_reads_how_to_use_it() -> None:
    text = model_card(LoraFile({}, {}, TOLD), files={"lora.safetensors": "diffusers", "me.safetensors": "kohya"})
    snippet = text.split("```python\n")[1].split("```")[0]
    compile(snippet, "card", "exec")
    assert 'load_lora_weights(".", weight_name="lora.safetensors")' in snippet
    assert "me.safetensors`: ComfyUI" in text and "Consent" in text and "licence" in text
    for fact in ("| prior | 0123456789abcdef |", "| iterations | 375 |", "| learning rate | 0.0004 |"):
        assert fact in text


def test_of_another_base_only_what_is_known() -> None:
    text = model_card(
        LoraFile({}, {}, {"backbone": "mini", "identity": "eve", "method": "lora"}),
        files={"lora.safetensors": "diffusers"},
    )
    assert "base_model" not in ModelCard(text).data.to_dict() and "`mini`" in text and "None" not in text


def test_of_somebody_elses_lora_nothing_is_made_up() -> None:
    text = model_card(LoraFile({}, {}, {"trigger": "ohwx"}), files={"lora.safetensors": "kohya"})
    assert "metalora." not in text.split("## Files")[1] and "no trigger word" not in text and "backbone=" not in text


def test_nobodys_readme_is_written_over(tmp_path: Path) -> None:
    lora, readme = tmp_path / "me.safetensors", tmp_path / "README.md"
    assert card_path(lora) == readme
    readme.write_text(model_card(LoraFile({}, {}, TOLD), files={lora.name: "diffusers"}))
    assert card_path(lora) == readme
    readme.write_text("my project")
    assert card_path(lora) == tmp_path / "me.README.md"

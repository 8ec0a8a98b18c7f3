"""The README.md beside a LoRA: what it is, how to use it, what it may be used for. Also a model card for the hub."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from metalora.core.contracts import METHODS, LoraFile


@dataclass(frozen=True)
class BaseModel:
    """What a card says of a base model."""

    hub_id: str
    pipeline: str
    """The diffusers class that loads it."""
    license: Mapping[str, str]
    """The hub's entries about the licence of LoRAs made for it."""
    size: int
    steps: int
    guidance: float


BASE_MODELS: Mapping[str, BaseModel] = {
    "flux_dev": BaseModel(
        "black-forest-labs/FLUX.1-dev",
        "FluxPipeline",
        {
            "license": "other",
            "license_name": "flux-1-dev-non-commercial-license",
            "license_link": "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
        },
        size=1024,
        steps=30,
        guidance=3.5,
    ),
    "sdxl": BaseModel(
        "stabilityai/stable-diffusion-xl-base-1.0",
        "StableDiffusionXLPipeline",
        {"license": "openrail++"},
        size=1024,
        steps=50,
        guidance=5.0,
    ),
    "sd15": BaseModel(
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "StableDiffusionPipeline",
        {"license": "creativeml-openrail-m"},
        size=512,
        steps=50,
        guidance=7.5,
    ),
}
"""By the backbone's name; of others the card says only the name."""


MARK = "tags: [lora, text-to-image, diffusers, meta-lora]"
"""A line of every card: a README.md that has it is ours to write again."""


def card_path(lora: Path) -> Path:
    """Where a LoRA's card goes: README.md beside it, or LORA.README.md where somebody else's README.md is."""
    readme = lora.with_name("README.md")
    ours = not readme.is_file() or MARK in readme.read_text(encoding="utf-8", errors="replace")
    return readme if ours else lora.with_name(f"{lora.stem}.README.md")


def model_card(lora: LoraFile, *, files: Mapping[str, str], samples: Mapping[str, str] | None = None) -> str:
    """The card's Markdown, with the hub's front matter. Of somebody else's LoRA it says only what the file tells.

    Args:
        files: the LoRA's files beside the card -> their layout.
        samples: picture beside the card -> the prompt that made it.
    """
    told, samples = lora.metadata, samples or {}
    ours = told.get("method") in METHODS
    base = BASE_MODELS.get(told.get("backbone", ""))
    caption = told.get("caption", f"a photo of a {told.get('class_noun', 'person')}")
    parts = [
        _front_matter(base, samples),
        f"# {told.get('identity', 'A person')}: a rank-{told.get('rank', '?')} LoRA",
        f"Draws one {told.get('class_noun', 'person')} in any scene or style. There is no trigger word: a prompt that "
        f'speaks of "{caption}" is enough.'
        if ours
        else "",
        _usage(base, told, files=files, prompt=f"{caption} on a beach, smiling"),
        _files(files),
        _samples(samples),
        _making(told) if ours else "",
        "## Consent\n\nThis LoRA draws a real or synthetic person. Use it only as that person has agreed to."
        + (f"\n\nThe licence of the base model, {base.hub_id}, holds for what it draws." if base else ""),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(base: BaseModel | None, samples: Mapping[str, str]) -> str:
    lines = [
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        MARK,
    ]
    if base:
        lines += [
            f"base_model: {base.hub_id}",
            "base_model_relation: adapter",
            *(f"{key}: {value}" for key, value in base.license.items()),
        ]
    if samples:
        lines.append("widget:")
        for file, prompt in samples.items():
            lines += [f"  - text: {json.dumps(prompt)}", f"    output: {{url: {json.dumps(file)}}}"]
    return "---\n" + "\n".join(lines) + "\n---"


def _usage(base: BaseModel | None, told: Mapping[str, str], *, files: Mapping[str, str], prompt: str) -> str:
    first = next((file for file, layout in files.items() if layout == "diffusers"), next(iter(files)))
    of_base = f"backbone={told['backbone']} " if "backbone" in told else ""
    command = f'metalora generate {of_base}lora={first} prompt="{prompt}"'
    if base is None:
        return f"## Use\n\nMade for the base model `{told.get('backbone', 'unknown')}`.\n\n    {command}"
    return f"""## Use

```python
import torch
from diffusers import {base.pipeline}

pipe = {base.pipeline}.from_pretrained("{base.hub_id}", torch_dtype=torch.bfloat16).to("cuda")
pipe.load_lora_weights(".", weight_name="{first}")
image = pipe(
    {json.dumps(prompt)},
    height={base.size}, width={base.size}, num_inference_steps={base.steps}, guidance_scale={base.guidance},
).images[0]
```

Or `{command}`.
Strength 1.0 is the full effect."""


def _files(files: Mapping[str, str]) -> str:
    readers = {"diffusers": "diffusers, metalora", "kohya": "ComfyUI and other programs that read Kohya's layout"}
    return "## Files\n\n" + "\n".join(f"- `{file}`: {readers[layout]}" for file, layout in files.items())


def _samples(samples: Mapping[str, str]) -> str:
    if not samples:
        return ""
    shown = (f"![{text}]({file})\n\n*{text}*" for file, text in samples.items())
    return "## Samples\n\n" + "\n\n".join(shown)


def _making(told: Mapping[str, str]) -> str:
    made = json.loads(told.get("configuration", "{}"))
    facts = {
        "method": told.get("method"),
        "rank (= alpha)": told.get("rank"),
        "iterations": told.get("iterations"),
        "learning rate": made.get("learning_rate"),
        "base model": told.get("backbone"),
        "prior": made.get("prior"),
        "caption": told.get("caption"),
        "seed": made.get("seed"),
    }
    rows = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value not in (None, ""))
    return f"## How it was made\n\nBy metalora.\n\n| | |\n|---|---|\n{rows}" if rows else ""

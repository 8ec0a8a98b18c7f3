"""`metalora export`: a LoRA for other programs, with a model card; resized, merged into the base model, or pushed."""

from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from metalora.adapters.artifacts import file_sha256, load_lora, save_lora
from metalora.adapters.card import BASE_MODELS, card_path, model_card
from metalora.adapters.layouts import LAYOUTS
from metalora.adapters.transform import cast, merge_into, ranks, resized, scaled
from metalora.core.atomic import atomic_path, write_bytes, writing
from metalora.core.contracts import LoraFile
from metalora.core.errors import UserError
from metalora.core.manifest import check_name, inside, read_manifest
from metalora.core.noise import generator
from metalora.hub import check_repository, push
from metalora.running.setting import Setting

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(cfg: DictConfig) -> None:
    """The task behind the command line."""
    setting = Setting.of(cfg)
    _check(setting)
    source = Path(setting["lora"])
    lora = _transformed(load_lora(source), setting)
    if setting["merge"]:
        _merge(lora, setting)
        return
    targets = _targets(source, setting)
    first = next(iter(targets.values()))
    images = _samples(Path(setting["samples"]), source) if setting["samples"] else {}
    for layout, target in reversed(targets.items()):  # Kohya's may have no names for a layer: before anything is there
        written = cast(lora, DTYPES[setting["dtype"]])
        with writing(target), atomic_path(target) as temporary:
            save_lora(temporary, written, layout=layout)
            _read_back(temporary, written)
        print(f"LoRA ({layout}): {target} ({target.stat().st_size / 1024:.0f} KiB)")
    for name, (image, _) in images.items():
        with writing(first.parent / name):
            write_bytes(first.parent / name, image.read_bytes())
    card, files = card_path(first), {path.name: layout for layout, path in targets.items()}
    text = model_card(lora, files=files, samples={name: prompt for name, (_, prompt) in images.items()})
    with writing(card):
        write_bytes(card, text.encode())
    print(f"model card: {card}")
    if setting["push"]:
        made: dict[str, Path | bytes] = {name: first.parent / name for name in (*files, *images)}
        print(f"pushed: {push(setting['push'], made | {'README.md': card}, private=setting['private'])}")


def _transformed(lora: LoraFile, setting: Setting) -> LoraFile:
    """The LoRA at the strength and rank that are asked for; its header says what it is now."""
    lora = scaled(lora, setting["strength"])
    if setting["resize"] is not None:
        made = resized(lora, setting["resize"])
        old = " and ".join(map(str, ranks(lora)))
        print(f"rank {old} -> {setting['resize']}: {100 * made.kept:.2f}% of the update kept")
        lora = made.lora
    rank = str(ranks(lora)[-1])
    told = {"rank": rank, "alpha": rank, "strength": "1.0"}
    if base := BASE_MODELS.get(lora.metadata.get("backbone", "")):
        told["base_model"] = base.hub_id
    return replace(lora, metadata={**lora.metadata, **told})


def _targets(source: Path, setting: Setting) -> dict[str, Path]:
    """Which layout goes into which file."""
    layouts = LAYOUTS if setting["format"] == "all" else (setting["format"],)
    plain = (
        Path(setting["out"]) if setting["out"] else source.with_name(f"{source.stem}-{setting['dtype']}.safetensors")
    )
    kohya = plain.with_name(f"{plain.stem}-kohya{plain.suffix}")
    targets = {
        layout: kohya if layout == "kohya" and (len(layouts) > 1 or not setting["out"]) else plain for layout in layouts
    }
    for target in targets.values():
        if target.is_dir():
            raise UserError("cannot write a LoRA onto a folder", expected="a file name", got=str(target), key="out")
        if target.exists() and target.samefile(source):
            raise UserError(
                "the LoRA would be written onto itself", expected="another file", got=str(target), key="out"
            )
    return targets


def _read_back(path: Path, lora: LoraFile) -> None:
    """What was written does to a random vector what was meant, in every layer; a file that does not is no export."""
    back = load_lora(path)
    assert set(back.down) == set(lora.down), f"{path} holds other layers"
    for name, down_SI in lora.down.items():
        probe_I = torch.randn(down_SI.shape[1], generator=generator("export", name), dtype=torch.float64)
        meant_O = lora.up[name].double() @ (down_SI.double() @ probe_I)
        got_O = back.up[name].double() @ (back.down[name].double() @ probe_I)
        torch.testing.assert_close(got_O, meant_O, rtol=1e-9, atol=1e-12)


def _merge(lora: LoraFile, setting: Setting) -> None:
    if not setting["out"]:
        raise UserError("merging needs a place", expected="out=FOLDER for the new base model", got="none", key="out")
    out = Path(setting["out"])
    base = setting.backbone.folder
    with writing(out):
        changed = merge_into(base, lora, out)
    print(f"merged into {changed} layers: {out}; use it with backbone.path={out}")


def _samples(folder: Path, lora: Path) -> dict[str, tuple[Path, str]]:
    """The images that this LoRA drew in a `generate` folder, nobody else's: name beside the card -> file and prompt."""
    digest = file_sha256(lora)
    drawn = [image for image in read_manifest(folder) if image.lora_sha256 == digest]
    for image in drawn:
        check_name(f"{image.prompt_id}-{image.seed}.png", key="samples")
    found = {
        f"samples/{image.prompt_id}-{image.seed}.png": (inside(folder, image.file), image.prompt) for image in drawn
    }
    missing = [str(path) for path, _ in found.values() if not path.is_file()]
    if not drawn or missing or len(found) < len(drawn):
        raise UserError(
            "there are no samples of this LoRA",
            expected=f"a folder that `metalora generate lora={lora}` made",
            got=f"no {missing[0]}" if missing else f"{len(drawn)} images by it under {len(found)} names in {folder}",
            key="samples",
        )
    return found


def _check(setting: Setting) -> None:
    if setting["push"]:
        check_repository(setting["push"])
    choices = {"dtype": tuple(DTYPES), "format": (*LAYOUTS, "all")}
    for key, allowed in choices.items():
        if setting[key] not in allowed:
            raise UserError(f"unknown {key}", expected=", ".join(allowed), got=str(setting[key]), key=key)
    if not isinstance(setting["strength"], int | float):
        raise UserError("no strength", expected="a number", got=str(setting["strength"]), key="strength")
    if setting["resize"] is not None and not isinstance(setting["resize"], int):
        raise UserError("no such rank", expected="a whole number", got=str(setting["resize"]), key="resize")

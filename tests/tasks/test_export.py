"""What `metalora export` takes into its folder: only pictures of the folder that it was told, under plain names."""

import json
from pathlib import Path

import pytest
import torch

from metalora.adapters.artifacts import file_sha256, save_lora
from metalora.cli import main
from metalora.core.contracts import LoraFile


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"file": "../secret.png"}, "names a file outside its folder"),
        ({"prompt_id": "../../escaped"}, "an image cannot be named after this"),
    ],
)
def test_a_strangers_list_of_samples_leads_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: dict[str, str], message: str
) -> None:
    lora, samples = tmp_path / "lora.safetensors", tmp_path / "share" / "images"
    layer = "transformer_blocks.0.attn.to_q"
    save_lora(lora, LoraFile(down={layer: torch.ones(1, 2)}, up={layer: torch.ones(3, 1)}, metadata={}))
    samples.mkdir(parents=True)
    for secret in (samples / "a.png", samples.parent / "secret.png"):
        secret.write_bytes(b"pixels")
    image = {"file": "a.png", "method": "lora", "identity": "p", "prompt_id": "scene-01", "seed": 1, "steps": 1}
    image |= {"base_model": "mini", "guidance": 1.0, "size": [8, 8], "lora_sha256": file_sha256(lora)}
    before = sorted(tmp_path.rglob("*"))
    for changes, told in ((line, message), ({}, "")):
        (samples / "manifest.jsonl").write_text(json.dumps(image | changes) + "\n")
        words = ["export", f"lora={lora}", f"samples={samples}", f"out={tmp_path / 'out' / 'me.safetensors'}"]
        if told:
            with pytest.raises(SystemExit):
                main(words)
            assert told in capsys.readouterr().err
            assert sorted(tmp_path.rglob("*")) == sorted({*before, samples / "manifest.jsonl"})
        else:
            main(words)
            assert (tmp_path / "out" / "samples" / "scene-01-1.png").read_bytes() == b"pixels"

"""A name for a frozen transformer's exact weights, cheap enough to be taken at every start."""

import hashlib
import json
from pathlib import Path

CHUNK = 1 << 20
CHUNKS = 64


def fingerprint(folder: Path) -> str:
    """sha256 over a transformer folder's configuration and safetensors files, in hex.

    Of every file the size, the whole header (names, shapes, dtypes) and 64 evenly spaced chunks of 1 MiB count, so
    files up to 64 MiB are read whole and FLUX.1-dev's 24 GB cost a fraction of a second. Training changes weights
    everywhere, so the sample sees it; a few numbers edited by hand in a large file it may miss. The same weights
    sharded differently have another fingerprint. Only files that are read count, not a variant (fp16) beside them.
    """
    digest = hashlib.sha256()
    configuration = json.loads((folder / "config.json").read_text())
    digest.update(json.dumps({k: v for k, v in sorted(configuration.items()) if not k.startswith("_")}).encode())
    for path in _read_files(folder):
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}:".encode())
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError(f"{path} is no safetensors file (a pointer of Git LFS?)")
            digest.update(file.read(8 + length))
            step = max(CHUNK, size // CHUNKS)
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(CHUNK))
    return digest.hexdigest()


def _read_files(folder: Path) -> list[Path]:
    """The files that diffusers and transformers read of a folder: an index's shards, or the one of the usual name."""
    for name in ("diffusion_pytorch_model.safetensors", "model.safetensors"):
        index = folder / f"{name}.index.json"
        if index.is_file():
            return [folder / shard for shard in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
        if (folder / name).is_file():
            return [folder / name]
    return sorted(folder.glob("*.safetensors"))

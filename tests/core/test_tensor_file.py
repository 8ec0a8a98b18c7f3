"""Equal content, equal bytes; readable by the safetensors library."""

from pathlib import Path

import torch
from safetensors import safe_open

from metalora.core.tensor_file import write_tensors


def test_bytes_depend_on_content_alone_and_the_library_reads_them(tmp_path: Path) -> None:
    tensors = {"b.weight": torch.arange(6.0).view(2, 3), "a": torch.tensor([1, 2, 3], dtype=torch.int64)}
    metadata = {f"key{k}": f"välue {k}" for k in range(20)}
    write_tensors(tmp_path / "one.safetensors", tensors, metadata=metadata)
    write_tensors(
        tmp_path / "two.safetensors", dict(reversed(tensors.items())), metadata=dict(reversed(metadata.items()))
    )
    data = (tmp_path / "one.safetensors").read_bytes()
    assert data == (tmp_path / "two.safetensors").read_bytes()
    assert (8 + int.from_bytes(data[:8], "little")) % 8 == 0
    positions = [data.index(f'"key{k}"'.encode()) for k in sorted(range(20), key=str)]
    assert positions == sorted(positions)
    with safe_open(tmp_path / "one.safetensors", framework="pt") as file:
        assert file.metadata() == metadata
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: tensor.tolist() for name, tensor in tensors.items()
        }

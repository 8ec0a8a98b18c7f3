"""Make a control of a prior: Meta-Downs of the same norms or singular values that have learned nothing, or the learned
ones scaled.

    python -m experiments.tradeoff.control PRIOR.safetensors random OUT.safetensors
    python -m experiments.tradeoff.control PRIOR.safetensors random-1 OUT.safetensors   # another draw
    python -m experiments.tradeoff.control PRIOR.safetensors spectrum-1 OUT.safetensors
    python -m experiments.tradeoff.control PRIOR.safetensors 0.5 OUT.safetensors

`metalora reproduce priors.woman=OUT.safetensors ...` then runs Stage 2 with it in place of a Stage 1 of its own.
"""

import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from metalora.adapters.artifacts import load_prior
from metalora.core.atomic import atomic_path
from metalora.core.errors import UserError
from metalora.core.lora import kaiming_uniform

DRAWN = ("random", "spectrum")


def control(meta_down_RI: Tensor, *, change: str, layer: str) -> Tensor:
    """A layer's Meta-Down, scaled, or drawn again: with the same Frobenius norm (`random`, `random-SEED`), or in random
    directions with the same singular values (`spectrum`, `spectrum-SEED`)."""
    word, _, seed = change.partition("-")
    if word not in DRAWN:
        return meta_down_RI * float(change)
    key = ("control", int(seed), layer) if seed else ("control", layer)
    drawn_RI = kaiming_uniform((meta_down_RI.shape[0], meta_down_RI.shape[1]), key=key)
    if word == "random":
        return drawn_RI * (meta_down_RI.norm() / drawn_RI.norm())
    left, _, right = torch.linalg.svd(drawn_RI.double(), full_matrices=False)
    values = torch.linalg.svdvals(meta_down_RI.double())
    return ((left * values) @ right).to(meta_down_RI.dtype)


def main(prior: Path, change: str, out: Path) -> None:
    """Write the control of a whole prior."""
    try:
        re.fullmatch(rf"({'|'.join(DRAWN)})(-\d+)?", change) or float(change)
    except ValueError:
        expected = "random, random-SEED, spectrum, spectrum-SEED, or a factor"
        raise UserError("no such change", expected=expected, got=change, key="the second word") from None
    loaded = load_prior(prior)
    tensors = {
        f"{name}.meta_down.weight": control(tensor, change=change, layer=name).contiguous()
        for name, tensor in loaded.meta_down.items()
    }
    with atomic_path(out) as temporary:
        save_file(tensors, temporary, metadata={**loaded.metadata, "control": change})


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    try:
        main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
    except UserError as error:
        raise SystemExit(f"control: {error}") from None

"""A tuning-free rival: face tokens that every block attends to beside its own attention (decoupled cross-attention).

The idea of IP-Adapter (Ye et al. 2023) on a FLUX transformer: a photo of a face becomes a few tokens, some from its
identity embedding, some from patch features that also hold pose and expression; every block gets queries, keys and
values of its own for them, and their attention is added to the image stream's. The base stays frozen, nothing is
trained per person.

Shape legend: B batch, N image tokens, T face tokens, W width of the blocks, H heads, E embedding, P patches, F patch
features.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from metalora.adapters.artifacts import read_tensors, write_tensors
from metalora.core.errors import UserError
from metalora.core.noise import generator

FORMAT = "metalora-face-adapter-1"


@dataclass(frozen=True)
class FaceAdapterShape:
    """Sizes of an adapter; `width`, `heads` and `blocks` are the transformer's."""

    width: int
    heads: int
    blocks: int
    embedding: int
    patches: int
    features: int
    identity_tokens: int = 4


class CrossAttention(nn.Module):
    """One block's attention to the face tokens; its output starts at zero, so a fresh adapter changes nothing."""

    def __init__(self, shape: FaceAdapterShape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.to_q, self.to_k, self.to_v, self.to_out = (
            nn.Linear(shape.width, shape.width, bias=False) for _ in range(4)
        )
        self.norm_q, self.norm_k = (nn.RMSNorm(shape.width // shape.heads, eps=1e-6) for _ in range(2))

    def forward(self, hidden_BNW: Tensor, tokens_BTW: Tensor) -> Tensor:
        """What is added to the attention output of the image stream, [B, N, W]."""
        q = self.norm_q(self.to_q(hidden_BNW).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        k = self.norm_k(self.to_k(tokens_BTW).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        v = self.to_v(tokens_BTW).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        weights = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class FaceAdapter(nn.Module):
    """Projections of a face to tokens, and one `CrossAttention` per block of the transformer."""

    def __init__(self, shape: FaceAdapterShape, *, seed: int = 0) -> None:
        super().__init__()
        self.shape = shape
        self.identity = nn.Linear(shape.embedding, shape.identity_tokens * shape.width)
        self.patch = nn.Linear(shape.features, shape.width)
        self.place = nn.Parameter(torch.empty(shape.patches, shape.width))
        self.norm = nn.LayerNorm(shape.width)
        self.blocks = nn.ModuleList(CrossAttention(shape) for _ in range(shape.blocks))
        source = generator("face adapter", seed)
        with torch.no_grad():
            for weight in self.parameters():
                if weight.ndim == 2:
                    bound = weight.shape[1] ** -0.5
                    weight.uniform_(-bound, bound, generator=source)
            self.identity.bias.zero_()
            self.patch.bias.zero_()
            for block in self.blocks:
                assert isinstance(block, CrossAttention)
                block.to_out.weight.zero_()

    def tokens(self, embedding_BE: Tensor, patches_BPF: Tensor) -> Tensor:
        """Face tokens [B, T, W]: `identity_tokens` from the unit embedding, then one per patch."""
        scaled = functional.normalize(embedding_BE, dim=-1) * self.shape.embedding**0.5
        identity = self.identity(scaled).unflatten(-1, (self.shape.identity_tokens, -1))
        return self.norm(torch.cat([identity, self.patch(patches_BPF) + self.place], dim=1))


class FaceRoute:
    """Face tokens at work in a diffusers FLUX transformer; `detach` leaves it as it was.

    Args:
        transformer: a `FluxTransformer2DModel`.
        adapter: of its width and number of blocks.
        tokens_1TW: one face for the whole batch.
        scale: what the attention to them is multiplied with; 0 leaves every output bit for bit.
    """

    def __init__(self, transformer: nn.Module, adapter: FaceAdapter, *, tokens_1TW: Tensor, scale: float) -> None:
        blocks = transformer_blocks(transformer)
        assert len(blocks) == adapter.shape.blocks, (len(blocks), adapter.shape.blocks)
        self._tokens, self._scale = tokens_1TW, scale
        self._text = 0  # text tokens, told by the double blocks, which come first
        self._handles = []
        if scale != 0:
            self._handles = [
                block.attn.register_forward_hook(self._hook(cross), with_kwargs=True)
                for block, cross in zip(blocks, adapter.blocks, strict=True)
            ]

    def _hook(self, cross: nn.Module) -> Callable[..., Any]:
        def added(hidden_BNW: Tensor) -> Tensor:
            return self._scale * cross(hidden_BNW, self._tokens.expand(len(hidden_BNW), -1, -1))

        def after(module: nn.Module, given: tuple[()], named: dict[str, Tensor], made: Any) -> Any:
            hidden = named["hidden_states"]
            if isinstance(made, tuple):  # a double block: image and text apart
                self._text = made[1].shape[1]
                return made[0] + added(hidden), *made[1:]
            # a single block: text first, then the image
            return torch.cat([made[:, : self._text], made[:, self._text :] + added(hidden[:, self._text :])], dim=1)

        return after

    def detach(self) -> None:
        """Take the hooks out."""
        for handle in self._handles:
            handle.remove()


def transformer_blocks(transformer: nn.Module) -> list[nn.Module]:
    """Double and single blocks of a FLUX transformer, in order."""
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]  # type: ignore[misc]


def save_face_adapter(path: Path, adapter: FaceAdapter, *, metadata: Mapping[str, str]) -> None:
    """Write an adapter in bf16, atomically.

    Args:
        metadata: where it comes from; `backbone_fingerprint` is what `load_face_adapter` checks.
    """
    tensors = {name: value.detach().to(torch.bfloat16).contiguous() for name, value in adapter.state_dict().items()}
    header = {**metadata, "format": FORMAT, "shape": json.dumps(asdict(adapter.shape), sort_keys=True)}
    write_tensors(path, tensors, metadata=header)


def load_face_adapter(path: Path, *, backbone_fingerprint: str, key: str = "ip_adapter.adapter") -> FaceAdapter:
    """Read an adapter, in float32.

    Raises:
        UserError: missing, no whole safetensors file, not a face adapter, made for another base.
    """
    tensors, metadata = read_tensors(path, what="face adapter", key=key)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"{path} is not a face adapter",
            expected=f"a file of format {FORMAT}",
            got=metadata.get("format", "no format"),
            key=key,
        )
    if metadata.get("backbone_fingerprint") != backbone_fingerprint:
        raise UserError(
            f"the face adapter {path} was made for another base",
            expected=f"fingerprint {backbone_fingerprint[:12]}",
            got=metadata.get("backbone_fingerprint", "none")[:12],
            key=key,
        )
    try:
        adapter = FaceAdapter(FaceAdapterShape(**json.loads(metadata["shape"])))
        adapter.load_state_dict({name: value.float() for name, value in tensors.items()})
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"the face adapter {path} is not whole",
            expected="the shape in its header, and this shape's tensors",
            got=f"{type(error).__name__}: {error}".splitlines()[0],
            key=key,
        ) from error
    return adapter.requires_grad_(False).eval()

"""What drawing a batch of images will peak at, told before it starts: one pass and one decoding on the meta device.

Shape legend: B batch, C latent channels, H W latent height and width.
"""

import torch

from metalora.adapters.bank import row_sizes
from metalora.backbones.sizes import dense_bytes, weight_bytes
from metalora.core.budget import MemoryPlan
from metalora.core.contracts import Backbone, MemoryUse, TextEmbedding
from metalora.core.footprint import LiveBytes


def plan_drawing(
    backbone: Backbone, *, batch: int, rank: int, size: tuple[int, int], text: TextEmbedding, memory: MemoryUse
) -> MemoryPlan:
    """Count what one batch of images needs.

    Args:
        backbone: only its configuration is read.
        batch: images at once.
        rank: of the LoRAs; 0: none.
        size: (height, width) in pixels.
        text: a prompt's embedding, a single row.
        memory: how memory is saved.
    """
    paper = backbone.on_paper(memory)
    row = text.rows(torch.zeros(batch, dtype=torch.long, device=text.tokens_BLD.device))
    copies = paper.drawing(row, empty=text, guidance=7.5).copies if paper.needs_empty_prompt else 1
    pipe = paper.pipeline(text=False)
    factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
    latents = torch.empty(batch, pipe.vae.config.latent_channels, *(side // factor for side in size), device="meta")
    with LiveBytes() as pass_, torch.no_grad():
        both = latents.repeat(copies, 1, 1, 1)
        paper.predict(both, t_B=both.new_empty(len(both)), text=_rows(text, len(both)), guidance=1.0)
    with LiveBytes() as decoding, torch.no_grad():
        pipe.vae.decode(latents.to(pipe.vae.dtype))
    adapter = batch * sum(row_sizes(backbone.layer_shapes, rank=rank, meta_rank=None)) if rank else 0
    return MemoryPlan(
        memory=memory,
        weights=weight_bytes(paper) + sum(it.nbytes for it in [*pipe.vae.parameters(), *pipe.vae.buffers()]),
        adapter=adapter * torch.float32.itemsize,
        moments=0,
        activations=max(pass_.peak + dense_bytes(paper), decoding.peak),
    )


def _rows(text: TextEmbedding, count: int) -> TextEmbedding:
    def meta(tensor: torch.Tensor) -> torch.Tensor:
        return torch.empty(count, *tensor.shape[1:], device="meta")

    return TextEmbedding(meta(text.tokens_BLD), meta(text.pooled_BP))

"""The FLUX forward pass written for training on a CPU: the same parameters and numbers as diffusers, half the time.

Projections that read the same input run as one matrix product, attention is two plain products (torch's fused bf16
backward is slow on CPUs) and time embeddings stay in fp32 when the blocks run in bf16.
Legend: B batch, L tokens (text first), T text tokens, N image tokens, W width, H heads, D head size.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as functional
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn


def _linear(x: Tensor, layers: list[nn.Linear]) -> Tensor:
    return functional.linear(x, torch.cat([y.weight for y in layers]), torch.cat([y.bias for y in layers]))


def _modulated(x_BLW: Tensor, shift_BW: Tensor, scale_BW: Tensor) -> Tensor:
    return functional.layer_norm(x_BLW, x_BLW.shape[-1:], eps=1e-6) * (1 + scale_BW[:, None]) + shift_BW[:, None]


def _normed(x_BLHD: Tensor, weight_D: Tensor) -> Tensor:
    variance = x_BLHD.float().square().mean(-1, keepdim=True)
    return (x_BLHD.float() * torch.rsqrt(variance + 1e-6)).to(x_BLHD.dtype) * weight_D


def _rotated(x_BLHD: Tensor, cos_LD: Tensor, sin_LD: Tensor) -> Tensor:
    even, odd = x_BLHD.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], -1).flatten(-2)
    return (x_BLHD.float() * cos_LD[:, None] + turned * sin_LD[:, None]).to(x_BLHD.dtype)


def _attention(q_BLHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_BLHD, k_BLHD, v_BLHD))
    weights = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)).softmax(-1)
    return torch.matmul(weights, v).transpose(1, 2).flatten(2)


def _tanh_gelu(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


def rotary(transformer: FluxTransformer2DModel, *, text_tokens: int, image_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T + N, D] for a picture whose ids [N, 3] FluxPipeline would make."""
    ids = torch.cat([torch.zeros(text_tokens, 3), image_ids.float()])
    cos_LD, sin_LD = transformer.pos_embed(ids)
    return cos_LD.float(), sin_LD.float()


def velocity(
    transformer: FluxTransformer2DModel,
    x_BNC: Tensor,
    *,
    time_B: Tensor,
    guidance_B: Tensor,
    text_BTW: Tensor,
    pooled_BW: Tensor,
    rotary_LD: tuple[Tensor, Tensor],
    cross: Callable[[int, Tensor], Tensor] | None = None,
    without: tuple[int, ...] = (),
) -> Tensor:
    """Predicted velocity [B, N, C] (noise minus clean latents), as `FluxTransformer2DModel.forward` computes it.

    Args:
        x_BNC: noisy packed latents.
        time_B: in [0, 1], 1 is noise, fp32.
        guidance_B: guidance scale, fp32.
        text_BTW, pooled_BW: outputs of the T5 and the CLIP encoder.
        rotary_LD: from `rotary`.
        cross: what a block adds to the attention of its image tokens, from its number and their modulated values.
        without: joint blocks that are left out.
    """
    cos_LD, sin_LD = rotary_LD
    embed, heads = transformer.time_text_embed, transformer.config.num_attention_heads
    dtype, T = x_BNC.dtype, text_BTW.shape[1]
    conditioning = embed.timestep_embedder(embed.time_proj(time_B * 1000))
    conditioning = conditioning + embed.guidance_embedder(embed.time_proj(guidance_B * 1000))
    conditioning = (conditioning + embed.text_embedder(pooled_BW.float())).to(dtype)
    doubles, singles = list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)
    layers = [x for block in doubles for x in (block.norm1.linear, block.norm1_context.linear)]
    layers += [block.norm.linear for block in singles] + [transformer.norm_out.linear]
    width = transformer.inner_dim
    chunks = iter(_linear(functional.silu(conditioning), layers).split(width, dim=-1))
    image, text = transformer.x_embedder(x_BNC), transformer.context_embedder(text_BTW)

    for place, block in enumerate(doubles):
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (next(chunks) for _ in range(6))
        t_shift, t_scale, t_gate, t_shift_ff, t_scale_ff, t_gate_ff = (next(chunks) for _ in range(6))
        if place in without:
            continue
        a = block.attn
        modulated = _modulated(image, shift, scale)
        image_qkv = _linear(modulated, [a.to_q, a.to_k, a.to_v])
        text_qkv = _linear(_modulated(text, t_shift, t_scale), [a.add_q_proj, a.add_k_proj, a.add_v_proj])
        iq, ik, iv = image_qkv.unflatten(-1, (3, heads, -1)).unbind(2)
        tq, tk, tv = text_qkv.unflatten(-1, (3, heads, -1)).unbind(2)
        q = torch.cat([_normed(tq, a.norm_added_q.weight), _normed(iq, a.norm_q.weight)], 1)
        k = torch.cat([_normed(tk, a.norm_added_k.weight), _normed(ik, a.norm_k.weight)], 1)
        v = torch.cat([tv, iv], 1)
        mixed = _attention(_rotated(q, cos_LD, sin_LD), _rotated(k, cos_LD, sin_LD), v)
        seen = a.to_out[0](mixed[:, T:])
        if cross is not None:
            seen = seen + cross(place, modulated)
        image = image + gate[:, None] * seen
        text = text + t_gate[:, None] * a.to_add_out(mixed[:, :T])
        inner = _tanh_gelu(block.ff.net[0].proj(_modulated(image, shift_ff, scale_ff)))
        image = image + gate_ff[:, None] * block.ff.net[2](inner)
        inner = _tanh_gelu(block.ff_context.net[0].proj(_modulated(text, t_shift_ff, t_scale_ff)))
        text = text + t_gate_ff[:, None] * block.ff_context.net[2](inner)

    hidden = torch.cat([text, image], 1)
    for place, block in enumerate(singles, start=len(doubles)):
        shift, scale, gate = (next(chunks) for _ in range(3))
        a = block.attn
        modulated = _modulated(hidden, shift, scale)
        fused = _linear(modulated, [a.to_q, a.to_k, a.to_v, block.proj_mlp])
        q, k, v = fused[..., : 3 * width].unflatten(-1, (3, heads, -1)).unbind(2)
        q, k = _normed(q, a.norm_q.weight), _normed(k, a.norm_k.weight)
        mixed = _attention(_rotated(q, cos_LD, sin_LD), _rotated(k, cos_LD, sin_LD), v)
        if cross is not None:
            mixed = torch.cat([mixed[:, :T], mixed[:, T:] + cross(place, modulated[:, T:])], 1)
        both = torch.cat([mixed, _tanh_gelu(fused[..., 3 * width :])], -1)
        hidden = hidden + gate[:, None] * block.proj_out(both)

    scale, shift = next(chunks), next(chunks)
    return transformer.proj_out(_modulated(hidden[:, T:], shift, scale))

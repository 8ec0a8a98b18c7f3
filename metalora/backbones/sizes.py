"""What a denoiser's weights take on the device, known from its configuration."""

from torch import nn

from metalora.backbones.blocks import repeated_blocks
from metalora.backbones.quantization import quantized_bytes
from metalora.core.contracts import Backbone


def weight_bytes(paper: Backbone) -> int:
    """What lies on the device of a denoiser: all of it, or the largest block beside what belongs to none.

    Args:
        paper: made by `on_paper`.
    """
    denoiser, memory = paper.denoiser, paper.memory
    targets = {f"{name}.weight" for name in paper.layer_shapes}

    def sizes(module: nn.Module, prefix: str = "") -> int:
        total = sum(buffer.nbytes for buffer in module.buffers())
        for name, parameter in module.named_parameters(prefix=prefix):
            if name in targets:
                shape = (parameter.shape[0], parameter.shape[1])
                total += quantized_bytes(shape, kind=memory.quantization, dtype=paper.dtype)
            else:
                total += parameter.nbytes
        return total

    if not memory.offload:
        return sizes(denoiser)
    names = {module: name for name, module in denoiser.named_modules()}
    blocks = [sizes(block, names[block]) for block in repeated_blocks(denoiser)]
    return sizes(denoiser) - sum(blocks) + max(blocks)


def dense_bytes(paper: Backbone) -> int:
    """The largest quantized layer's numbers while they are made: torchao scales them in float32 first."""
    kind, last = paper.memory.quantization, paper.dtype.itemsize
    each = {None: 0, "nf4": last, "int8": 4 + last, "float8": 8 + last}[kind]
    return each * max(shape.in_features * shape.out_features for shape in paper.layer_shapes.values())

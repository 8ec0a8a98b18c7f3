"""A denoiser's repeated blocks: which of them are computed twice to save memory, and where their weights wait.

Neither changes a number.
"""

from copy import copy
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from metalora.core.contracts import CHECKPOINTING


def repeated_blocks(denoiser: Any) -> list[nn.Module]:
    """The blocks that diffusers calls repeated (or never to be split), in module order."""
    kinds = set(type(denoiser)._repeated_blocks or type(denoiser)._no_split_modules)
    return [module for module in denoiser.modules() if type(module).__name__ in kinds]


def checkpoint_blocks(denoiser: Any, *, which: str) -> None:
    """Let blocks compute their activations again in backward instead of keeping them.

    Args:
        which: none, some (every other block in the order they run) or all.
    """
    assert which in CHECKPOINTING, which
    if which == "none":
        denoiser.disable_gradient_checkpointing()
        return
    order: dict[nn.Module, int] = {}

    def run(block: nn.Module, *args: Any, **named: Any) -> Any:
        if which == "some" and order.setdefault(block, len(order)) % 2:
            return block(*args, **named)
        # A frozen denoiser in eval mode draws no random numbers: there is no generator's state to keep.
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False, **named)

    denoiser.enable_gradient_checkpointing(run)


def compile_repeated(denoiser: Any, *, backend: str = "inductor") -> None:
    """Compile the repeated blocks, each kind once; shapes may change between steps without compiling anew.

    Args:
        backend: torch.compile's.
    """
    for block in repeated_blocks(denoiser):
        block.compile(dynamic=True, fullgraph=True, backend=backend)


class OffloadedBlock:
    """A block whose weights wait on the CPU and lie on the device only while it runs.

    The device's copies are parameters of their own that take the places of those on the CPU; autograd holds on to what
    it needs of them, so in backward they live until the block's recomputation has been used, and no longer.
    """

    def __init__(self, block: nn.Module, *, device: torch.device) -> None:
        self._places = [
            (module, name, _pinned(parameter, device))
            for module in block.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._device = device
        self._leave()
        block.register_forward_pre_hook(self._come)
        block.register_forward_hook(self._leave, always_call=True)

    def _come(self, *_: Any) -> None:
        for module, name, parameter in self._places:
            module._parameters[name] = _moved(parameter, self._device)

    def _leave(self, *_: Any) -> None:
        for module, name, parameter in self._places:
            module._parameters[name] = parameter


def offload_blocks(denoiser: nn.Module, *, device: torch.device) -> None:
    """Keep the repeated blocks' weights on the CPU, everything else on the device."""
    blocks = repeated_blocks(denoiser)
    inside = {id(module) for block in blocks for module in block.modules()}
    for module in denoiser.modules():
        if id(module) not in inside:
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = _moved(parameter, device)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)
    for block in blocks:
        for module in block.modules():
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(device)
        OffloadedBlock(block, device=device)


def _pinned(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """A copy on the CPU that the device can fetch without a detour, where the tensor's kind allows it."""
    on_cpu = _moved(parameter, torch.device("cpu"))
    if device.type != "cuda" or type(parameter) is not nn.Parameter:
        return on_cpu
    return nn.Parameter(on_cpu.detach().pin_memory(), requires_grad=False)


def _moved(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """A frozen parameter of its own on a device; the one it is of stays where it is, scales and all."""
    state = getattr(parameter, "quant_state", None)
    if state is not None:  # bitsandbytes would move the scales of both
        from bitsandbytes.nn import Params4bit

        state = copy(state)
        state.absmax = state.absmax.to(device, non_blocking=True)
        state.code = state.code.to(device, non_blocking=True)
        data = parameter.data.to(device, non_blocking=True)
        own: dict[str, Any] = {"quant_state": state, "blocksize": state.blocksize, "quant_type": state.quant_type}
        own["bnb_quantized"] = True
        return Params4bit(data, requires_grad=False, **own)
    plain = parameter.detach() if type(parameter) is nn.Parameter else parameter
    moved = plain.to(device, non_blocking=True)
    return moved if isinstance(moved, nn.Parameter) else nn.Parameter(moved, requires_grad=False)

"""How much memory a computation needs at most, counted without doing it: on the meta device tensors have sizes alone.

Attention counts as a fused kernel does: it keeps its inputs, its output and one number per query, no table of
query times key.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While it is on, counts the bytes of storages that operations make, and the largest sum alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __enter__(self) -> "LiveBytes":
        functional.scaled_dot_product_attention = _fused_attention  # a function mode would not see recomputations
        return super().__enter__()

    def __exit__(self, *stop: Any) -> None:
        super().__exit__(*stop)
        functional.scaled_dot_product_attention = _attention_of_torch
        for finalizer in self._known.values():
            finalizer.detach()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(_storage(it)) for it in tree_leaves((args, kwargs)) if isinstance(it, Tensor) and _strided(it)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and _strided(tensor) and id(_storage(tensor)) not in given:
                self._count(_storage(tensor))
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self._known:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        self._known[id(storage)] = weakref.finalize(storage, self._forget, id(storage), size)

    def _forget(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


def _strided(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided


def _storage(tensor: Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


_attention_of_torch = functional.scaled_dot_product_attention


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """On the meta device torch would pick the unfused attention, which no device with this much to do would."""
    if query.is_meta:
        return _Attention.apply(query, key, value)
    return _attention_of_torch(query, key, value, *args, **kwargs)


class _Attention(torch.autograd.Function):
    """A fused attention's memory: what it returns, and what it keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = query.new_empty((*query.shape[:-1], value.shape[-1]))
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(tensor) for tensor in ctx.saved_tensors[:3])

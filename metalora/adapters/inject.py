"""Make a model's Linear layers consult an adapter bank, and undo it.

Each target layer gets its own `forward`; the layer stays the same module under the same name with the same
parameters, so state dicts, stock pipelines and hooks see nothing new, and a quantized Linear works too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MethodType

from torch import Tensor, nn

from metalora.adapters.bank import AdapterBank
from metalora.adapters.linear import adapted_linear
from metalora.core.errors import UserError
from metalora.core.lora import LayerShape


@dataclass(frozen=True)
class Injection:
    """A bank sitting in a model; `eject` takes it out."""

    layers: dict[str, nn.Linear]


def layer_shapes(layers: Mapping[str, nn.Linear]) -> dict[str, LayerShape]:
    """The widths that a bank needs of a backbone's target layers."""
    return {name: LayerShape(layer.in_features, layer.out_features) for name, layer in layers.items()}


def inject(model: nn.Module, bank: AdapterBank) -> Injection:
    """Freeze `model` and route the Linear layers that the bank names through it.

    Raises:
        UserError: a layer of the bank that the model lacks, or that is no Linear of the bank's widths.
    """
    modules = dict(model.named_modules())
    layers: dict[str, nn.Linear] = {}
    wrong = []
    for name, shape in bank.layers.items():
        layer = modules.get(name)
        if isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) == (
            shape.in_features,
            shape.out_features,
        ):
            layers[name] = layer
        else:
            wrong.append(name)
    if wrong or not layers:
        raise UserError(
            f"{len(wrong)} of {len(bank.layers)} adapter layers have no match in the model: {', '.join(wrong[:5])}",
            expected="Linear layers of the same names and widths",
            key="backbone",
        )
    assert not any("forward" in vars(layer) for layer in layers.values()), "the model already carries adapters"
    model.requires_grad_(False)
    for name, layer in layers.items():
        vars(layer)["adapter_slot"] = bank.slots[name]
        vars(layer)["forward"] = MethodType(_forward, layer)
    return Injection(layers)


def eject(injection: Injection) -> None:
    """Give the layers their own forward back."""
    for layer in injection.layers.values():
        del vars(layer)["forward"]
        del vars(layer)["adapter_slot"]


def _forward(self: nn.Linear, x: Tensor) -> Tensor:
    return adapted_linear(self, x, slot=vars(self)["adapter_slot"])

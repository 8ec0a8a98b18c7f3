"""The identity bank: one shared Meta-Down and, per identity, one row holding every layer's Mid and Up.

A step looks up the rows of its batch once, so the gradient that arrives names the identities that were present, and the
optimizer moves those alone. Which rows these are is known on the host: nothing is ever asked of the device.

Shape legend: K identities, P numbers per identity, B batch, I in, O out, R r1, S r2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from metalora.adapters.linear import LayerSlot
from metalora.core.contracts import LoraFile
from metalora.core.device import sent
from metalora.core.errors import UserError
from metalora.core.lora import LayerShape, collapse, kaiming_uniform


def row_sizes(layers: Mapping[str, LayerShape], *, rank: int, meta_rank: int | None) -> list[int]:
    """How many numbers of an identity's row belong to each layer, in turn; their sum is P.

    Mid [S, R] (or Down [S, I]) of the first layer, its Up transposed [S, O], Mid of the second layer, and so on.
    """
    pairs = ((rank * (meta_rank or shape.in_features), shape.out_features * rank) for shape in layers.values())
    return [size for pair in pairs for size in pair]


class AdapterBank(nn.Module):
    """Adapters of K identities over the same layers: three-layer Meta-LoRA, or plain LoRA without `meta_rank`.

    Args:
        layers: widths of the adapted layers by dotted name.
        identities: names of the K rows; a row starts from (seed, its name, layer, visit) alone.
        rank: r2, the rank of the LoRA that is exported.
        meta_rank: r1 of the shared Meta-Down; None makes plain LoRAs (Down and Up per identity, nothing shared).
        meta_down: a prior's Meta-Down [R, I] per layer, copied; by default it starts Kaiming-uniform.

    Raises:
        UserError: a rank below 1, or larger than meta_rank; a Meta-Down of other layers or another r1.
    """

    def __init__(
        self,
        layers: Mapping[str, LayerShape],
        *,
        identities: Sequence[str],
        rank: int,
        meta_rank: int | None,
        seed: int,
        meta_down: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        for key, value in (("rank", rank), ("meta_rank", meta_rank)):
            if value is not None and value < 1:
                raise UserError("no such rank", expected="1 or more", got=str(value), key=key)
        if meta_rank is not None and rank > meta_rank:
            raise UserError(
                "the rank is larger than Meta-Down's",
                expected=f"rank at most r1 = {meta_rank}",
                got=str(rank),
                key="rank",
            )
        self.layers = dict(layers)
        self.rank, self.meta_rank, self.seed = rank, meta_rank, seed
        self._sizes = row_sizes(self.layers, rank=rank, meta_rank=meta_rank)
        self.slots = {
            name: LayerSlot(rank, shape.in_features, shape.out_features) for name, shape in self.layers.items()
        }
        self.meta_down = nn.ParameterDict()
        if meta_rank is not None:
            for name, shape in self.layers.items():
                size = (meta_rank, shape.in_features)
                start = kaiming_uniform(size, key=(seed, "meta_down", name)) if meta_down is None else torch.empty(size)
                self.meta_down[_key(name)] = nn.Parameter(start)
            if meta_down is not None:
                self.load_meta_down(meta_down)
        self.rows = nn.Parameter(torch.zeros(len(identities), sum(self._sizes)))
        self._train_meta_down = meta_rank is not None
        self._pieces: Sequence[Tensor] | None = None
        self.present: list[int] | None = None
        """The rows that the last route serves, ascending, each once; None when there is none."""
        self.identities: list[str] = []
        self.reset_rows(identities, visit=0)

    @property
    def train_meta_down(self) -> bool:
        """Whether a forward reaches Meta-Down with gradient; set by the schedule. requires_grad is never toggled."""
        return self._train_meta_down

    @train_meta_down.setter
    def train_meta_down(self, value: bool) -> None:
        self._train_meta_down = value
        self._fill_slots()

    def meta_down_of(self, layer: str) -> nn.Parameter:
        """Meta-Down [R, I] of a layer by its dotted name."""
        return self.meta_down[_key(layer)]

    def row_of(self, identity: str) -> int:
        """The row that holds an identity."""
        return self.identities.index(identity)

    def assign_rows(self, identities: Sequence[str]) -> None:
        """Give the rows to other identities and keep their numbers (slots: reuse)."""
        assert len(identities) <= len(self.rows), f"{len(identities)} identities for {len(self.rows)} rows"
        assert len(set(identities)) == len(identities), "an identity twice"
        self.identities = list(identities)

    @torch.no_grad()
    def reset_rows(self, identities: Sequence[str], *, visit: int) -> None:
        """Give the rows to other identities and start them afresh: Mid (or Down) Kaiming-uniform, Up zero.

        Fewer identities than rows are allowed; rows without an identity are zero.
        """
        self.assign_rows(identities)
        self.rows[len(identities) :].zero_()
        start_P = torch.zeros(self.rows.shape[1], device=None if self.rows.is_meta else "cpu")
        for row, identity in enumerate(identities):
            pieces = start_P.split(self._sizes)
            for (name, shape), first in zip(self.layers.items(), pieces[::2], strict=True):
                fan_in = self.meta_rank or shape.in_features
                first.copy_(kaiming_uniform((self.rank, fan_in), key=(self.seed, identity, name, visit)).flatten())
            self.rows[row].copy_(start_P)  # to the device at once: a copy per layer would cost more than an iteration

    def set_route(self, rows_B: Tensor) -> None:
        """Say which row serves each sample of the coming batch; holds until the next call or `clear_route`.

        The rows are looked up here, once: call it before every training forward. What is looked up lives until then,
        so recomputing a checkpointed forward in backward meets the very same tensors.

        Args:
            rows_B: int64, on the CPU (elsewhere, the device is waited for).
        """
        route = rows_B.tolist()
        if len(self.rows) == 1:
            route = route[:1]
        # A gradient that still waits is of another route: whose it is, is then asked of itself.
        self.present = sorted(set(route)) if self.rows.grad is None else None
        self._pieces = LookUp.apply(self.rows, route).split(self._sizes, dim=1)
        self._fill_slots()

    def clear_route(self) -> None:
        """Make the adapted layers the base layers again."""
        self._pieces = self.present = None
        self._fill_slots()

    def _fill_slots(self) -> None:
        pieces = self._pieces
        for index, (name, slot) in enumerate(self.slots.items()):
            slot.first = None if pieces is None else pieces[2 * index]
            slot.up = None if pieces is None else pieces[2 * index + 1]
            if self.meta_rank is not None:
                meta_down_RI = self.meta_down_of(name)
                slot.meta_down = meta_down_RI if self._train_meta_down else meta_down_RI.detach()

    def _of_row(self, row: int) -> dict[str, tuple[Tensor, Tensor]]:
        pieces = self.rows.detach()[row].split(self._sizes)
        return {
            name: (first.view(self.rank, -1), up.view(self.rank, shape.out_features).mT)
            for (name, shape), first, up in zip(self.layers.items(), pieces[::2], pieces[1::2], strict=True)
        }

    @torch.no_grad()
    def collapsed(self, identity: str, *, metadata: Mapping[str, str] | None = None) -> LoraFile:
        """The plain LoRA that this identity's adapter equals: A = Mid MetaDown, B = Up; float32 on the CPU."""
        down, up = {}, {}
        for name, (first, up_OS) in self._of_row(self.row_of(identity)).items():
            down_SI = first if self.meta_rank is None else collapse(self.meta_down_of(name), first)
            down[name] = down_SI.to("cpu", copy=True).contiguous()
            up[name] = up_OS.to("cpu", copy=True).contiguous()
        return LoraFile(down=down, up=up, metadata=dict(metadata or {}))

    @torch.no_grad()
    def load_lora(self, identity: str, lora: LoraFile) -> None:
        """Put a plain LoRA of rank at most `rank` into an identity's row, e.g. to generate from exported files.

        Raises:
            UserError: other layers or widths than the bank's, or a larger rank.
        """
        assert self.meta_rank is None, "a collapsed LoRA does not say its Mid"
        _same_layers(self.layers, lora.down, what=f"the LoRA {lora.path or ''} does not fit the model", key="lora")
        for name, (down_SI, up_OS) in self._of_row(self.row_of(identity)).items():
            rank = lora.down[name].shape[0]
            if rank > self.rank or lora.down[name].shape[1:] != down_SI.shape[1:] or len(lora.up[name]) != len(up_OS):
                raise UserError(
                    f"the LoRA {lora.path or ''} does not fit layer {name}",
                    expected=f"rank at most {self.rank}, {down_SI.shape[1]} -> {len(up_OS)}",
                    got=f"rank {rank}, {lora.down[name].shape[1]} -> {len(lora.up[name])}",
                    key="lora",
                )
            down_SI.zero_()[:rank] = lora.down[name]
            up_OS.zero_()[:, :rank] = lora.up[name]

    @torch.no_grad()
    def load_meta_down(self, meta_down: Mapping[str, Tensor]) -> None:
        """Copy a prior's Meta-Down [R, I] per layer into the bank.

        Raises:
            UserError: other layers or another r1 than the bank's.
        """
        _same_layers(self.layers, meta_down, what="the prior does not fit the model", key="prior")
        for name in self.layers:
            own = self.meta_down_of(name)
            if own.shape != meta_down[name].shape:
                raise UserError(
                    f"the prior does not fit layer {name}",
                    expected=f"Meta-Down of shape {tuple(own.shape)}",
                    got=str(tuple(meta_down[name].shape)),
                    key="prior",
                )
            own.copy_(meta_down[name])


class LookUp(torch.autograd.Function):
    """Rows [B, P] of a table [K, P]; the gradient is sparse and coalesced: the rows present, ascending, each once."""

    @staticmethod
    def forward(ctx: Any, rows_KP: Tensor, route: list[int]) -> Tensor:
        ctx.shape, ctx.route = rows_KP.shape, route
        return rows_KP.index_select(0, sent(torch.tensor(route), rows_KP.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_BP: Tensor) -> tuple[Tensor, None]:
        present = sorted(set(ctx.route))
        first = [ctx.route.index(row) for row in present]
        values_UP = (
            grad_BP
            if first == list(range(len(grad_BP)))
            else grad_BP.index_select(0, sent(torch.tensor(first), grad_BP.device))
        )
        for sample in sorted(set(range(len(ctx.route))) - set(first)):  # an identity twice in the batch
            values_UP[present.index(ctx.route[sample])] += grad_BP[sample]
        indices_1U = sent(torch.tensor(present), grad_BP.device).unsqueeze(0)
        return torch.sparse_coo_tensor(
            indices_1U, values_UP, ctx.shape, is_coalesced=True, check_invariants=False
        ), None


def _key(layer: str) -> str:
    """A ParameterDict's keys hold no dots."""
    return layer.replace(".", "/")


def _same_layers(expected: Mapping[str, object], got: Mapping[str, object], *, what: str, key: str) -> None:
    missing, unknown = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    if missing or unknown:
        raise UserError(
            what,
            expected=f"its {len(expected)} layers",
            got=f"{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}",
            key=key,
        )

"""Low-rank adapters merged into a network's Linears, and the pristine weights put back.

W = W0 + sum of weight * scale * up @ down over the adapters in use (LoRA, arXiv 2106.09685, eq. 3), in fp32, rounded
once to the network's dtype. W0 is kept as a copy and copied back: subtracting would not give its bits again. A merged
network costs what one without adapters does.

Shape suffixes: r rank, I inputs and O outputs of a Linear.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lora:
    """What is added to one Linear: scale * up [O, r] @ down [r, I]."""

    down_rI: Tensor
    up_Or: Tensor
    scale: float = 1.0

    def delta(self) -> Tensor:
        """[O, I] in fp32."""
        return self.scale * (self.up_Or.float() @ self.down_rI.float())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Adapter:
    """loras: by the path of the Linear in the network, "blocks.0.attn.qkv"."""

    name: str
    loras: Mapping[str, Lora]


Weighted = tuple[Adapter, float]
"""An adapter, and how strongly it counts: 1 as it was trained, 0 not at all, below 0 against it."""


def linears(network: nn.Module) -> dict[str, nn.Linear]:
    """Every Linear of a network by its path."""
    return {path: module for path, module in network.named_modules() if isinstance(module, nn.Linear)}


def check_fit(name: str, loras: Mapping[str, Lora], network: nn.Module) -> None:
    """Raise ValueError unless every Linear that an adapter names is there, with the sides that it takes."""
    there = linears(network)
    for path, lora in loras.items():
        if path not in there:
            raise ValueError(f"adapter is {name!r}; it changes {path}, and the network has no Linear of that name.")
        sides = (there[path].out_features, there[path].in_features)
        rank, given = lora.down_rI.shape[0], (lora.up_Or.shape[0], lora.down_rI.shape[1])
        if given != sides or lora.up_Or.shape[1] != rank:
            raise ValueError(f"adapter is {name!r}; for {path} it has {list(lora.up_Or.shape)} by "
                             f"{list(lora.down_rI.shape)}, and the network's weight there is {list(sides)}.")


class AdapterSlot:
    """The adapters of one network, whose weights are changed in place. One drawing at a time has them."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._pristine: dict[str, Tensor] = {}
        self._drawing = Lock()

    @contextmanager
    def drawing(self, adapters: Sequence[Weighted]) -> Iterator[None]:
        """Merge some adapters for the time of a drawing; behind it the network is as it was, to the last bit.

        Another thread's drawing waits. Enter it outside `packed_linears`, which takes the weights as they are then.
        Raises ValueError as `fuse` does.
        """
        with self._drawing:
            try:
                self.fuse(adapters)
                yield
            finally:
                self.unfuse()

    @torch.no_grad()
    def fuse(self, adapters: Sequence[Weighted]) -> None:
        """Give the network its pristine weights with exactly these adapters, whatever was merged before.

        Raises ValueError, before a weight is changed, for an adapter that does not fit, that is there twice, or whose
        weight is no finite number.
        """
        counted = self._checked(adapters)
        there = linears(self._network)
        touched = {path for adapter, _ in counted for path in adapter.loras}
        for path in self._pristine.keys() - touched:
            there[path].weight.copy_(self._pristine.pop(path))
        for path in sorted(touched):
            weight = there[path].weight
            assert "forward" not in vars(there[path]), "weights are merged before a network is packed"
            pristine = self._pristine.setdefault(path, weight.detach().clone())
            merged = pristine.float()
            for adapter, strength in counted:
                if path in adapter.loras:
                    merged = merged + strength * adapter.loras[path].delta().to(merged.device)
            weight.copy_(merged)

    def unfuse(self) -> None:
        """The pristine weights again, by copy."""
        self.fuse(())

    def _checked(self, adapters: Sequence[Weighted]) -> list[Weighted]:
        """Those that count for something."""
        names = [adapter.name for adapter, _ in adapters]
        for (adapter, strength), name in zip(adapters, names, strict=True):
            if names.count(name) > 1:
                raise ValueError(f"adapter {name!r} is given {names.count(name)} times; once is enough.")
            if not math.isfinite(strength):
                raise ValueError(f"the weight of adapter {name!r} is {strength}; it must be a finite number.")
            check_fit(name, adapter.loras, self._network)
        return [(adapter, strength) for adapter, strength in adapters if strength != 0]

"""bf16 Linears whose weights lie as oneDNN multiplies them, for the time of a drawing on a CPU.

A Linear puts its weight into blocks at every call, which for a hundred tokens takes as long as the product; and its
bias and a GELU are passes of their own. While a drawing lasts the weights cannot change, so the blocks are made once.
A Linear alone gives the same bits as before; a GELU behind it is taken before the rounding to bf16, not after.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mezzotint.dit.layers import GeluMlp


@contextmanager
def packed_linears(network: nn.Module) -> Iterator[None]:
    """Pack all bf16 Linears of a network on a CPU while this is entered; it takes their memory a second time.

    Elsewhere, or where this build of torch has no oneDNN, nothing happens. A network that is packed already is left to
    whoever packed it. Weights that are changed while this is entered count when it is entered again.
    """
    changed: list[nn.Module] = []
    try:
        if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            changed = _pack(network)
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


@torch.no_grad()
def _pack(network: nn.Module) -> list[nn.Module]:
    changed: list[nn.Module] = []
    packed: dict[nn.Module, Callable[..., Tensor]] = {}
    for module in network.modules():
        if type(module) is nn.Linear and _is_packable(module):
            packed[module] = _packed(module)
            vars(module)["forward"] = packed[module]
            changed.append(module)
    for module in network.modules():
        if type(module) is GeluMlp and module.fc1 in packed and "forward" not in vars(module):
            vars(module)["forward"] = _gelu_mlp(module, packed[module.fc1])
            changed.append(module)
    return changed


def _is_packable(linear: nn.Linear) -> bool:
    weight = linear.weight
    if linear._forward_hooks or linear._forward_pre_hooks or "forward" in vars(linear):
        return False  # the fused GELU would pass a hook by
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def _packed(linear: nn.Linear) -> Callable[..., Tensor]:
    weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), None)
    bias = None if linear.bias is None else linear.bias.detach()

    def forward(x: Tensor, activation: str = "none", kind: str = "") -> Tensor:
        if torch.is_grad_enabled() and (x.requires_grad or linear.weight.requires_grad):
            raise RuntimeError("a network that is packed for drawing has no gradients; draw under torch.no_grad()")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], kind)

    return forward


def _gelu_mlp(mlp: GeluMlp, fc1: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: mlp.fc2(fc1(x, "gelu", "tanh"))

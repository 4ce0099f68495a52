"""A dense network cut into segments of different token density, with its weights (SparseDiT, arXiv 2412.06028).

The i-th block in execution order takes the i-th dense block whole. Of its attention a pooling block keeps the values,
generation and recovery keep all three parts under other names; merging starts as the dense tokens alone. So every
tensor is a copy, a slice, or a constant, and fine-tuning starts near the dense network.
"""

from typing import TypeVar

import torch
from diffusers import ModelMixin
from torch import Tensor

from mezzotint.dit.blocks import ModulatedBlock
from mezzotint.dit.segment_layout import Role, SegmentLayout, roles_of

Network = TypeVar("Network", bound=ModelMixin)


def recut(dense: Network, layout: SegmentLayout, sparse_share: float = 0.0) -> Network:
    """The network in segments, of the same class, with copies of the weights, their dtype and device.

    dense: any network with `segments` among its settings, which must be None. layout: must add up to its depth (for
    space-time networks in pairs of blocks). sparse_share: of the sparse tokens in what recovery starts from; the rest
    is the dense tokens. 0 is the published start; at a half what the sparse blocks do is not lost at first. Raises
    ValueError where the layout or the share does not fit.
    """
    if "segments" not in dense.config:
        raise ValueError(f"the network is a {type(dense).__name__}, which has no segments; it cannot be cut.")
    if dense.config.segments is not None:
        raise ValueError(f"the network has segments {dense.config.segments!r}; only a dense one can be cut.")
    roles_of(str(layout), len(dense.blocks))
    if not 0 <= sparse_share <= 1:
        raise ValueError(f"sparse_share is {sparse_share}; it must be from 0 to 1.")
    settings = {name: value for name, value in dense.config.items() if not name.startswith("_")}
    with torch.device("meta"):
        cut = type(dense)(**settings | {"segments": str(layout)})
    state = {name: kept for name, kept in dense.state_dict().items() if not name.startswith("blocks.")}
    parts = dict(cut.named_modules())
    for place, block in dense.named_modules():
        if isinstance(block, ModulatedBlock):
            state |= {f"{place}.{name}": kept for name, kept in _block(block, parts[place].role, sparse_share).items()}
    cut.load_state_dict({name: kept.clone() for name, kept in state.items()}, assign=True)
    return cut.train(dense.training)


def _block(block: ModulatedBlock, role: Role, sparse_share: float) -> dict[str, Tensor]:
    """The tensors of a block in its new role."""
    kept = dict(part for name, tensor in block.state_dict().items() for part in slices(name, tensor, role))
    if role == "recovery":
        zeros = torch.zeros_like(block.attn.proj.bias)
        for name, diagonal in (("from_sparse", zeros + sparse_share), ("from_dense", zeros + (1 - sparse_share))):
            kept |= {f"merge.{name}.weight": diagonal.diag(), f"merge.{name}.bias": zeros}
    return kept


def slices(name: str, tensor: Tensor, role: Role) -> list[tuple[str, Tensor]]:
    """What becomes of one tensor of a dense block: new names with the rows that they keep."""
    owner, _, part = name.rpartition(".")
    third = len(tensor) // 3 if tensor.ndim else 0
    if owner == "attn.qkv" and role == "pool":
        return [(f"attn.v.{part}", tensor[2 * third :])]
    if owner == "attn.qkv" and role in ("generation", "recovery"):
        return [(f"attn.q.{part}", tensor[:third]), (f"attn.kv.{part}", tensor[third:])]
    if owner in ("attn.q_norm", "attn.k_norm") and role == "pool":
        return []  # there is nothing left to compare
    return [(name, tensor)]


"""Attention over kept blocks and fused operations of a diffusion transformer, on CPU and GPU."""

from mezzotint.kernels.block_sparse import block_sparse_attention
from mezzotint.kernels.expert_dispatch import gather_tokens, grouped_linear, scatter_add
from mezzotint.kernels.expert_mlp import expert_mlp
from mezzotint.kernels.expert_routing import ExpertRouting, expert_choice, token_choice
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_cache import LayoutCache
from mezzotint.kernels.merging import merge_attention
from mezzotint.kernels.modulation import norm_modulate
from mezzotint.kernels.pooling import pool_blocks

__all__ = [
    "BlockLayout",
    "ExpertRouting",
    "LayoutCache",
    "block_sparse_attention",
    "expert_choice",
    "expert_mlp",
    "gather_tokens",
    "grouped_linear",
    "merge_attention",
    "norm_modulate",
    "pool_blocks",
    "scatter_add",
    "token_choice",
]

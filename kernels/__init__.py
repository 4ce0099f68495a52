"""Attention over kept blocks and fused operations of a diffusion transformer, on CPU and GPU."""

from mezzotint.kernels.block_sparse import block_sparse_attention
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.merging import merge_attention
from mezzotint.kernels.pooling import pool_blocks

__all__ = ["BlockLayout", "block_sparse_attention", "merge_attention", "pool_blocks"]

"""Static policies: which tokens see which, decided by place alone and never by content.

A policy is a function that returns a BlockLayout. Those on a grid order tokens by tiles (tile_order), so that a block
is a compact piece of the picture; layout.arrange and layout.restore move tokens there and back. Policies combine:
`union`, `intersect` and `per_head` take any of them, and `global_tokens`, `sinks` and `text_first` extend one.
All but `causal` keep whole blocks: where a rule names tokens, their blocks' other tokens come along. What extends a
layout adds to its pairs, so that its partly masked blocks stay exact.

Shape suffixes: P tiles or blocks, H heads.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mezzotint.kernels.arguments import check_kind, check_whole
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_algebra import full_like, intersect, per_head, split_blocks, union, with_map, with_mask
from mezzotint.kernels.layout_masks import ABSENT, WHOLE, lists_from_map, pack_bits
from mezzotint.kernels.tile_order import sides_of, tile_order
from mezzotint.kernels.token_positions import positions_of

__all__ = [
    "causal",
    "diagonal",
    "full",
    "full_like",
    "global_tokens",
    "intersect",
    "local_1d",
    "local_2d",
    "local_3d",
    "per_head",
    "radial",
    "sinks",
    "split_blocks",
    "strided_shards",
    "text_first",
    "union",
]

Device = torch.device | str | None


def full(grid: tuple[int, ...], tile: tuple[int, ...], *, device: Device = None) -> BlockLayout:
    """Every token sees every token, in the tile order of `grid`, so that it combines with the windows below."""
    order = tile_order(grid, tile, device)
    tiles = len(order.coords)
    return order.layout(torch.ones((tiles, tiles), dtype=torch.bool, device=order.coords.device))


def causal(num_tokens: int, *, block: int = 64, device: Device = None) -> BlockLayout:
    """Each token of a sequence sees itself and those before it, to the token: the diagonal's blocks share one mask.

    Raises ValueError for a number of tokens below 1 or a block that is no block size.
    """
    layout = BlockLayout.full(block_q=block, block_k=block, num_q=num_tokens, num_k=num_tokens, device=device)
    count = layout.num_q_blocks
    blocks = torch.full((count, count), ABSENT, dtype=torch.int32, device=layout.device)
    places = torch.arange(count, device=layout.device)
    blocks[places[:, None] > places] = WHOLE
    blocks[places, places] = 0
    triangle = pack_bits(torch.ones((1, block, block), dtype=torch.bool, device=layout.device).tril())
    return with_map(layout, (blocks[None, None], triangle))


def local_1d(num_tokens: int, window: int, *, block: int = 64, device: Device = None) -> BlockLayout:
    """A window along a sequence, of `window` tokens rounded up to whole blocks; see `local_2d`."""
    return _local((num_tokens,), (window,), (block,), device)


def local_2d(
    grid: tuple[int, int], window: tuple[int, int], *, tile: tuple[int, int] = (8, 8), device: Device = None
) -> BlockLayout:
    """Each tile of an image sees a window of tiles around it.

    The window is clamped: near the border it is pushed inwards and keeps its size, so every token sees as many tiles.
    With an even number of tiles it reaches one further back than forth.

    Args:
        grid: (rows, columns) of tokens.
        window: (rows, columns) of tokens, each rounded up to whole tiles; at or above the grid's it is the whole axis.
        tile: (rows, columns) of tokens of one block; 16, 32, 64 or 128 in all.

    Raises:
        ValueError: a grid, tile or window that is not as above.
    """
    return _local(grid, window, tile, device)


def local_3d(
    grid: tuple[int, int, int],
    window: tuple[int, int, int],
    *,
    tile: tuple[int, int, int] = (4, 4, 4),
    device: Device = None,
) -> BlockLayout:
    """Each tile of a video sees a window around it; (frames, rows, columns) of tokens, otherwise as `local_2d`.

    The shape of Sliding Tile Attention (arXiv 2502.04507): no block is partly masked.
    """
    return _local(grid, window, tile, device)


def _local(grid: tuple[int, ...], window: tuple[int, ...], tile: tuple[int, ...], device: Device) -> BlockLayout:
    order = tile_order(grid, tile, device)
    window = sides_of("window", window, len(order.grid))
    tiles = len(order.coords)
    mask = torch.ones((tiles, tiles), dtype=torch.bool, device=order.coords.device)
    for axis, count in enumerate(order.num_tiles):
        size = min(count, -(-window[axis] // order.tile[axis]))
        place = order.coords[:, axis]
        start = (place - size // 2).clamp(0, count - size)[:, None]
        mask &= (place >= start) & (place < start + size)
    return order.layout(mask)


def radial(
    grid: tuple[int, int, int],
    *,
    tile: tuple[int, int, int] = (1, 8, 8),
    first_frame: bool = True,
    device: Device = None,
) -> BlockLayout:
    """Radial attention for video: what a token sees of another frame shrinks with the distance in time.

    Let d be the distance of two frames and f the power of two at or below d (1 for d = 0). The spatial window has 1/f
    of the frame's area; when f exceeds the tiles of a frame, only the tile at the same place is seen, and only in
    every ceil(f / tiles)-th frame. So the cost grows as N log N. Follows Li and others, "Radial Attention" (arXiv
    2506.19852), but for the window's shape: theirs is a band |k - l| < S / f along the raster, ours narrows
    rows and columns each by sqrt(f). Frames are counted in tiles where a tile holds several.

    Args:
        grid: (frames, rows, columns) of tokens.
        tile: (frames, rows, columns) of tokens of one block.
        first_frame: every token also sees the whole first frame (the paper's attention sink).

    Raises:
        ValueError: a grid or tile that is not as above.
    """
    order = tile_order(grid, tile, device)
    if len(order.grid) != 3:
        raise ValueError(f"grid is {order.grid}; expected (frames, rows, columns)")
    _, rows, columns = order.num_tiles
    frame_gap, row_gap, column_gap = (
        (place[:, None] - place).abs() for place in (order.coords[:, axis] for axis in range(3))
    )
    narrowing = _power_of_two_below(frame_gap)
    # (gap + 1) * sqrt(f) <= size, squared: integers only, so the same on every device.
    near = ((row_gap + 1) ** 2 * narrowing <= rows**2) & ((column_gap + 1) ** 2 * narrowing <= columns**2)
    every = (narrowing + rows * columns - 1) // (rows * columns)
    same_place = (row_gap == 0) & (column_gap == 0) & (frame_gap % every == 0)
    mask = near | same_place
    if first_frame:
        mask |= order.coords[:, 0] == 0
    return order.layout(mask)


def strided_shards(local: BlockLayout, *, heads: int, stride: int) -> BlockLayout:
    """Each head sees one shard of the key blocks, and what `local` keeps.

    Head h's shard is every block j with j % stride == h % stride. With heads >= stride the heads together see
    everything. After S2-Attention (arXiv 2407.17678): sharding by head, without its causal mask.

    Args:
        local: what every head sees besides, e.g. a window or `diagonal`; one set of lists, or one a head.
        heads: query heads.
        stride: number of shards.

    Raises:
        ValueError: heads or stride below 1, or `local` has another number of heads.
    """
    check_kind("local", local, BlockLayout)
    check_whole("heads", heads, 1)
    check_whole("stride", stride, 1)
    if local.kv_num.shape[1] not in (1, heads):
        raise ValueError(f"local has {local.kv_num.shape[1]} heads; expected 1 or {heads}, heads")
    head = torch.arange(heads, device=local.device)[:, None, None]
    block = torch.arange(local.num_k_blocks, device=local.device)
    shards = (block % stride == head % stride)[None].expand(1, heads, local.num_q_blocks, -1)
    return union(local, with_mask(local, shards))


def diagonal(layout: BlockLayout) -> BlockLayout:
    """Each block of queries sees the blocks of keys at its own positions, over the tokens of `layout`.

    Raises ValueError where there are more tokens of one kind than of the other.
    """
    _check_self(layout, "a diagonal")
    rows = torch.arange(layout.num_q_blocks, device=layout.device)[:, None] * layout.block_q
    columns = torch.arange(layout.num_k_blocks, device=layout.device) * layout.block_k
    overlap = (rows < columns + layout.block_k) & (columns < rows + layout.block_q)
    return with_mask(layout, overlap[None, None])


def sinks(layout: BlockLayout, tokens: Sequence[int] | Tensor) -> BlockLayout:
    """`layout`, and every token sees the blocks that hold these tokens (indices in the caller's order).

    Raises ValueError for an index that is no token.
    """
    check_kind("layout", layout, BlockLayout)
    mask = torch.zeros((1, 1, layout.num_q_blocks, layout.num_k_blocks), dtype=torch.bool, device=layout.device)
    mask[..., positions_of(layout, tokens) // layout.block_k] = True
    return union(layout, with_mask(layout, mask))


def global_tokens(layout: BlockLayout, tokens: Sequence[int] | Tensor) -> BlockLayout:
    """`layout`, and the blocks that hold these tokens see all and are seen by all (indices in the caller's order).

    Raises ValueError for an index that is no token, and where queries and keys are not the same tokens.
    """
    _check_self(layout, "a global token")
    positions = positions_of(layout, tokens)
    mask = torch.zeros((1, 1, layout.num_q_blocks, layout.num_k_blocks), dtype=torch.bool, device=layout.device)
    mask[..., positions // layout.block_k] = True
    mask[..., positions // layout.block_q, :] = True
    return union(layout, with_mask(layout, mask))


def text_first(layout: BlockLayout, num_text: int) -> BlockLayout:
    """A layout of the joint sequence [text; image]: text sees all and is seen by all, the image as in `layout`.

    The text is padded to whole blocks of its own; perm and inv_perm then speak of the joint sequence, in which the
    caller's text tokens come first, in their order.

    Args:
        layout: of the image or video tokens.
        num_text: text tokens, padding that the model attends to included.

    Raises:
        ValueError: num_text below 1, or queries and keys of `layout` are not the same tokens.
    """
    _check_self(layout, "a joint sequence")
    check_whole("num_text", num_text, 1)
    largest = max(layout.block_q, layout.block_k)
    padded = -(-num_text // largest) * largest
    q_len, k_len = (
        torch.cat([_text_lengths(num_text, padded, block, layout.device), lengths])
        for block, lengths in ((layout.block_q, layout.q_lengths()), (layout.block_k, layout.k_lengths()))
    )
    image = layout.block_map()
    blocks = image.new_full((*image.shape[:2], len(q_len), len(k_len)), WHOLE)
    blocks[..., padded // layout.block_q :, padded // layout.block_k :] = image
    blocks = torch.where((q_len > 0)[:, None] & (k_len > 0), blocks, ABSENT)
    lists: dict[str, Any] = lists_from_map((blocks, layout.mask_bits))
    perm, inv_perm = _joint_order(layout, num_text, padded)
    total = padded + layout.num_q
    return BlockLayout(
        block_q=layout.block_q,
        block_k=layout.block_k,
        num_q=total,
        num_k=total,
        **lists,
        q_len=q_len,
        k_len=k_len,
        perm=perm,
        inv_perm=inv_perm,
        validate=False,
    )


def _joint_order(layout: BlockLayout, num_text: int, padded: int) -> tuple[Tensor, Tensor]:
    device = layout.device
    plain = torch.arange(layout.num_q, device=device)
    perm = plain if layout.perm is None else layout.perm
    inv_perm = plain if layout.inv_perm is None else layout.inv_perm
    text = torch.arange(padded, device=device)
    return (
        torch.cat([text.clamp(max=num_text - 1), num_text + perm]),
        torch.cat([text[:num_text], padded + inv_perm]),
    )


def _text_lengths(num_text: int, padded: int, block: int, device: torch.device) -> Tensor:
    starts = torch.arange(0, padded, block, dtype=torch.int32, device=device)
    return (num_text - starts).clamp(0, block)


def _power_of_two_below(distance: Tensor) -> Tensor:
    """The largest power of two at or below each distance, 1 for 0; in integers."""
    powers = 2 ** torch.arange(max(1, int(distance.max()).bit_length()), device=distance.device)
    return powers[torch.bucketize(distance.clamp(min=1), powers, right=True) - 1]


def _check_self(layout: BlockLayout, purpose: str) -> None:
    check_kind("layout", layout, BlockLayout)
    if layout.num_q != layout.num_k:
        raise ValueError(f"layout has {layout.num_q} queries and {layout.num_k} keys; expected as many for {purpose}")

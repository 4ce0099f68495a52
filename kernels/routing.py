"""Layouts chosen at run time, from the content: which blocks of keys matter to each block of queries.

Queries and keys are pooled by blocks, the pooled products are the scores, and the best blocks of each row are kept, by
count or by their share of the softmax. Nothing here has a gradient: choosing is no smooth function.

Shape suffixes: B batch, H query heads, G key heads, N tokens, D head channels, NQ and NK blocks of queries and keys,
Bx and Hx batch and heads or 1, R regions.
"""

import torch
from torch import Tensor

from mezzotint.kernels.arguments import check_device, check_finite, check_floating, check_kind, check_whole
from mezzotint.kernels.layout import BlockLayout
from mezzotint.kernels.layout_algebra import check_same_tokens, select_blocks, union, with_mask
from mezzotint.kernels.layout_cache import LayoutCache
from mezzotint.kernels.pooling import pool_blocks

__all__ = ["LayoutCache", "block_scores", "pool_blocks", "share_heads", "top_blocks", "top_mass", "top_regions"]


@torch.no_grad()
def block_scores(q: Tensor, k: Tensor, candidates: BlockLayout, *, scale: float | None = None) -> Tensor:
    """Scaled products of pooled queries and pooled keys, float32 (float64 for float64 input) [B, H, NQ, NK].

    Args:
        q: [B, H, N, D] and k: [B, G, M, D], in the order of the layout; G divides H.
        candidates: gives the blocks; only its tokens matter here, its lists do in `top_blocks` and `top_mass`.
        scale: of the products; None is D ** -0.5.

    Raises:
        ValueError: q or k does not have the layout's tokens, or is no fit for the other.
    """
    _check_pooled(q, k, candidates)
    if scale is not None:
        check_finite("scale", scale)
    pooled_q = pool_blocks(q, candidates.block_q, candidates.q_lengths())
    pooled_k = pool_blocks(k, candidates.block_k, candidates.k_lengths())
    return _products(pooled_q, pooled_k, scale)


@torch.no_grad()
def share_heads(scores: Tensor, groups: int) -> Tensor:
    """Let query heads agree on one choice: the mean of the scores in each of `groups` groups of consecutive heads.

    scores [B, H, NQ, NK] -> [B, 1, NQ, NK] for one group, else [B, H, NQ, NK] with equal scores within a group. As
    many groups as key heads lets all readers of one key head share its blocks. Raises ValueError where groups does not
    divide H.
    """
    check_floating("scores", scores, 4, "[batch, heads, blocks, blocks]")
    heads = scores.shape[1]
    check_whole("groups", groups, 1)
    if heads % groups:
        raise ValueError(f"groups is {groups}; expected a divisor of the {heads} heads")
    mean = scores.unflatten(1, (groups, heads // groups)).mean(2)
    return mean if groups == 1 else mean.repeat_interleave(heads // groups, dim=1)


@torch.no_grad()
def top_blocks(
    scores: Tensor, candidates: BlockLayout, count: int, *, always: BlockLayout | None = None
) -> BlockLayout:
    """Keep the `count` best-scored candidates of each block of queries.

    Ties go to the earlier block. Reads nothing back from the device.

    Args:
        scores: [Bx, Hx, NQ, NK], from `block_scores`.
        candidates: the blocks to choose from, and the tokens; `policies.full` or a wide window, say.
        count: blocks a row, at least 1. A row with fewer candidates keeps them all.
        always: blocks that are kept in any case (`policies.diagonal` with `policies.sinks`, say). They use up the
            count first, so it stays the cost of a row; a row with more of them than `count` keeps all of them.

    Raises:
        ValueError: count below 1, scores of another shape, or `always` over other tokens.
    """
    check_whole("count", count, 1, "a number of blocks")
    allowed, kept = _choices(scores, candidates, always)
    order = _ranking(scores, allowed, kept)[..., :count]
    chosen = torch.zeros_like(allowed).scatter_(-1, order, True) & allowed
    longest = count if always is None else max(count, always.kv_idx.shape[-1])
    return _keep(candidates, always, chosen, kept, min(longest, candidates.num_k_blocks))


@torch.no_grad()
def top_mass(
    scores: Tensor,
    candidates: BlockLayout,
    mass: float,
    *,
    always: BlockLayout | None = None,
    max_count: int | None = None,
) -> BlockLayout:
    """Keep the fewest candidates of each row whose softmax mass reaches `mass`: rows differ in number.

    The softmax is over the row's candidates and weighs each block by its valid tokens, as if all had the pooled key.

    Args:
        scores, candidates: as in `top_blocks`.
        mass: above 0, at most 1; 1 keeps every candidate.
        always: blocks that are kept in any case; their mass counts first.
        max_count: keep no more than this many of a row (but all of `always`); None is no limit.

    Raises:
        ValueError: mass or max_count out of range, scores of another shape, or `always` over other tokens.
    """
    check_finite("mass", mass)
    if not 0 < mass <= 1:
        raise ValueError(f"mass is {mass}; expected above 0 and at most 1")
    if max_count is not None:
        check_whole("max_count", max_count, 1, "a number of blocks, or None")
    allowed, kept = _choices(scores, candidates, always)
    weighed = (scores + candidates.k_lengths().to(scores.dtype).log()).masked_fill(~allowed, -torch.inf)
    # A row without candidates has no softmax (NaN); what is chosen of it is masked by `allowed` below.
    share = weighed.softmax(-1).masked_fill(~allowed, 0.0)
    order = _ranking(share, allowed, kept)
    sorted_share = share.gather(-1, order)
    # A block is needed while the mass of those before it has not got there; so the first one always is.
    needed = sorted_share.cumsum(-1) - sorted_share < mass if mass < 1 else torch.ones_like(allowed)
    if max_count is not None:
        needed[..., max_count:] = False
    chosen = torch.zeros_like(allowed).scatter_(-1, order, needed) & allowed
    return _keep(candidates, always, chosen, kept)


@torch.no_grad()
def top_regions(
    q: Tensor,
    k: Tensor,
    candidates: BlockLayout,
    regions: Tensor,
    count: int,
    *,
    groups: int = 1,
    always: BlockLayout | None = None,
) -> BlockLayout:
    """BiFormer's region routing: each region of the grid sees the whole of its `count` closest regions.

    Queries and keys are pooled by region, and the products of the pooled rank the regions (Zhu and others, "BiFormer",
    arXiv 2303.08810, equations 3 to 5), on any grid: `TileOrder.regions` numbers the regions of an image or a video.
    As there, all heads share one choice, unless `groups` says otherwise.

    Args:
        q: [B, H, N, D] and k: [B, G, N, D], in the order of the layout; G divides H.
        candidates: the tokens, and the blocks that may be seen at all; blocks of queries and keys equal.
        regions: int64 [NQ], the region of each block.
        count: regions to keep, at least 1; a region's own counts if it ranks among them.
        groups: groups of heads that choose for themselves; a divisor of H.
        always: blocks that are kept besides.

    Raises:
        ValueError: shapes that do not fit, count below 1, regions that are negative, or `always` over other tokens.
    """
    _check_pooled(q, k, candidates)
    total = _count_regions(candidates, regions, count)
    regions = regions.to(candidates.device)
    pooled_q, pooled_k = (
        _pool_regions(pool_blocks(x, block, lengths), lengths, regions, total)
        for x, block, lengths in (
            (q, candidates.block_q, candidates.q_lengths()),
            (k, candidates.block_k, candidates.k_lengths()),
        )
    )
    scores = share_heads(_products(pooled_q, pooled_k, 1.0), groups)
    _check_axes("candidates", candidates, scores)
    with_tokens = torch.zeros(total, dtype=torch.bool, device=regions.device)
    with_tokens[regions[candidates.k_lengths() > 0]] = True
    best = scores.masked_fill(~with_tokens, -torch.inf).sort(dim=-1, descending=True, stable=True).indices[..., :count]
    near = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, best, True)
    chosen = near[..., regions[:, None], regions] & candidates.to_dense()
    if always is None:
        return select_blocks(candidates, chosen)
    check_same_tokens([candidates, always], ["candidates", "always"])
    _check_axes("always", always, scores)
    return _keep(candidates, always, chosen, always.to_dense())


def _check_pooled(q: Tensor, k: Tensor, candidates: BlockLayout) -> None:
    """Refuse queries and keys that are not the layout's tokens, or do not fit each other."""
    check_kind("candidates", candidates, BlockLayout)
    for name, x, tokens in (("q", q, candidates.num_q), ("k", k, candidates.num_k)):
        check_floating(name, x, 4, f"[batch, heads, {tokens}, channels]")
        if x.shape[2] != tokens:
            raise ValueError(f"{name} has shape {list(x.shape)}; expected [batch, heads, {tokens}, channels]")
        check_device(name, x, candidates.device, "the layout")
    (batch, heads, _, channels), key_heads = q.shape, k.shape[1]
    if k.shape[0] != batch or k.shape[3] != channels or k.dtype != q.dtype:
        expected = f"batch {batch} and {channels} channels of {q.dtype}, as q has"
        raise ValueError(f"k has shape {list(k.shape)}, of {k.dtype}; expected {expected}")
    if key_heads == 0 or heads % key_heads:
        raise ValueError(f"k has {key_heads} heads; expected a divisor of q's {heads}")


def _count_regions(candidates: BlockLayout, regions: Tensor, count: int) -> int:
    check_whole("count", count, 1, "a number of regions")
    check_kind("regions", regions, Tensor)
    blocks = candidates.num_q_blocks
    if candidates.num_k_blocks != blocks:
        raise ValueError(f"candidates has {blocks} x {candidates.num_k_blocks} blocks; expected as many of each")
    if regions.dtype != torch.int64 or regions.shape != (blocks,):
        raise ValueError(f"regions is {regions.dtype} {list(regions.shape)}; expected int64 [{blocks}], one a block")
    lowest, highest = (int(value) for value in regions.aminmax())
    if lowest < 0:
        raise ValueError(f"regions holds {lowest}; expected 0 or above")
    return highest + 1


def _products(pooled_q: Tensor, pooled_k: Tensor, scale: float | None) -> Tensor:
    pooled_k = pooled_k.repeat_interleave(pooled_q.shape[1] // pooled_k.shape[1], dim=1)
    return pooled_q @ pooled_k.transpose(-1, -2) * (pooled_q.shape[-1] ** -0.5 if scale is None else scale)


def _pool_regions(means: Tensor, lengths: Tensor, regions: Tensor, total: int) -> Tensor:
    """Means of blocks [B, H, NB, D] -> means of regions [B, H, R, D], each block weighed by its valid tokens.

    A product with a small matrix, and no index_add: that has no fixed order on a GPU, and near ties could turn.
    """
    tokens = torch.zeros((total, len(regions)), dtype=means.dtype, device=means.device)
    tokens[regions, torch.arange(len(regions), device=means.device)] = lengths.to(means.dtype)
    return tokens @ means / tokens.sum(-1, keepdim=True).clamp(min=1)


def _choices(scores: Tensor, candidates: BlockLayout, always: BlockLayout | None) -> tuple[Tensor, Tensor]:
    """(candidates with a valid token, blocks kept in any case), both bool, the first of the scores' full shape."""
    check_kind("candidates", candidates, BlockLayout)
    shape = (candidates.num_q_blocks, candidates.num_k_blocks)
    check_floating("scores", scores, 4, f"[batch, heads, {shape[0]}, {shape[1]}]")
    check_device("scores", scores, candidates.device, "the layout")
    if scores.shape[-2:] != shape:
        raise ValueError(f"scores has shape {list(scores.shape)}; expected [batch, heads, {shape[0]}, {shape[1]}]")
    _check_axes("candidates", candidates, scores)
    allowed = (candidates.to_dense() & (candidates.k_lengths() > 0)).expand(scores.shape)
    if always is None:
        return allowed, torch.zeros_like(allowed)
    check_same_tokens([candidates, always], ["candidates", "always"])
    _check_axes("always", always, scores)
    return allowed, always.to_dense() & (candidates.k_lengths() > 0)


def _keep(
    candidates: BlockLayout, always: BlockLayout | None, chosen: Tensor, kept: Tensor, width: int | None = None
) -> BlockLayout:
    """The chosen blocks as `candidates` has them, and the kept ones as `always` has them."""
    if candidates.mask_bits is None and (always is None or always.mask_bits is None):
        return with_mask(candidates, chosen | kept, width)
    selected = select_blocks(candidates, chosen)
    return selected if always is None else union(selected, always)


def _check_axes(name: str, layout: BlockLayout, scores: Tensor) -> None:
    for axis, what in enumerate(("batch", "heads")):
        own, got = layout.kv_num.shape[axis], scores.shape[axis]
        if own not in (1, got):
            raise ValueError(f"{name} has a {what} size of {own}; expected 1 or {got}, as the scores have")


def _ranking(scores: Tensor, allowed: Tensor, kept: Tensor) -> Tensor:
    """Indices of the blocks of each row: the kept first, then the allowed by falling score, then the rest."""
    ranked = scores.masked_fill(~allowed, -torch.inf).masked_fill(kept, torch.inf)
    return ranked.sort(dim=-1, descending=True, stable=True).indices

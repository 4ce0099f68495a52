"""Segments, patch-mixer with dropped tokens, experts and block-sparse attention in one network, against plain torch:
tokens row by row, dense masks, experts and cells in loops, in fp64."""

import os
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from math import ceil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.dit import sparse_attention
from mezzotint.dit.attention import CrossAttention, MeanAttention, SelfAttention
from mezzotint.dit.blocks import Block
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.density import Grid, cell_bounds
from mezzotint.dit.experts import Experts
from mezzotint.dit.layers import patchify, sinusoid, unpatchify
from mezzotint.dit.model import DiT
from mezzotint.dit.positions import apply_rope, rope_table
from mezzotint.kernels.block_sparse import last_backend

TEXT = 5
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CONFIG = DiTConfig(
    sample_size=32, patch_size=4, patch_bottleneck=12, hidden_size=32, num_layers=7, num_heads=2, text_size=24,
    max_text_tokens=TEXT, segments="1 + 1x[1,2,1,1] + 1", mixer_layers=2, num_experts=3, expert_capacity=1.5,
    attention="window", attention_tile=4, attention_window=8,
)
Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter attention runs on the Triton kernels."""
    if INTERPRETED:
        attend = partial(sparse_attention.block_sparse_attention, backend="triton")
        monkeypatch.setattr(sparse_attention, "block_sparse_attention", attend)


def grown(config: DiTConfig) -> DiT:
    torch.manual_seed(0)
    network = DiT(**asdict(config)).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return network


def inputs(grid: Grid) -> Inputs:
    torch.manual_seed(1)
    text = torch.randn(2, TEXT, 24, dtype=torch.float64)
    mask = torch.arange(TEXT).expand(2, -1) < torch.tensor([[3], [5]])
    x = torch.randn(2, 3, 4 * grid[0], 4 * grid[1], dtype=torch.float64)
    return x, torch.tensor([0.3, 0.8], dtype=torch.float64), text, text.mean(1), mask


def drawn(grid: Grid, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(grid[0] * grid[1], generator=generator)[:count] for _ in range(2)])


# The reference. A "side" is what self-attention on one set of tokens needs: their rotary table, and their tiles.


class Side:
    """tiles: of each image token [B or 1, tokens], its (row, column) of tiles in one number, and how many there are."""

    def __init__(self, network: DiT, full: Grid, cells: Grid, text: int, keep: Tensor | None = None) -> None:
        shape = network.shape
        self.shape, self.text = shape, text
        tables = rope_table(full, shape.head_dim, shape.rope_theta, text, cells=cells)
        self.per_side = [ceil(side / shape.attention_tile) for side in cells]
        row, column = torch.meshgrid(torch.arange(cells[0]), torch.arange(cells[1]), indexing="ij")
        tile = (row // shape.attention_tile * self.per_side[1] + column // shape.attention_tile).flatten()
        self.keep = torch.arange(len(tile))[None] if keep is None else keep
        self.tiles = tile[self.keep]
        places = torch.cat([torch.arange(text).expand(len(self.keep), -1), text + self.keep], dim=1)
        self.rope = tuple(table.double()[places][:, None] for table in tables)

    def mask(self, q: Tensor, k: Tensor) -> Tensor:
        """bool [B, H or 1, tokens, tokens]; text sees all and is seen by all."""
        image = {"full": self._all, "window": self._window, "routed": self._routed}[self.shape.attention](q, k)
        mask = torch.ones(*image.shape[:2], self.text + image.shape[2], self.text + image.shape[3], dtype=torch.bool)
        mask[..., self.text :, self.text :] = image
        return mask

    def _all(self, q: Tensor, k: Tensor) -> Tensor:
        return torch.ones(1, 1, self.tiles.shape[1], self.tiles.shape[1], dtype=torch.bool)

    def _window(self, q: Tensor, k: Tensor) -> Tensor:
        size = ceil(self.shape.attention_window / self.shape.attention_tile)

        def sees(one: int, other: int, count: int) -> bool:
            start = min(max(one - min(size, count) // 2, 0), count - min(size, count))
            return start <= other < start + min(size, count)

        rows, columns = self.per_side
        tiles = rows * columns
        table = torch.tensor([
            [sees(a // columns, b // columns, rows) and sees(a % columns, b % columns, columns) for b in range(tiles)]
            for a in range(tiles)
        ])
        return table[self.tiles[:, :, None], self.tiles[:, None, :]][:, None]

    def _routed(self, q: Tensor, k: Tensor) -> Tensor:
        """Every block of image tokens sees its own and those whose mean key fits its mean query best."""
        size = self.shape.attention_tile**2
        blocks = self._blocks(size).expand(len(q), -1)
        text_blocks = ceil(self.text / size)
        count = int(blocks.max()) + 1
        kept = max(1, ceil(self.shape.attention_keep * (count + text_blocks)))
        own = torch.ones(len(q), q.shape[1], blocks.shape[1], blocks.shape[1], dtype=torch.bool)
        for b in range(len(q)):
            member = F.one_hot(blocks[b], count).double()
            mean_q, mean_k = (member.T @ x[b, :, self.text :] / member.sum(0)[:, None] for x in (q, k))
            for head, scores in enumerate(mean_q @ mean_k.mT):
                for block in range(count):
                    others = [i for i in scores[block].argsort(descending=True).tolist() if i != block]
                    seen = {block, *others[: max(0, kept - text_blocks - 1)]}
                    columns = torch.tensor([int(i) in seen for i in blocks[b]])
                    own[b, head, blocks[b] == block] = columns
        return own

    def _blocks(self, size: int) -> Tensor:
        """Tiles, or as many consecutive kept tokens in the order of tiles (and row by row in a tile)."""
        if self.keep.shape[1] == self.tiles.shape[1] and len(self.keep) == 1:
            return self.tiles
        rank = (self.tiles * 10_000 + self.keep).argsort(dim=1).argsort(dim=1)
        return rank // size


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def heads(x: Tensor, parts: int, count: int) -> list[Tensor]:
    return [part.unflatten(2, (count, -1)).transpose(1, 2) for part in x.chunk(parts, dim=2)]


def experts_by_hand(experts: Experts, x: Tensor) -> Tensor:
    shares = (x @ experts.gate.weight.T).softmax(-1)
    count = max(1, int(experts.capacity * x.shape[1] / len(experts.w1)))
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for e in range(len(experts.w1)):
            chosen = shares[b, :, e].topk(count).indices
            fed = F.gelu(x[b, chosen] @ experts.w1[e]) @ experts.w2[e] * shares[b, chosen, e, None]
            out = out + torch.zeros_like(out).index_put((torch.tensor(b), chosen), fed)
    return out


def block_by_hand(
    block: Block, x: Tensor, shared: Tensor, side: Side, other: tuple[Tensor, Side] | None, words: Any
) -> Tensor:
    shift1, scale1, gate1, shift2, scale2, gate2 = ((shared + block.table)[:, i, None] for i in range(6))

    def norm(x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=1e-6)

    given, attn = norm(x) * (1 + scale1) + shift1, block.attn
    if isinstance(attn, MeanAttention):
        mixed = attn.proj(attn.v(given).mean(1, keepdim=True))
    elif isinstance(attn, SelfAttention):
        q, k, v = heads(attn.qkv(given), 3, attn.num_heads)
        q, k = apply_rope(attn.q_norm(q), *side.rope), apply_rope(attn.k_norm(k), *side.rope)
        mixed = attn.proj(softmax_attention(q, k, v, side.mask(q, k)))
    else:
        assert isinstance(attn, CrossAttention)
        assert other is not None
        k, v = heads(attn.kv(norm(other[0]) * (1 + scale1) + shift1), 2, attn.num_heads)
        q = apply_rope(attn.q_norm(heads(attn.q(given), 1, attn.num_heads)[0]), *side.rope)
        mixed = attn.proj(softmax_attention(q, apply_rope(attn.k_norm(k), *other[1].rope), v))
    x = x + gate1 * mixed
    if block.cross is not None:
        cross, (text, mask) = block.cross, words
        k, v = heads(cross.kv(text), 2, cross.num_heads)
        q = heads(cross.q(norm(x)), 1, cross.num_heads)[0]
        x = x + cross.proj(softmax_attention(q, k, v, mask[:, None, None]))
    fed = norm(x) * (1 + scale2) + shift2
    return x + gate2 * (experts_by_hand(block.mlp, fed) if isinstance(block.mlp, Experts) else block.mlp(fed))


def pool_by_hand(image: Tensor, keep: Tensor, full: Grid, cells: Grid) -> Tensor:
    pictures = []
    for tokens, kept in zip(image, keep.expand(len(image), -1), strict=True):
        pooled = []
        for top, bottom in cell_bounds(full[0], cells[0]):
            for left, right in cell_bounds(full[1], cells[1]):
                row, column = kept // full[1], kept % full[1]
                inside = (row >= top) & (row < bottom) & (column >= left) & (column < right)
                pooled.append(tokens[inside].mean(0) if inside.any() else tokens.mean(0))
        pictures.append(torch.stack(pooled))
    return torch.stack(pictures)


def only_kept(seq: Tensor, keep: Tensor, text: int) -> Tensor:
    return torch.stack([torch.cat([s[:text], s[text:][k]]) for s, k in zip(seq, keep, strict=True)])


def bypassed_by_hand(
    network: DiT, seq: Tensor, sides: tuple[Side, Side], keep: Tensor, bypass: tuple[int, int], around: Any
) -> Tensor:
    """sides: of all tokens, and of the kept."""
    shared, beside = around
    for index, block in enumerate(network.blocks):
        if index == bypass[0]:
            before, seq = seq, only_kept(seq, keep, sides[0].text)
        inside = bypass[0] <= index < bypass[1]
        seq = block_by_hand(block, seq, shared, sides[inside], None, beside)
        if index == bypass[1] - 1:
            rows = [torch.cat([torch.arange(sides[0].text), sides[0].text + k]) for k in keep]
            seq = torch.stack([b.index_put((r,), s) for b, r, s in zip(before, rows, seq, strict=True)])
    return seq


def segments_by_hand(network: DiT, dense: Tensor, side: Side, grids: tuple[Grid, Grid], around: Any) -> Tensor:
    """grids: full and sparse."""
    (shared, beside), (full, cells), text = around, grids, side.text
    unpooled = cells == full  # then every token stays itself, where only some are kept as well
    sparse_side = side if unpooled else Side(network, full, cells, text)
    sparse = dense
    for block, role in zip(network.blocks, network.shape.roles, strict=True):
        if role == "generation":
            image = dense[:, text:]
            pooled = image if unpooled else pool_by_hand(image, side.keep, full, cells)
            sparse = torch.cat([dense[:, :text], pooled], dim=1)
            sparse = block_by_hand(block, sparse, shared, sparse_side, (dense, side), beside)
        elif role == "sparse":
            sparse = block_by_hand(block, sparse, shared, sparse_side, None, beside)
        elif role == "recovery":
            row, column = side.keep // full[1] * cells[0] // full[0], side.keep % full[1] * cells[1] // full[1]
            nearest = (row * cells[1] + column).expand(len(sparse), -1)
            nearest = torch.arange(nearest.shape[1]).expand_as(nearest) if unpooled else nearest
            image = torch.stack([s[text:][n] for s, n in zip(sparse, nearest, strict=True)])
            merged = block.merge.from_sparse(image) + block.merge.from_dense(dense[:, text:])
            dense = torch.cat([sparse[:, :text], merged], dim=1)
            dense = block_by_hand(block, dense, shared, side, (sparse, sparse_side), beside)
        else:
            dense = block_by_hand(block, dense, shared, side, None, beside)
    return dense


def by_hand(network: DiT, given: Inputs, cells: Grid, keep: Tensor | None, bypass: tuple[int, int] | None) -> Tensor:
    """The whole pass."""
    x, t, text, pooled, text_mask = given
    p = network.shape.patch_size
    full = (x.shape[2] // p, x.shape[3] // p)
    joint = network.shape.text_conditioning == "joint"
    count = text.shape[1] if joint else 0
    tokens = network.patch_embed(patchify(x, p), network._input_scale(t))
    condition = F.silu(network.time_embed(sinusoid(t).double()) + network.pooled_embed(pooled))
    words = network.text_embed(text)
    around = (network.modulation(condition).unflatten(1, (6, -1)), (words, text_mask))
    seq = torch.cat([words, tokens], dim=1) if joint else tokens
    every = Side(network, full, full, count)
    for block in network.mixer:
        seq = block_by_hand(block, seq, around[0], every, None, around[1])
    side = every if keep is None else Side(network, full, full, count, keep)
    if keep is not None and bypass is not None:
        seq = bypassed_by_hand(network, seq, (every, side), keep, bypass, around)
        return unpatchify(network.final(seq[:, count:], condition), full, p)
    seq = seq if keep is None else only_kept(seq, keep, count)
    answer = network.final(segments_by_hand(network, seq, side, (full, cells), around)[:, count:], condition)
    if keep is not None:
        whole = torch.zeros(len(x), full[0] * full[1], answer.shape[2], dtype=answer.dtype)
        answer = torch.stack([w.index_put((k,), a) for w, k, a in zip(whole, keep, answer, strict=True)])
    return unpatchify(answer, full, p)


def results(network: nn.Module, out: Tensor) -> list[Tensor]:
    """The output, and the gradients of a sum that weighs each value differently."""
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    parameters = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad((out * weights).sum(), parameters, allow_unused=True)
    filled = (torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True))
    return [out.detach(), *filled]


def assert_equal_to_reference(
    config: DiTConfig, full: Grid, cells: Grid, kept: int | None, bypass: tuple[int, int] | None = None
) -> None:
    network, given = grown(config), inputs(full)
    keep = None if kept is None else drawn(full, kept)
    arguments: dict[str, Any] = {"keep": keep, "bypass": bypass, "grid": cells if config.segments else None}
    wanted = results(network, by_hand(network, given, cells, keep, bypass))
    if not INTERPRETED:
        for ours, theirs in zip(results(network, network(*given, **arguments)), wanted, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
    network.float()
    plain = tuple(part if part.dtype == torch.bool else part.float() for part in given)
    for ours, theirs in zip(results(network, network(*plain, **arguments)), wanted, strict=True):
        assert (ours.double() - theirs).abs().max() <= 2e-5 * theirs.abs().max() + 1e-6
    if INTERPRETED:
        assert last_backend() == "triton"


SHAPES = [((8, 8), (4, 4), 20), ((6, 10), (3, 5), 33), ((8, 8), (8, 8), 20), ((8, 8), (5, 3), None)]


@pytest.mark.parametrize(("full", "cells", "kept"), SHAPES)
@pytest.mark.parametrize("conditioning", ["joint", "cross"])
@pytest.mark.parametrize("attention", ["full", "window", "routed"])
def test_all_together_is_what_plain_torch_computes(
    attention: Any, conditioning: Any, full: Grid, cells: Grid, kept: int | None
) -> None:
    config = replace(CONFIG, attention=attention, text_conditioning=conditioning, attention_keep=0.4)
    assert_equal_to_reference(config, full, cells, kept)


@pytest.mark.parametrize("window", [4, 8])
def test_narrow_windows_on_small_tiles(window: int) -> None:
    """Three tiles by three, so that a window is cut at both ends."""
    assert_equal_to_reference(replace(CONFIG, attention_window=window), (12, 12), (9, 9), 60)


@pytest.mark.parametrize("attention", ["full", "window", "routed"])
def test_bypassing_with_experts_is_what_plain_torch_computes(attention: Any) -> None:
    config = replace(CONFIG, attention=attention, segments=None, attention_keep=0.4)
    assert_equal_to_reference(config, (6, 10), (6, 10), 33, bypass=(2, 5))


def test_cells_without_a_kept_token_take_the_mean_of_all() -> None:
    assert_equal_to_reference(CONFIG, (8, 8), (7, 7), 9)


@pytest.mark.skipif(not INTERPRETED, reason="the next test starts it")
def test_small_in_the_interpreter() -> None:
    config = replace(CONFIG, hidden_size=16, num_heads=1, num_layers=4, segments="0 + 1x[1,1,1,1] + 0", mixer_layers=1)
    assert_equal_to_reference(config, (8, 8), (4, 4), 20)


@pytest.mark.skipif(INTERPRETED, reason="this is what starts it")
@pytest.mark.slow
def test_the_triton_kernels_give_the_same() -> None:
    """A process of its own: TRITON_INTERPRET counts when Triton is imported."""
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider", "-k", "interpreter"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "1 passed" in done.stdout

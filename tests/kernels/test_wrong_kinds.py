"""What is of the wrong kind altogether is refused by name as well: None, lists, words, fractions, another device, and
lists of assignments that the reference would read in silence. Each module's own tests have the wrong values."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.kernels import (
    BlockLayout,
    ExpertRouting,
    LayoutCache,
    block_sparse_attention,
    expert_choice,
    expert_mlp,
    gather_tokens,
    grouped_linear,
    merge_attention,
    norm_modulate,
    policies,
    pool_blocks,
    routing,
    scatter_add,
    token_choice,
)
from mezzotint.kernels.tile_order import tile_order

SIZES: dict[str, Any] = {"block_q": 16, "block_k": 16, "num_q": 40, "num_k": 56}
KEPT = torch.ones(1, 1, 3, 4, dtype=torch.bool)
FULL = BlockLayout.full(**SIZES)
SQUARE = BlockLayout.full(block_q=16, block_k=16, num_q=64, num_k=64)
TILED = policies.full((9, 9), (4, 4))
Q, K, X = torch.zeros(1, 2, 40, 8), torch.zeros(1, 2, 56, 8), torch.zeros(1, 2, 64, 8)
OUT, LSE = torch.zeros(1, 2, 5, 3), torch.zeros(1, 2, 5)
SCORES, REGIONS = torch.zeros(1, 2, 3, 4), torch.tensor([0, 0, 1, 1])
ROWS, INDEX, OFFSETS = torch.zeros(4, 8), torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1, 4])
W1, W2 = torch.zeros(2, 8, 6), torch.zeros(2, 6, 8)
GATE = torch.zeros(4)
TOKENS, CONDITION = torch.zeros(2, 3, 8), torch.zeros(2, 8)
EIGHT_BITS = torch.float8_e4m3fn


# Arguments are wrong on purpose, so the type checker is not asked.
make: Any = BlockLayout
attention: Any = block_sparse_attention
rules: Any = policies
choose: Any = routing
merge: Any = merge_attention
pool: Any = pool_blocks
modulate: Any = norm_modulate
cache: Any = LayoutCache
gather: Any = gather_tokens
linear: Any = grouped_linear
scatter: Any = scatter_add
mixture: Any = expert_mlp
by_expert: Any = expert_choice
by_token: Any = token_choice


def csr(columns: list[int] | Tensor = INDEX[:3], **rest: object) -> object:
    return make.from_csr(torch.tensor([0, 1, 2, 3]), torch.as_tensor(columns), **SIZES, **rest)


def attend(q: object = Q, k: object = K, v: object = K, layout: object = FULL, **rest: object) -> object:
    return attention(q, k, v, layout, **rest)


def lengths(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def experts(index: Tensor = INDEX, offsets: Tensor = OFFSETS) -> Tensor:
    return expert_mlp(ROWS, ExpertRouting(index, GATE, offsets), W1, W2, backend="reference")


def check(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make.full(**SIZES | {"block_q": True}), "block_q is True; expected one of"),
        (lambda: make.full(**SIZES | {"num_q": None}), "num_q is None; expected a number of tokens"),
        (lambda: make.from_dense([[True]], **SIZES), "mask is a list; expected a tensor"),
        (lambda: make.from_dense(KEPT, **SIZES, width="3"), "width is '3'; expected a number of blocks"),
        (lambda: make.from_dense(KEPT, **SIZES, width=0), "width is 0; expected a number of blocks"),
        (lambda: make.from_dense(KEPT, **SIZES, q_len=lengths(16, 16, 8).to("meta")), "q_len is on meta; expected cpu"),
        (lambda: make.from_token_mask(None, block_q=16, block_k=16), "mask is a NoneType"),
        (lambda: make.from_block_mask(None), "block_mask is a NoneType; expected a BlockMask"),
        (lambda: csr(batch=0), "batch is 0; expected at least 1"),
        (lambda: csr(batch="1"), "batch is '1'; expected at least 1"),
        (lambda: csr(heads=1.0), "heads is 1.0; expected at least 1"),
        (lambda: csr([0, 2**32 + 1, 2]), r"col_idx\[1\] is 4294967297; expected 0 to 3"),
        (lambda: csr(torch.tensor([0.0, 1.0, 2.0])), "col_idx is a tensor of torch.float32"),
        (lambda: csr(torch.tensor([0, 1, 2], device="meta")), "col_idx is on meta; expected cpu"),
        (lambda: TILED.arrange(torch.zeros(1, 144, 4)), r"x has shape \[1, 144, 4\]; expected 81 tokens"),
        (lambda: TILED.arrange(torch.zeros(1, 81, 4), dim=3), "expected 81 tokens along dimension 3"),
        (lambda: TILED.restore(torch.zeros(1, 81, 4)), r"x has shape \[1, 81, 4\]; expected 144 tokens"),
        (lambda: make.flops(FULL, 8, heads="2"), "heads is 2; expected at least 1"),
        (lambda: FULL.flops(-1), "head_dim is -1; expected at least 1"),
    ],
)
def test_layouts(call: Callable[[], object], message: str) -> None:
    check(call, message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attend(q=[1.0]), "q is a list; expected a tensor"),
        (lambda: attend(k=None), "k is a NoneType; expected a tensor"),
        (lambda: attend(v="v"), "v is a str; expected a tensor"),
        (lambda: attend(k=K.to("meta")), "k is on meta; expected cpu, as q is"),
        (lambda: attend(*(x.to("meta") for x in (Q, K, K))), "layout is on cpu; expected meta"),
        (lambda: attend(*(x.to(EIGHT_BITS) for x in (Q, K, K))), "q is of torch.float8_e4m3fn; expected one of"),
        (lambda: attend(key_bias=[0.0]), "key_bias is a list; expected a tensor"),
        (lambda: attend(key_bias=torch.zeros(1, 1, 56, device="meta")), "key_bias is on meta; expected cpu"),
        (lambda: attend(scale="1"), "scale is '1'; expected a finite number"),
        (lambda: attend(scale=math.nan), "scale is nan; expected a finite number"),
        (lambda: attend(scale=torch.ones(2)), r"scale is a tensor of torch.float32 and shape \[2\]; expected a finite"),
        (lambda: attend(backend=["cpu"]), r"backend is \['cpu'\]; expected auto"),
        (lambda: merge(None, None), "outs is a NoneType; expected a Sequence"),
        (lambda: merge(OUT, LSE), "outs is a Tensor; expected a Sequence"),
        (lambda: merge([OUT], [None]), r"lses\[0\] is 'NoneType'; expected a tensor"),
        (lambda: merge([OUT.long()], [LSE]), r"outs\[0\] is of torch.int64; expected a floating-point dtype"),
        (lambda: merge([OUT, OUT], [LSE, LSE.double()]), r"lses\[1\] is of torch.float64; expected torch.float32"),
        (lambda: merge([OUT, OUT.to("meta")], [LSE, LSE]), r"outs\[1\] is on meta; expected cpu"),
        (lambda: merge([OUT, OUT], [LSE, LSE.to("meta")]), r"lses\[1\] is on meta; expected cpu"),
        (lambda: merge([OUT], [LSE.half()]), r"lses\[0\] is of torch.float16; expected torch.float32"),
        (lambda: pool([1.0], 16), "x is 'list'; expected a tensor"),
        (lambda: pool(Q.to(EIGHT_BITS), 16), "x is of torch.float8_e4m3fn; expected a floating-point dtype of 16"),
        (lambda: pool(Q, "16"), "block is '16'; expected at least 1"),
        (lambda: pool(Q, 16, [16, 16, 8]), "lengths is a list; expected a Tensor"),
        (lambda: pool(Q, 16, lengths(16, 100, 8)), r"lengths\[1\] is 100; expected 0 to 16"),
        (lambda: pool(Q, 16, lengths(16, -1, 8)), r"lengths\[1\] is -1; expected 0 to 16"),
        (lambda: pool(Q, 16, lengths(16, 16, 9)), r"lengths\[2\] is 9; expected 0 to 8"),
        (lambda: modulate(TOKENS, CONDITION, CONDITION, eps="1"), "eps is '1'; expected a finite number above 0"),
        (lambda: modulate(TOKENS, None, CONDITION), "shift is 'NoneType'; expected a tensor"),
        (lambda: modulate(TOKENS.to(EIGHT_BITS), CONDITION, CONDITION), "x is of torch.float8_e4m3fn"),
        (lambda: modulate(TOKENS, CONDITION, CONDITION, backend=["cpu"]), r"backend is \['cpu'\]; expected one of"),
    ],
)
def test_attention_and_norms(call: Callable[[], object], message: str) -> None:
    check(call, message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gather(None, INDEX), "x is 'NoneType'; expected a tensor"),
        (lambda: gather(ROWS, INDEX, backend=["cpu"]), r"backend is \['cpu'\]; expected one of"),
        (lambda: gather(ROWS, INDEX - 1, backend="reference"), "index has values from -1 to 2; expected 0 to 3"),
        (lambda: gather(ROWS, INDEX + 1, backend="reference"), "index has values from 1 to 4; expected 0 to 3"),
        (lambda: linear(ROWS, W1, [0.0], OFFSETS), "bias is 'list'; expected a tensor"),
        (lambda: linear(ROWS, W1, None, OFFSETS.flip(0), backend="reference"), r"offsets is \[4, 1, 0\]; expected asc"),
        (lambda: linear(ROWS, W1, None, OFFSETS // 2, backend="reference"), r"offsets is \[0, 0, 2\]; expected asc"),
        (lambda: scatter(ROWS, INDEX, None, "4"), "num_tokens is '4'; expected at least 0"),
        (lambda: scatter(ROWS, INDEX, None, 4.0), "num_tokens is 4.0; expected at least 0"),
        (lambda: scatter(ROWS, INDEX - 1, None, 4, backend="reference"), "index has values from -1 to 2"),
        (lambda: scatter(ROWS, INDEX, None, 3, backend="reference"), "index has values from 0 to 3; expected 0 to 2"),
        (lambda: mixture(ROWS, (INDEX, GATE, OFFSETS), W1, W2), "routing is a tuple; expected an ExpertRouting"),
        (lambda: experts(index=INDEX - 1), "index has values from -1 to 2; expected 0 to 3"),
        (lambda: experts(offsets=OFFSETS.flip(0)), r"offsets is \[4, 1, 0\]; expected ascending"),
        (lambda: by_expert(torch.zeros(1, 4, 2), "2"), "capacity is '2'; expected 1 to 4"),
        (lambda: by_expert(torch.zeros(1, 4, 2), 2.0), "capacity is 2.0; expected 1 to 4"),
        (lambda: by_token(torch.zeros(4, 2), 1.5), "num_experts is 1.5; expected 1 to 2"),
        (lambda: by_token(torch.zeros(4, 2), None), "num_experts is None; expected 1 to 2"),
    ],
)
def test_experts(call: Callable[[], object], message: str) -> None:
    check(call, message)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rules.full(8, (4, 4)), "grid is 8; expected at least 1 token along each axis"),
        (lambda: rules.full((8.0, 8.0), (4, 4)), r"grid is \(8.0, 8.0\); expected at least 1 token"),
        (lambda: rules.full((8, 8), None), "tile is None; expected at least 1 token"),
        (lambda: rules.local_1d("64", 16, block=16), r"grid is \('64',\); expected at least 1 token"),
        (lambda: rules.local_1d(64, 1.5, block=16), r"window is \(1.5,\); expected at least 1 token"),
        (lambda: rules.local_2d((8, 8), 8, tile=(4, 4)), "window is 8; expected at least 1 token"),
        (lambda: rules.radial(None), "grid is None; expected at least 1 token"),
        (lambda: rules.strided_shards(None, heads=2, stride=2), "local is a NoneType; expected a BlockLayout"),
        (lambda: rules.strided_shards(SQUARE, heads=1.5, stride=2), "heads is 1.5; expected at least 1"),
        (lambda: rules.strided_shards(SQUARE, heads=2, stride="2"), "stride is '2'; expected at least 1"),
        (lambda: rules.diagonal(None), "layout is a NoneType; expected a BlockLayout"),
        (lambda: rules.sinks(None, [0]), "layout is a NoneType; expected a BlockLayout"),
        (lambda: rules.sinks(SQUARE, [1.7]), "tokens holds 1.7; expected whole numbers"),
        (lambda: rules.sinks(SQUARE, torch.tensor([1.7])), "tokens is of torch.float32; expected whole numbers"),
        (lambda: rules.global_tokens(SQUARE, torch.ones(64, dtype=torch.bool)), "tokens is of torch.bool"),
        (lambda: rules.global_tokens(SQUARE, None), "tokens is a NoneType; expected a Sequence"),
        (lambda: rules.text_first("layout", 1), "layout is a str; expected a BlockLayout"),
        (lambda: rules.text_first(SQUARE, 1.5), "num_text is 1.5; expected at least 1"),
        (lambda: rules.union(SQUARE, None), r"layouts\[1\] is a NoneType; expected a BlockLayout"),
        (lambda: rules.per_head(SQUARE), "layouts is a BlockLayout; expected a Sequence"),
        (lambda: rules.full_like(None), "layout is a NoneType; expected a BlockLayout"),
        (lambda: rules.split_blocks(None, block_q=16, block_k=16), "layout is a NoneType; expected a BlockLayout"),
        (lambda: tile_order((8, 8), (4, 4)).regions((4.0, 4.0)), r"region is \(4.0, 4.0\)"),  # type: ignore[arg-type]
        (lambda: tile_order((8, 8), (4, 4)).layout(torch.ones(2, 2, 4, 4, dtype=torch.bool)), r"mask has shape \[2, 2"),
        (lambda: choose.block_scores(None, X, SQUARE), "q is 'NoneType'; expected a tensor"),
        (lambda: choose.block_scores(X, X, None), "candidates is a NoneType; expected a BlockLayout"),
        (lambda: choose.block_scores(X, X[..., :4], SQUARE), r"k has shape \[1, 2, 64, 4\].*expected batch 1 and 8 ch"),
        (lambda: choose.block_scores(X, X.double(), SQUARE), "k has shape.*of torch.float64; expected batch 1"),
        (lambda: choose.block_scores(X.to("meta"), X, SQUARE), "q is on meta; expected cpu, as the layout is"),
        (lambda: choose.block_scores(X, X, SQUARE, scale="1"), "scale is '1'; expected a finite number"),
        (lambda: choose.share_heads(SCORES[0, 0], 1), r"scores is of shape \[3, 4\]; expected \[batch"),
        (lambda: choose.share_heads(SCORES, "1"), "groups is '1'; expected at least 1"),
        (lambda: choose.top_blocks(SCORES.long(), FULL, 1), "scores is of torch.int64; expected a floating-point dt"),
        (lambda: choose.top_blocks(SCORES.to("meta"), FULL, 1), "scores is on meta; expected cpu, as the layout is"),
        (lambda: choose.top_blocks(SCORES, FULL, 1.5), "count is 1.5; expected at least 1"),
        (lambda: choose.top_blocks(SCORES, None, 1), "candidates is a NoneType; expected a BlockLayout"),
        (lambda: choose.top_blocks(SCORES, FULL, 1, always="all"), "always is a str; expected a BlockLayout"),
        (lambda: choose.top_mass(SCORES, FULL, "1"), "mass is '1'; expected a finite number"),
        (lambda: choose.top_mass(SCORES, FULL, 0.5, max_count=1.5), "max_count is 1.5; expected at least 1"),
        (lambda: choose.top_regions(X, X, SQUARE, [0, 0, 1, 1], 1), "regions is a list; expected a Tensor"),
        (lambda: choose.top_regions(X[:, :, :40], X, SQUARE, REGIONS, 1), r"q has shape \[1, 2, 40, 8\]"),
        (lambda: choose.top_regions(X, X, SQUARE, REGIONS, 1.5), "count is 1.5; expected at least 1"),
        (lambda: cache(layers="1"), "layers is '1'; expected at least 1"),
        (lambda: cache(steps=1.5), "steps is 1.5; expected at least 1"),
        (lambda: cache().get(None, 0, lambda: SQUARE), "layer is None; expected at least 0"),
    ],
)
def test_policies_and_routing(call: Callable[[], object], message: str) -> None:
    check(call, message)

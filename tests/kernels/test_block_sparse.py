"""The public operation as torch sees it: gradients, compile, FLOPs, the choice of a backend, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.kernels import BlockLayout, block_sparse_attention, merge_attention
from mezzotint.kernels.attention_backends import chosen_backend
from mezzotint.kernels.block_sparse import last_backend


def random_layout(num_q: int, num_k: int, *, heads: int = 1, batch: int = 1, density: float = 0.5) -> BlockLayout:
    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, -(-num_q // 16), -(-num_k // 16))
    mask = torch.rand(shape, generator=generator) < density
    mask[..., 0, :] = False  # a block of queries without a key
    mask[..., 1, 0] = True
    return BlockLayout.from_dense(mask, block_q=16, block_k=16, num_q=num_q, num_k=num_k)


def masked_layout(num_q: int, num_k: int, *, heads: int = 1) -> BlockLayout:
    """Every block is mixed; query 20 sees nothing."""
    pairs = torch.rand(1, heads, num_q, num_k, generator=torch.Generator().manual_seed(2)) < 0.5
    pairs[..., 20, :] = False
    return BlockLayout.from_token_mask(pairs, block_q=16, block_k=16)


def inputs(
    num_q: int = 40, num_k: int = 56, *, heads: int = 4, key_heads: int = 2, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, heads, num_q, 24), (2, key_heads, num_k, 24), (2, key_heads, num_k, 20)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Written out once more, apart from the package."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for x in (k, v))
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5
    scores = scores if bias is None else scores + bias[:, :, None, :]
    weights = torch.where(mask, scores, -1e30).exp()
    total = torch.where(mask, weights, 0.0).sum(-1)
    seen = total > 0
    out = torch.einsum("bhnm,bhmv->bhnv", torch.where(mask, weights, 0.0), v) / torch.where(seen, total, 1.0)[..., None]
    return out, torch.where(seen, total, 1.0).log().masked_fill(~seen, -torch.inf)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_values_and_gradients_are_those_of_dense_attention_under_the_mask(bias: bool, masked: bool) -> None:
    q, k, v = inputs()
    layout = masked_layout(40, 56, heads=4) if masked else random_layout(40, 56, heads=4, batch=2)
    key_bias = torch.randn(2, 1, 56, dtype=torch.float64, requires_grad=True) if bias else None
    leaves = [q, k, v, *([key_bias] if key_bias is not None else [])]
    out, lse = block_sparse_attention(q, k, v, layout, key_bias=key_bias, return_lse=True)
    wanted, wanted_lse = plain_attention(q, k, v, layout.token_mask(), key_bias)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(lse, wanted_lse)
    unseen = slice(20, 21) if masked else slice(0, 16)
    assert (lse[:, :, unseen] == -torch.inf).all()
    assert (out[:, :, unseen] == 0).all()
    upstream, seen = torch.randn_like(out), lse.isfinite()
    lse_upstream = torch.randn_like(lse)
    got = torch.autograd.grad((out * upstream).sum() + (lse * lse_upstream)[seen].sum(), leaves)
    right = torch.autograd.grad((wanted * upstream).sum() + (wanted_lse * lse_upstream)[seen].sum(), leaves)
    for a, b in zip(got, right, strict=True):
        torch.testing.assert_close(a, b)


def lists_of(layout: BlockLayout) -> tuple[Any, ...]:
    lists = (layout.kv_num, layout.kv_idx, None, None, layout.mask_idx, layout.mask_bits)
    return (*lists, *layout.transpose(), layout.transpose_mask_idx(), 16, 16, 0.2, "reference")


def test_the_operation_keeps_torchs_rules() -> None:
    q, k, v = inputs()
    layout = random_layout(40, 56, heads=4)
    rest = lists_of(layout)
    torch.library.opcheck(torch.ops.mezzotint.block_sparse_attention.default, (q, k, v, None, *rest))
    rest = lists_of(masked_layout(40, 56, heads=4))
    bias = torch.randn(1, 4, 56, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.mezzotint.block_sparse_attention.default, (q, k, v, bias, *rest))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compile_traces_it_as_one_graph(compiler: str, masked: bool) -> None:
    layout = masked_layout(40, 56, heads=4) if masked else random_layout(40, 56, heads=4)

    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = block_sparse_attention(q.sin(), k, v, layout)
        assert isinstance(out, Tensor)
        return out.cos()

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    leaves, again = inputs(dtype=torch.float32), inputs(dtype=torch.float32)
    out, wanted = compiled(*leaves), step(*again)
    torch.testing.assert_close(out, wanted)
    for a, b in zip(
        torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(wanted.sum(), again), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("density", [0.0, 0.4, 1.0, "masked"])
def test_the_flop_counter_counts_kept_pairs(density: float | str) -> None:
    q, k, v = inputs(64, 96)
    layout = masked_layout(64, 96) if isinstance(density, str) else random_layout(64, 96, density=density)
    pairs = int(layout.token_mask().sum()) * 2 * 4
    with FlopCounterMode(display=False) as counter:
        out = block_sparse_attention(q, k, v, layout, backend="reference")
        assert counter.get_total_flops() == 2 * (24 + 20) * pairs
        out.sum().backward()  # type: ignore[union-attr]
    assert counter.get_total_flops() == 2 * (24 + 20) * pairs + 2 * (3 * 24 + 2 * 20) * pairs


def test_the_backend_is_known_before_and_after() -> None:
    q, k, v = inputs(dtype=torch.float32)
    layout = random_layout(40, 56)
    for asked in ("reference", "cpu-torch", "auto"):
        name = chosen_backend(q, k, v, layout, backend=asked)
        block_sparse_attention(q, k, v, layout, backend=asked)
        assert last_backend() == name
        assert asked == "auto" or name == asked


def test_a_backend_that_cannot_run_says_why() -> None:
    q, k, v = inputs(dtype=torch.float32)
    layout = random_layout(40, 56)
    for asked, words in (("triton", "not on cuda"), ("sdpa", "does not keep every pair"), ("flash", "expected auto")):
        with pytest.raises(ValueError, match=words):
            block_sparse_attention(q, k, v, layout, backend=asked)


def cut(name: str, change: Any) -> dict[str, Any]:
    q, k, v = inputs(dtype=torch.float32)
    arguments: dict[str, Any] = {"q": q, "k": k, "v": v, "layout": random_layout(40, 56)}
    arguments[name] = change(arguments.get(name))
    return arguments


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("q", lambda q: q[0], r"q is of shape \[4, 40, 24\]; expected \[batch"),
        ("q", lambda q: q.long(), "q is of torch.int64"),
        ("k", lambda k: k.half(), "k is of torch.float16; expected torch.float32, as q is"),
        ("k", lambda k: k[..., :20], "expected batch 2 and 24 channels"),
        ("k", lambda k: torch.cat([k, k[:, :1]], 1), "divides q's 4"),
        ("k", lambda k: k[:1], "expected batch 2"),
        ("v", lambda v: v[:, :, :50], "v is of shape"),
        ("v", lambda v: v.transpose(2, 3).contiguous().transpose(2, 3), "dense last dimension"),
        ("layout", lambda _: random_layout(41, 56), "layout.num_q is 41; expected 40"),
        ("layout", lambda _: random_layout(40, 57), "layout.num_k is 57; expected 56"),
        ("layout", lambda _: random_layout(40, 56, heads=3), "expected 1 or q's 4"),
        ("layout", lambda _: "dense", "a str; expected a BlockLayout"),
        ("key_bias", lambda _: torch.zeros(2, 56), r"key_bias is of shape \[2, 56\]"),
        ("key_bias", lambda _: torch.zeros(2, 4, 56).double(), "key_bias is of torch.float64"),
    ],
)
def test_a_wrong_argument_is_named(name: str, change: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        block_sparse_attention(**cut(name, change))


def test_two_halves_of_the_keys_merge_into_the_whole() -> None:
    q, k, v = inputs(num_k=64)
    layout = random_layout(40, 64, heads=4)
    left = layout.to_dense() & (torch.arange(4) < 2)
    parts = [BlockLayout.from_dense(m, block_q=16, block_k=16, num_q=40, num_k=64)
             for m in (left, layout.to_dense() & ~left)]
    whole = block_sparse_attention(q, k, v, layout, return_lse=True)
    outs, lses = zip(*(block_sparse_attention(q, k, v, part, return_lse=True) for part in parts), strict=True)
    merged = merge_attention(outs, lses)
    seen = whole[1].isfinite()
    weights = torch.randn_like(whole[0]), torch.randn_like(whole[1])
    gradients = []
    for out, lse in (whole, merged):
        gradients.append(torch.autograd.grad((out * weights[0]).sum() + (lse * weights[1])[seen].sum(), (q, k, v)))
    torch.testing.assert_close(merged[0], whole[0])
    torch.testing.assert_close(merged[1], whole[1])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_merging_keeps_torchs_rules_and_refuses_what_does_not_fit() -> None:
    outs = [torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    lses = [torch.randn(1, 2, 5, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    torch.library.opcheck(torch.ops.mezzotint.merge_attention.default, (outs, lses))
    assert torch.autograd.gradcheck(lambda a, b, c, d: merge_attention([a, b], [c, d]), (*outs[:2], *lses[:2]))
    for bad, words in (
        (([], []), "outs holds 0"), ((outs, lses[:2]), "lses 2"),
        (([outs[0], outs[1][:, :1]], lses[:2]), r"outs\[1\]"), ((outs[:1], [lses[0][..., :2]]), r"lses\[0\]"),
    ):
        with pytest.raises(ValueError, match=words):
            merge_attention(*bad)

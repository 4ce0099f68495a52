"""CPU attention, the C kernels at every instruction set and torch's operators, against an explicit fp64 reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mezzotint.kernels import cpu_attention, cpu_torch_attention, native_call
from mezzotint.kernels.layout import BlockLayout

SHAPES = {  # B, H, G, N, M, D, V, block_q, block_k
    "whole blocks": (1, 2, 2, 64, 128, 72, 72, 64, 64),
    "ragged and grouped": (2, 4, 2, 77, 131, 40, 33, 32, 16),
    "odd channels, eight heads on one": (1, 8, 1, 100, 90, 33, 72, 16, 32),
    "large blocks": (1, 2, 1, 130, 300, 64, 128, 128, 128),
    "wide values": (1, 2, 2, 200, 65, 96, 80, 64, 64),
    "narrow queries": (2, 1, 1, 48, 260, 128, 32, 16, 128),
    "one token": (1, 1, 1, 1, 1, 8, 8, 16, 16),
    "one channel": (1, 2, 2, 33, 47, 1, 1, 16, 16),
}
pytestmark = pytest.mark.usefixtures("two_threads")


def random_layout(shape: tuple[int, ...], *, lengths: bool, own: bool = True, density: float = 0.5) -> BlockLayout:
    """Random blocks; where there are several, the last block of queries sees nothing and key block 1 is never seen."""
    B, H, _, N, M, _, _, block_q, block_k = shape
    blocks = (-(-N // block_q), -(-M // block_k))
    mask = torch.rand(*((B, H) if own else (1, 1)), *blocks) < density
    mask[..., 0, 0] = True
    if blocks[0] > 1:
        mask[..., -1, :] = False
    if blocks[1] > 1:
        mask[..., :, 1] = False
    rest: dict[str, Tensor] = {}
    if lengths:
        for name, count, tokens, block in (("q_len", blocks[0], N, block_q), ("k_len", blocks[1], M, block_k)):
            whole = (tokens - block * torch.arange(count)).clamp(max=block)
            rest[name] = (whole - torch.randint(0, 4, (count,))).clamp(min=0).int()
        rest["k_len"][0] = min(M, block_k)
    return BlockLayout.from_dense(mask, block_q=block_q, block_k=block_k, num_q=N, num_k=M, **rest)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", SHAPES)
def test_outputs_and_gradients_agree_with_the_reference(attention: Any, name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = SHAPES[name]
    q, k, v, d_out, _ = attention.tensors(shape, dtype)
    arguments = (q, k, v, random_layout(shape, lengths=False), shape[5] ** -0.5, None)
    attention.check(arguments, d_out, None, with_autograd=name not in ("one token", "one channel"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["ragged and grouped", "odd channels, eight heads on one", "wide values"])
def test_lengths_bias_and_gradient_through_lse(attention: Any, name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    shape = SHAPES[name]
    q, k, v, d_out, d_lse = attention.tensors(shape, dtype)
    layout = random_layout(shape, lengths=True)
    for size in ((1, 1), shape[:2], (1, shape[1])):
        arguments = (q, k, v, layout, 0.3, torch.randn(*size, shape[4]))
        attention.check(arguments, d_out, d_lse, with_autograd=True)


@pytest.mark.parametrize("amplitude", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_inputs_stay_as_exact_as_the_reference(
    attention: Any, dtype: torch.dtype, amplitude: float
) -> None:
    torch.manual_seed(2)
    shape = (1, 2, 2, 64, 192, 72, 72, 64, 64)
    q, k, v, d_out, d_lse = attention.tensors(shape, dtype, amplitude)
    arguments = (q, k, v, random_layout(shape, lengths=False), 72**-0.5, None)
    attention.check(arguments, d_out, d_lse, with_autograd=amplitude < 16)


def test_a_negative_scale_is_no_special_case(attention: Any) -> None:
    torch.manual_seed(3)
    shape = SHAPES["whole blocks"]
    q, k, v, d_out, _ = attention.tensors(shape, torch.float32)
    attention.check((q, k, v, random_layout(shape, lengths=False), -0.4, None), d_out, None)


def test_a_query_without_keys_gives_zero_and_no_gradient(attention: Any) -> None:
    torch.manual_seed(4)
    shape = (1, 2, 2, 96, 96, 32, 32, 32, 32)
    q, k, v, d_out, d_lse = attention.tensors(shape, torch.float32)
    layout = random_layout(shape, lengths=False)
    none = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    nothing = BlockLayout.from_dense(none, block_q=32, block_k=32, num_q=96, num_k=96)
    out, lse, dq, *_ = attention.run((q, k, v, layout, 0.2, None), d_out, d_lse)
    assert not out[:, :, 64:].any()
    assert not dq[:, :, 64:].any()
    assert (lse[:, :, 64:] == -torch.inf).all()
    assert out[:, :, :32].any()
    out, lse, *gradients = attention.run((q, k, v, nothing, 0.2, None), d_out, d_lse)
    assert (lse == -torch.inf).all()
    assert not any(x.any() for x in (out, *gradients))


def test_keys_with_a_bias_of_minus_infinity_do_not_count(attention: Any) -> None:
    torch.manual_seed(5)
    shape = (1, 2, 2, 40, 64, 24, 24, 16, 16)
    q, k, v, d_out, d_lse = attention.tensors(shape, torch.float32)
    layout = random_layout(shape, lengths=False)
    bias = torch.randn(1, 1, 64)
    bias[..., 5:20] = -torch.inf
    attention.check((q, k, v, layout, 0.2, bias), d_out, d_lse)
    out, lse, *gradients = attention.run((q, k, v, layout, 0.2, torch.full((1, 1, 64), -torch.inf)), d_out, d_lse)
    assert (lse == -torch.inf).all()
    assert not any(x.any() for x in (out, *gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_in_padding_goes_nowhere(attention: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(6)
    shape = SHAPES["ragged and grouped"]
    q, k, v, d_out, d_lse = attention.tensors(shape, dtype)
    layout = random_layout(shape, lengths=True)
    clean = attention.run((q, k, v, layout, 0.2, None), d_out, d_lse)
    inside = [
        (torch.arange(block) < lengths[:, None]).flatten()[:tokens]
        for block, lengths, tokens in ((32, layout.q_len, 77), (16, layout.k_len, 131))
    ]
    assert not inside[0].all()
    assert not inside[1].all()
    for x, valid in ((q, inside[0]), (d_out, inside[0]), (k, inside[1]), (v, inside[1])):
        x[:, :, ~valid] = torch.nan
    for before, after in zip(clean, attention.run((q, k, v, layout, 0.2, None), d_out, d_lse), strict=True):
        assert torch.equal(before, after)


def test_nan_in_a_key_that_counts_is_not_hidden(attention: Any) -> None:
    q, k, v, d_out, _ = attention.tensors((1, 1, 1, 16, 16, 8, 8, 16, 16), torch.float32)
    k[0, 0, 3] = torch.nan
    layout = BlockLayout.full(block_q=16, block_k=16, num_q=16, num_k=16)
    out, lse, *_ = attention.run((q, k, v, layout, 0.2, None), d_out, None)
    assert out.isnan().all()
    assert lse.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_with_a_dense_last_dimension_need_no_copy(attention: Any, dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    shape = (2, 3, 3, 50, 50, 24, 24, 16, 32)
    q, k, v = torch.randn(2, 50, 3, 3, 24).to(dtype).permute(2, 0, 3, 1, 4)
    d_out = torch.randn(2, 50, 3, 24).to(dtype).transpose(1, 2)
    assert not q.is_contiguous()
    layout = random_layout(shape, lengths=False, own=False)
    views = attention.run((q, k, v, layout, 0.2, None), d_out, None)
    dense = [x.contiguous() for x in (q, k, v)]
    copies = attention.run((*dense, layout, 0.2, None), d_out.contiguous(), None)
    for view, copy in zip(views, copies, strict=True):
        assert torch.equal(view, copy)
        assert copy.any()


def test_a_layout_shared_by_heads_and_sequences_equals_its_copies(attention: Any) -> None:
    torch.manual_seed(8)
    shape = SHAPES["ragged and grouped"]
    q, k, v, d_out, d_lse = attention.tensors(shape, torch.float32)
    shared = random_layout(shape, lengths=False, own=False)
    mask = shared.to_dense().expand(shape[0], shape[1], -1, -1)
    copied = BlockLayout.from_dense(mask, block_q=32, block_k=16, num_q=77, num_k=131)
    results = [attention.run((q, k, v, layout, 0.2, None), d_out, d_lse) for layout in (shared, copied)]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_attention_agrees_with_the_reference(dtype: torch.dtype, native_attention: Any) -> None:
    torch.manual_seed(9)
    for N, M, D in ((64, 64, 72), (77, 131, 33), (1, 300, 64), (256, 5, 40)):
        q, k, v, d_out, d_lse = native_attention.tensors((2, 4, 2, N, M, D, D, 64, 64), dtype)
        layout = BlockLayout.full(block_q=64, block_k=64, num_q=N, num_k=M)
        ours = native_attention.check((q, k, v, layout, 0.2, None), d_out, d_lse)
        out, lse = cpu_attention.dense_forward(q, k, v, 0.2)
        dense = [out, lse, *cpu_attention.dense_backward(d_out, d_lse, q, k, v, out, lse, 0.2)]
        for a, b in zip(ours, dense, strict=True):
            torch.testing.assert_close(a, b, atol=0.02 if dtype == torch.bfloat16 else 1e-5, rtol=0.02)


def test_no_tokens_give_empty_or_zero_results(attention: Any) -> None:
    if attention.module is cpu_torch_attention:
        pytest.skip("dense attention without a layout is the C kernels' own")
    q, k = torch.randn(1, 2, 5, 8), torch.randn(1, 2, 0, 8)
    out, lse = cpu_attention.dense_forward(q, k, k, 1.0)
    assert not out.any()
    assert (lse == -torch.inf).all()
    assert cpu_attention.dense_forward(k, q, q, 1.0)[0].shape == (1, 2, 0, 8)
    dq, dk, _ = cpu_attention.dense_backward(torch.randn(1, 2, 5, 8), None, q, k, k, out, lse, 1.0)
    assert dq.shape == q.shape
    assert dk.shape == k.shape
    assert not dq.any()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_same_bits_every_time_and_one_head_is_shared_out(attention: Any, threads: int) -> None:
    torch.manual_seed(10)
    torch.set_num_threads(threads)
    shape = (1, 1, 1, 600, 600, 40, 40, 32, 32)
    q, k, v, d_out, d_lse = attention.tensors(shape, torch.float32)
    arguments = (q, k, v, random_layout(shape, lengths=False, density=0.3), 0.2, torch.randn(1, 1, 600))
    first = attention.check(arguments, d_out, d_lse)
    for a, b in zip(first, attention.run(arguments, d_out, d_lse), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": torch.float64}, "q is of torch.float64; expected one of torch.float32, torch.bfloat16"),
        ({"k_dtype": torch.bfloat16}, "k is of torch.bfloat16; expected torch.float32, as q is"),
        ({"device": "meta"}, "q is on meta; expected cpu"),
    ],
)
def test_what_a_backend_cannot_do_raises(attention: Any, change: dict[str, Any], message: str) -> None:
    q = torch.zeros(1, 1, 16, 8, dtype=change.get("dtype"), device=change.get("device"))
    k = q.to(change.get("k_dtype", q.dtype))
    layout = BlockLayout.full(block_q=16, block_k=16, num_q=16, num_k=16)
    with pytest.raises(ValueError, match=message):
        attention.module.forward(q, k, q, layout, 1.0, None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": torch.zeros(1, 3, 16, 8)}, r"k is of shape \[1, 3, 16, 8\]; expected a number of heads that divides"),
        ({"k": torch.zeros(1, 2, 16, 9)}, r"k is of shape \[1, 2, 16, 9\]; expected batch 1 and 8 channels"),
        ({"v": torch.zeros(1, 2, 15, 8)}, r"v is of shape \[1, 2, 15, 8\]; expected \[1, 2, 16, ...\]"),
        ({"q": torch.zeros(1, 2, 8, 16).transpose(2, 3)}, r"q is of strides \(256, 128, 1, 16\)"),
        ({"q": torch.zeros(1, 2, 17, 8)}, "layout.num_q is 16; expected 17"),
        ({"key_bias": torch.zeros(2, 1, 16)}, r"key_bias is of shape \[2, 1, 16\]"),
        ({"key_bias": torch.zeros(1, 1, 16, dtype=torch.bfloat16)}, "key_bias is of torch.bfloat16"),
    ],
)
def test_a_backend_is_not_called_with_wrong_shapes(
    arguments: dict[str, Tensor], message: str, attention: Any
) -> None:
    given: dict[str, Any] = {name: torch.zeros(1, 2, 16, 8) for name in "qkv"} | {"key_bias": None} | arguments
    layout = BlockLayout.full(block_q=16, block_k=16, num_q=16, num_k=16)
    with pytest.raises(ValueError, match=message):
        attention.module.forward(given["q"], given["k"], given["v"], layout, 1.0, given["key_bias"])


@pytest.mark.usefixtures("native_attention")
def test_a_level_that_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_call, "_forced_level", 9)
    x = torch.zeros(1, 1, 16, 8)
    with pytest.raises(ValueError, match="instruction set is number 9"):
        cpu_attention.dense_forward(x, x, x, 1.0)

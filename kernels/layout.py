"""BlockLayout: which blocks of keys each block of queries sees.

Shape suffixes: Bx batch or 1, Hx query heads or 1, NQ and NK blocks of queries and keys, M list width, P bit masks.
"""

import dataclasses
from dataclasses import InitVar, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mezzotint.kernels import layout_block_mask as flex
from mezzotint.kernels import layout_check as check
from mezzotint.kernels import layout_conversion as convert
from mezzotint.kernels import layout_masks as masks
from mezzotint.kernels.arguments import check_whole, is_whole

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class BlockLayout:
    """An immutable list of kept key blocks for every query block: tensors only, moved between devices by `to`.

    Key j counts for query i where j's block is in the list of i's block, i is among the first q_len tokens of its
    block and j among the first k_len tokens of its own, and where a partly masked block has the bit of the pair set.

    Args:
        block_q, block_k: tokens a block of queries and of keys: 16, 32, 64 or 128; they may differ.
        num_q, num_k: tokens, padding of tiles included. The last block may be ragged.
        kv_num: int32 [Bx, Hx, NQ], how many entries of each list count.
        kv_idx: int32 [Bx, Hx, NQ, M], blocks of keys, strictly ascending; what follows the first kv_num is set to 0.
        q_len, k_len: int32 [NQ], [NK], valid tokens of each block; None where every block is whole.
        mask_idx: int32 [Bx, Hx, NQ, M], beside kv_idx: -1 where the listed block counts whole, else a row of mask_bits;
            what follows the first kv_num is set to -1. None, as mask_bits, where no block is partly masked.
        mask_bits: int32 [P, block_q, ceil(block_k / 32)]: bit b of word w of row i says whether key 32 w + b of a block
            counts for its query i. Bits past block_k are 0. Blocks that look alike may share a mask.
        perm: int64 [num_q], the caller's token at each position: x_tiled = x[..., perm, :]. Positions of padding name
            any token.
        inv_perm: int64 [tokens], each caller's token's position: x = x_tiled[..., inv_perm, :].
        validate: False skips the checks that read tensors back from the device, for builders that are right by
            construction.

    Raises:
        ValueError: wrong shapes, dtypes or devices; counts or indices out of range; unsorted or repeated indices.
    """

    block_q: int
    block_k: int
    num_q: int
    num_k: int
    kv_num: Tensor
    kv_idx: Tensor
    q_len: Tensor | None = None
    k_len: Tensor | None = None
    mask_idx: Tensor | None = None
    mask_bits: Tensor | None = None
    perm: Tensor | None = None
    inv_perm: Tensor | None = None
    validate: InitVar[bool] = True
    _cache: dict[str, Any] = field(default_factory=dict, init=False)

    def __post_init__(self, validate: bool) -> None:
        check.check_fields(self)
        if not validate:
            return
        check.check_values(self)
        listed = self.listed()
        object.__setattr__(self, "kv_idx", torch.where(listed, self.kv_idx, 0).contiguous())
        object.__setattr__(self, "kv_num", self.kv_num.contiguous())
        if self.mask_idx is not None and self.mask_bits is not None:
            object.__setattr__(self, "mask_idx", torch.where(listed, self.mask_idx, masks.WHOLE).contiguous())
            object.__setattr__(self, "mask_bits", self.mask_bits.contiguous())

    @classmethod
    def from_dense(
        cls, mask: Tensor, *, block_q: int, block_k: int, num_q: int, num_k: int, width: int | None = None, **rest: Any
    ) -> "BlockLayout":
        """A layout from one bool a pair of blocks.

        mask bool [Bx, Hx, ceil(num_q / block_q), ceil(num_k / block_k)]. `width`, where the longest list is known,
        spares a read back from the device; a longer list then raises only where the layout is validated. `rest` goes
        to the constructor (q_len, k_len, perm, inv_perm, validate). Raises ValueError as the constructor does.
        """
        check.check_sizes(block_q, block_k, num_q, num_k)
        check.check_tensor("mask", mask, torch.bool, (None, None, -(-num_q // block_q), -(-num_k // block_k)))
        check.check_width(width)
        kv_num, kv_idx = convert.lists_from_dense(mask, width)
        return cls(block_q=block_q, block_k=block_k, num_q=num_q, num_k=num_k, kv_num=kv_num, kv_idx=kv_idx, **rest)

    @classmethod
    def from_token_mask(cls, mask: Tensor, *, block_q: int, block_k: int, **rest: Any) -> "BlockLayout":
        """A layout of exactly the pairs of a mask, bool [Bx, Hx, num_q, num_k]: any pattern at all.

        Blocks that are kept whole cost nothing more than in `from_dense`, mixed ones get bit masks, equal ones shared.
        `rest` goes to the constructor (q_len, k_len, perm, inv_perm). Raises ValueError as the constructor does.
        """
        check.check_tensor("mask", mask, torch.bool, (None, None, None, None))
        num_q, num_k = mask.shape[-2:]
        check.check_sizes(block_q, block_k, num_q, num_k)
        lists: dict[str, Any] = masks.lists_from_map(masks.map_from_tokens(mask, (block_q, block_k)))
        return cls(block_q=block_q, block_k=block_k, num_q=num_q, num_k=num_k, **lists, **rest)

    @classmethod
    def from_csr(
        cls, row_ptr: Tensor, col_idx: Tensor, *, block_q: int, block_k: int, num_q: int, num_k: int, batch: int = 1,
        heads: int = 1, **rest: Any,
    ) -> "BlockLayout":  # fmt: skip
        """A layout from compressed rows over batch, heads and blocks of queries, in that order.

        row_ptr int [batch * heads * NQ + 1], col_idx int [nonzeros], ascending within a row. Raises ValueError for
        pointers that do not describe col_idx, and as the constructor does.
        """
        check.check_sizes(block_q, block_k, num_q, num_k)
        shape = (batch, heads, -(-num_q // block_q), -(-num_k // block_k))
        kv_num, kv_idx = convert.lists_from_csr(row_ptr, col_idx, shape)
        return cls(block_q=block_q, block_k=block_k, num_q=num_q, num_k=num_k, kv_num=kv_num, kv_idx=kv_idx, **rest)

    @classmethod
    def from_block_mask(cls, block_mask: "BlockMask", *, partial: str = "exact") -> "BlockLayout":
        """A layout from FlexAttention's BlockMask.

        Where the mask_mod of partial blocks only leaves out the last tokens of blocks, q_len and k_len say so.
        Otherwise `partial` decides: "exact" gives such blocks bit masks, "refuse" raises ValueError. "whole" never asks
        mask_mod and keeps each partial block whole, which is a larger mask than the one given. The other two build the
        mask of tokens, in memory of num_q * num_k.
        """
        flex.check_given(block_mask, partial)
        (block_q, block_k), (num_q, num_k) = block_mask.BLOCK_SIZE, block_mask.seq_lengths
        check.check_sizes(block_q, block_k, num_q, num_k)
        lists: dict[str, Any] = flex.lists_from_block_mask(block_mask, partial)
        return cls(block_q=block_q, block_k=block_k, num_q=num_q, num_k=num_k, **lists)

    @classmethod
    def full(
        cls, *, block_q: int, block_k: int, num_q: int, num_k: int, device: torch.device | str | None = None
    ) -> "BlockLayout":
        """Every block of queries sees every block of keys: dense attention."""
        check.check_sizes(block_q, block_k, num_q, num_k)
        shape = (1, 1, -(-num_q // block_q), -(-num_k // block_k))
        mask = torch.ones(shape, dtype=torch.bool, device=device)
        sizes: dict[str, Any] = {"block_q": block_q, "block_k": block_k, "num_q": num_q, "num_k": num_k}
        return cls.from_dense(mask, **sizes, width=shape[-1], validate=False)

    @property
    def num_q_blocks(self) -> int:
        """Blocks of queries, NQ."""
        return -(-self.num_q // self.block_q)

    @property
    def num_k_blocks(self) -> int:
        """Blocks of keys, NK."""
        return -(-self.num_k // self.block_k)

    @property
    def device(self) -> torch.device:
        """Where the lists are."""
        return self.kv_num.device

    def to(self, device: torch.device | str) -> "BlockLayout":
        """The same layout on another device; itself where it is there already."""
        moved = {name: value.to(device) for name, value in self._tensors().items()}
        if all(moved[name] is value for name, value in self._tensors().items()):
            return self
        changes: dict[str, Any] = {**moved, "validate": False}
        return dataclasses.replace(self, **changes)

    def arrange(self, x: Tensor, dim: int = -2) -> Tensor:
        """Tokens from the caller's order into the layout's, along `dim`; x itself where the layout has no order.

        Raises ValueError, as `restore`, for another number of tokens.
        """
        if self.perm is None or self.inv_perm is None:
            return x
        return convert.take_tokens(x, dim, self.perm, len(self.inv_perm))

    def restore(self, x: Tensor, dim: int = -2) -> Tensor:
        """Tokens from the layout's order back into the caller's, along `dim`, padding left out."""
        return x if self.inv_perm is None else convert.take_tokens(x, dim, self.inv_perm, self.num_q)

    def q_lengths(self) -> Tensor:
        """Valid tokens of each block of queries, int32 [NQ]; the ragged last block counted as it is."""
        return convert.whole_lengths(self.num_q, self.block_q, self.device) if self.q_len is None else self.q_len

    def k_lengths(self) -> Tensor:
        """Valid tokens of each block of keys, int32 [NK]; the ragged last block counted as it is."""
        return convert.whole_lengths(self.num_k, self.block_k, self.device) if self.k_len is None else self.k_len

    def to_dense(self) -> Tensor:
        """One bool a pair of blocks, [Bx, Hx, NQ, NK]."""
        return convert.dense_from_lists(self.kv_num, self.kv_idx, self.num_k_blocks)

    def block_map(self) -> Tensor:
        """What is kept of each pair of blocks, int32 [Bx, Hx, NQ, NK]: -2 nothing, -1 all, else a row of mask_bits."""
        return masks.map_from_lists(self.kv_num, self.kv_idx, self.mask_idx, self.num_k_blocks)

    def token_mask(self) -> Tensor:
        """One bool a pair of tokens, [Bx, Hx, num_q, num_k]: for references and tests, memory in num_q * num_k."""
        tokens = masks.tokens_from_map((self.block_map(), self.mask_bits), (self.block_q, self.block_k))
        tokens &= convert.valid_tokens(self.q_lengths(), self.block_q)[:, None]
        tokens &= convert.valid_tokens(self.k_lengths(), self.block_k)
        return tokens[..., : self.num_q, : self.num_k]

    def to_csr(self) -> tuple[Tensor, Tensor]:
        """Compressed rows over batch, heads and blocks of queries: row_ptr int64 [Bx * Hx * NQ + 1], col_idx int32.

        The blocks alone, as `to_dense`: bit masks are not in there.
        """
        return convert.csr_from_lists(self.kv_num, self.kv_idx)

    def to_block_mask(self) -> "BlockMask":
        """FlexAttention's BlockMask of the same token pairs, right for eager as for compiled calls (not the order)."""
        return flex.make_block_mask(
            (self.block_map(), self.mask_bits), (self.q_lengths(), self.k_lengths()), (self.num_q, self.num_k),
            (self.block_q, self.block_k),
        )  # fmt: skip

    def transpose(self) -> tuple[Tensor, Tensor]:
        """The blocks of queries that see each block of keys: (q_num int32 [Bx, Hx, NK], q_idx int32 [Bx, Hx, NK, M']).

        Sorted ascending, so always the same; entries past q_num are 0. Computed once and kept.
        """
        if "transpose" not in self._cache:
            self._cache["transpose"] = convert.lists_from_dense(self.to_dense().transpose(-1, -2))
        return self._cache["transpose"]

    def transpose_mask_idx(self) -> Tensor | None:
        """mask_idx in the order of `transpose`, int32 [Bx, Hx, NK, M'] beside q_idx; None where there are no masks.

        The masks themselves stay as they are: row i of one is still query i. Computed once and kept.
        """
        if self.mask_idx is None:
            return None
        if "transpose_mask_idx" not in self._cache:
            columns = self.block_map().transpose(-1, -2)
            self._cache["transpose_mask_idx"] = masks.masks_beside(*self.transpose(), columns)
        return self._cache["transpose_mask_idx"]

    def keep_transpose(self, q_num: Tensor, q_idx: Tensor, mask_idx: Tensor | None = None) -> "BlockLayout":
        """Take up a transpose that was computed before from the same lists; returns the layout itself."""
        self._cache["transpose"] = (q_num, q_idx)
        if mask_idx is not None:
            self._cache["transpose_mask_idx"] = mask_idx
        return self

    def keeps_every_pair(self) -> bool:
        """Whether this is dense attention: every query sees every key. Computed once and kept."""
        if "keeps_every_pair" not in self._cache:
            pairs = self.num_q * self.num_k * self.kv_num.shape[0] * self.kv_num.shape[1]
            self._cache["keeps_every_pair"] = self.kept_pairs() == pairs
        return self._cache["keeps_every_pair"]

    def kept_pairs(self) -> int:
        """Token pairs (query, key) that count, over the layout's own Bx and Hx. Computed once and kept."""
        if "kept_pairs" not in self._cache:
            lists = (self.listed(), self.kv_idx, self.mask_idx)
            lengths = (self.q_lengths(), self.k_lengths())
            self._cache["kept_pairs"] = masks.kept_pairs(lists, lengths, self.mask_bits, self.block_k)
        return self._cache["kept_pairs"]

    def density(self) -> float:
        """Kept token pairs over all pairs of valid tokens, 0 to 1 (0 where no token is valid)."""
        valid = int(self.q_lengths().sum()) * int(self.k_lengths().sum()) * self.kv_num.shape[0] * self.kv_num.shape[1]
        return self.kept_pairs() / valid if valid else 0.0

    def flops(self, head_dim: int, value_dim: int | None = None, heads: int = 1, batch: int = 1) -> int:
        """Multiplications and additions of one forward: 2 * (head_dim + value_dim) a kept token pair.

        QK^T and PV are counted, the softmax is not. `heads` and `batch` count the query heads and sequences that share
        a layout of size 1 there; where the layout has its own, they must be left at 1 or equal its size (ValueError).
        """
        check_whole("head_dim", head_dim, 1, "a number of channels")
        copies = 1
        for name, asked, own in (("heads", heads, self.kv_num.shape[1]), ("batch", batch, self.kv_num.shape[0])):
            if not is_whole(asked) or asked < 1 or (own > 1 and asked not in (1, own)):
                wanted = f"1 or {own}, as the layout has" if own > 1 else "at least 1"
                raise ValueError(f"{name} is {asked}; expected {wanted}")
            copies *= asked if own == 1 else 1
        return 2 * (head_dim + (head_dim if value_dim is None else value_dim)) * self.kept_pairs() * copies

    def bytes(self) -> int:
        """Bytes of the tensors held, the transpose (built when first asked for) not counted."""
        return sum(value.numel() * value.element_size() for value in self._tensors().values())

    def listed(self) -> Tensor:
        """Which entries of the lists count, bool [Bx, Hx, NQ, M]."""
        return torch.arange(self.kv_idx.shape[-1], device=self.device) < self.kv_num[..., None]

    def _tensors(self) -> dict[str, Tensor]:
        names = ("kv_num", "kv_idx", "q_len", "k_len", "mask_idx", "mask_bits", "perm", "inv_perm")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def __repr__(self) -> str:
        return (
            f"BlockLayout({self.num_q} x {self.num_k} tokens, blocks of {self.block_q} x {self.block_k}, "
            f"lists {list(self.kv_idx.shape)} on {self.device})"
        )

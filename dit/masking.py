"""Tokens that are kept, one set a picture: taking them out of all tokens and putting them back.

With deferred masking (MicroDiT, arXiv 2407.15811, section 2.2) the others leave the network behind its first blocks;
with routing (TREAD, arXiv 2501.04765) they pass some blocks by and come back. Which tokens are kept is drawn in
training; a network only follows.

Shape suffixes: B batch, N tokens, K kept tokens, C channels.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Span = tuple[int, int]
"""First block and the one behind the last."""


def check_keep(keep_BK: Tensor, batch: int, num_tokens: int) -> None:
    """Raise ValueError unless keep holds for each of `batch` pictures the numbers of some of its tokens, once each.

    Values are looked at on a CPU only.
    """
    expected = f"int64 [{batch}, kept tokens], 1 to {num_tokens} of them a picture"
    if not isinstance(keep_BK, Tensor) or keep_BK.dtype != torch.int64 or keep_BK.ndim != 2:
        given = f"{keep_BK.dtype} {list(keep_BK.shape)}" if isinstance(keep_BK, Tensor) else type(keep_BK).__name__
        raise ValueError(f"keep is {given}; it must be {expected}.")
    if keep_BK.shape[0] != batch or not 1 <= keep_BK.shape[1] <= num_tokens:
        raise ValueError(f"keep is of shape {list(keep_BK.shape)}; it must be {expected}.")
    if keep_BK.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(end) for end in keep_BK.aminmax())
    if low < 0 or high >= num_tokens:
        raise ValueError(f"keep holds {low if low < 0 else high}; it must hold numbers from 0 to {num_tokens - 1}.")
    if (keep_BK.sort(dim=1).values.diff(dim=1) == 0).any():
        raise ValueError("keep names a token twice; it must name each at most once a picture.")


def check_span(span: Span, num_blocks: int) -> None:
    """Raise ValueError unless span is (first block, end) of at least one of `num_blocks` blocks."""
    if len(span) != 2 or not 0 <= span[0] < span[1] <= num_blocks:
        raise ValueError(
            f"bypass is {tuple(span)}; it must be the first block and the one behind the last, of {num_blocks} blocks."
        )


class Masked(Protocol):
    """What a configuration says of what masking depends on."""

    @property
    def segments(self) -> str | None: ...
    @property
    def num_layers(self) -> int: ...


def check_masking(shape: Masked, keep: Tensor | None, bypass: Span | None, *, given_pass: bool) -> None:
    """Raise ValueError where bypass comes without keep, with segments, or out of range, or keep with a module_pass."""
    if keep is not None and given_pass:
        raise ValueError("module_pass is given with keep; tokens can be dropped only where the modules run themselves.")
    if bypass is None:
        return
    if keep is None:
        raise ValueError(f"bypass is {tuple(bypass)} and keep is None; keep must say which tokens do not pass.")
    if shape.segments is not None:
        raise ValueError(f"bypass is {tuple(bypass)}; it must be None with segments, which pass blocks by themselves.")
    check_span(bypass, shape.num_layers)


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """index: numbers of the kept image tokens, int64 [B, K], in the order in which they run through the network.
    whole: tokens in front (text) that are always kept."""

    index: Tensor
    whole: int = 0

    def take(self, x_BNC: Tensor) -> Tensor:
        """The whole tokens and the kept ones of [B, whole + N, C]: [B, whole + K, C]."""
        return x_BNC.gather(1, self._places(x_BNC))

    def rows(self) -> Tensor:
        """Places in the whole sequence, int64 [B, whole + K]."""
        if not self.whole:
            return self.index
        front = torch.arange(self.whole, device=self.index.device).expand(len(self.index), -1)
        return torch.cat([front, self.index + self.whole], dim=1)

    def put_back(self, x_BNC: Tensor, kept_BKC: Tensor) -> Tensor:
        """x with the whole tokens and the kept ones replaced."""
        return x_BNC.scatter(1, self._places(x_BNC), kept_BKC)

    def fill(self, kept_BKC: Tensor, filler_C: Tensor, num_tokens: int) -> Tensor:
        """The kept image tokens among num_tokens, the others all `filler`: [B, N, C]. Without whole tokens."""
        buffer = filler_C.to(kept_BKC.dtype).expand(len(kept_BKC), num_tokens, -1)
        return buffer.scatter(1, self.index[..., None].expand_as(kept_BKC), kept_BKC)

    def _places(self, x_BNC: Tensor) -> Tensor:
        return self.rows()[..., None].expand(-1, -1, x_BNC.shape[2])

"""The order in which the blocks of a network run, and what may stand in the place of its sparse-dense token modules.

Shape suffixes: B batch, N dense tokens, C hidden size.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from mezzotint.dit.segment_layout import Role, module_span
from mezzotint.dit.segments import TokenGrids

Rows = Sequence[int] | None
"""Some rows of a batch; None is all of them."""

RunBlock = Callable[[int, Tensor, Tensor | None], Tensor]
"""(index of the block, its tokens, the tokens of the other density that it attends to) to its tokens."""

RunModules = Callable[[Rows], Tensor]
"""All modules on some rows of a batch: the tokens that leave them [rows, N, C]."""

ModulePass = Callable[[Tensor, Tensor, RunModules], Tensor]
"""What is called once a pass where the modules are, such as a cache: (tokens before the first block, tokens that enter
the modules, the modules) to the tokens that leave them, all [B, N, C] and dense. Token counts change only within."""


class Segmented(Protocol):
    """What a configuration says of its segments."""

    @property
    def segments(self) -> str | None: ...
    @property
    def roles(self) -> tuple[Role, ...]: ...


def skip_modules(embedded_BNC: Tensor, entering_BNC: Tensor, run_modules: RunModules) -> Tensor:
    """A ModulePass that leaves the modules out (path-drop, SPRINT, arXiv 2510.21986)."""
    return entering_BNC


def run_blocks(
    shape: Segmented, tokens_BNC: Tensor, grids: TokenGrids, run_rows: Callable[[Rows], RunBlock],
    module_pass: ModulePass | None = None,
) -> Tensor:
    """All blocks in order.

    run_rows: what runs the blocks on some rows of the batch.
    module_pass: stands in the place of the sparse-dense modules; None runs them. Raises ValueError where it is given
        and the network has no segments.
    """
    run, roles = run_rows(None), shape.roles
    if module_pass is None:
        return run_segments(roles, tokens_BNC, grids, run)
    span = module_span(shape.segments)
    entering_BNC = run_segments(roles[: span.start], tokens_BNC, grids, run)

    def modules(rows: Rows) -> Tensor:
        chosen, run_chosen = (entering_BNC, run) if rows is None else (entering_BNC[rows], run_rows(rows))
        return run_segments(roles[span.start : span.stop], chosen, grids, run_chosen, first=span.start)

    leaving_BNC = module_pass(tokens_BNC, entering_BNC, modules)
    return run_segments(roles[span.stop :], leaving_BNC, grids, run, first=span.stop)


def run_segments(
    roles: Sequence[Role], tokens_BNC: Tensor, grids: TokenGrids, run: RunBlock, *, first: int = 0
) -> Tensor:
    """Blocks in order. A recovery block is handed the dense tokens that entered its module, and merges itself.

    roles: of blocks first, first + 1, ...; it holds a module whole or not at all.
    """
    dense = sparse = tokens_BNC
    for index, role in enumerate(roles, start=first):
        if role == "generation":
            sparse = run(index, grids.pool(dense), dense)
        elif role == "sparse":
            sparse = run(index, sparse, None)
        elif role == "recovery":
            dense = run(index, dense, sparse)
        else:
            dense = run(index, dense, None)
    return dense

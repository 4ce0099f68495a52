"""Step caches: what the sparse-dense modules added to the tokens at one step stands in for them at others.

The residual of all modules together, tokens that leave minus tokens that enter, is kept on the dense tokens, since
token counts change within. Blocks below and above the modules always run. A row is one branch of guidance of one
picture; each decides by itself. A cache belongs to one drawing.

Shape suffixes: R rows of a pass, N dense tokens, C hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mezzotint.dit.block_order import ModulePass, RunModules
from mezzotint.sampling.cache_presets import FIRST_BLOCK, TAYLOR, CacheSetting


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ModuleRun:
    """A row when its modules ran: at which step, what they added to the tokens [N, C], and what the blocks below them
    had added [N, C]."""

    step: int
    residual: Tensor
    below: Tensor


class ModuleCache(ABC):
    """Stands in the place of the modules at each pass of a drawing, and keeps the last two runs of each row."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[ModuleRun, ...]] = {}

    def at(self, step: int, rows: Sequence[int]) -> ModulePass:
        """What stands there for some rows at a step. Rows are numbered over the whole drawing."""

        def module_pass(embedded_RNC: Tensor, entering_RNC: Tensor, run_modules: RunModules) -> Tensor:
            below_RNC = entering_RNC - embedded_RNC
            runs = [self._runs.get(row, ()) for row in rows]
            reused = self._reused(step, runs, below_RNC) if all(runs) else [False] * len(rows)
            fresh = [place for place, reuse in enumerate(reused) if not reuse]
            if len(fresh) == len(rows):
                leaving_RNC = run_modules(None)
            else:
                leaving_RNC = entering_RNC.clone()
                for place in set(range(len(rows))).difference(fresh):
                    leaving_RNC[place] += self._estimate(step, runs[place])
                if fresh:
                    leaving_RNC[fresh] = run_modules(fresh)
            for place in fresh:
                residual = leaving_RNC[place] - entering_RNC[place]
                run = ModuleRun(step=step, residual=residual, below=below_RNC[place].clone())
                self._runs[rows[place]] = (*runs[place][-1:], run)
            return leaving_RNC

        return module_pass

    @abstractmethod
    def _reused(self, step: int, runs: Sequence[tuple[ModuleRun, ...]], below_RNC: Tensor) -> list[bool]:
        """Whether each row takes its residual from the cache. All have run before."""

    @abstractmethod
    def _estimate(self, step: int, runs: tuple[ModuleRun, ...]) -> Tensor:
        """The residual [N, C] of a row at a step."""


class FirstBlockCache(ModuleCache):
    """The last residual again, while what the blocks below the modules add has changed little since then: by less than
    a threshold, as mean absolute change over mean absolute value (first-block cache of ParaAttention, and diffusers'
    FirstBlockCache, here with all blocks below the modules as the first one)."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def _reused(self, step: int, runs: Sequence[tuple[ModuleRun, ...]], below_RNC: Tensor) -> list[bool]:
        then_RNC = torch.stack([each[-1].below for each in runs]).float()
        change_R = (below_RNC.float() - then_RNC).abs().mean(dim=(1, 2)) / then_RNC.abs().mean(dim=(1, 2))
        return (change_R < self.threshold).tolist()

    def _estimate(self, step: int, runs: tuple[ModuleRun, ...]) -> Tensor:
        return runs[-1].residual


class TaylorCache(ModuleCache):
    """The residual on the straight line through its last two values over the steps (TaylorSeer of order 1, arXiv
    2503.06923), at steps that are fixed beforehand."""

    def __init__(self, reused: Sequence[bool | None]) -> None:
        """reused: for each step whether modules are left out."""
        super().__init__()
        self.reused = tuple(reused)

    def _reused(self, step: int, runs: Sequence[tuple[ModuleRun, ...]], below_RNC: Tensor) -> list[bool]:
        return [bool(self.reused[step])] * len(runs)

    def _estimate(self, step: int, runs: tuple[ModuleRun, ...]) -> Tensor:
        first, last = runs[0], runs[-1]
        if first.step == last.step:
            return last.residual
        return torch.lerp(first.residual, last.residual, (step - first.step) / (last.step - first.step))


def make_cache(setting: CacheSetting, num_steps: int) -> ModuleCache | None:
    """A new cache for one drawing; None for off."""
    if setting.kind == FIRST_BLOCK:
        return FirstBlockCache(setting.threshold)
    return TaylorCache(setting.reused(num_steps)) if setting.kind == TAYLOR else None

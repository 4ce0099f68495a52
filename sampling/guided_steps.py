"""The passes of one drawing: which branches of which pictures run on which grid, through which cache.

Nothing here knows what a pipeline's network is conditioned on, so pipelines of any kind use it.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from torch import Tensor

from mezzotint.dit.block_order import ModulePass, RunModules, skip_modules
from mezzotint.dit.config import DiTConfig
from mezzotint.dit.density import Grid
from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.sampling.branches import Branch, step_branches, usable_cache
from mezzotint.sampling.cache import make_cache
from mezzotint.sampling.cache_presets import CacheSetting
from mezzotint.sampling.pass_cost import pass_flops

RunPass = Callable[[list[int], Grid | None, ModulePass | None], Tensor]
"""(rows, sparse grid, what stands in the place of the modules) to the network's prediction [rows, ...]. A row is a
branch of a picture: below the number of pictures it is that picture's conditional branch, and num_pictures + i is the
guidance's branch of picture i."""


class GuidedSteps:
    """Runs the passes of a drawing step by step, and counts what was computed. It holds the drawing's cache."""

    def __init__(self, steps: Sequence[tuple[Branch, ...]], num_pictures: int, cache: CacheSetting) -> None:
        """steps: the branches of each step, as `branches.step_branches` gives them."""
        self._steps, self._num_pictures = steps, num_pictures
        self._cache = make_cache(cache, len(steps))
        self._rows_run = 0
        self._modules_run: Counter[Grid | None] = Counter()

    @property
    def num_steps(self) -> int:
        return len(self._steps)

    @property
    def module_passes(self) -> int:
        """How often the modules ran so far, counted over pictures, steps and branches."""
        return self._modules_run.total()

    def predict(self, step: int, pictures: Sequence[int], run: RunPass) -> list[Tensor]:
        """The prediction of each branch for some pictures: the conditional one, then the guidance's where it runs.

        Branches that compute alike share a pass.
        """
        branches = self._steps[step]
        predicted: dict[int, Tensor] = {}
        for branch in dict.fromkeys(branches):
            alike = [place for place, each in enumerate(branches) if each == branch]
            rows = [place * self._num_pictures + picture for place in alike for picture in pictures]
            out = run(rows, branch.sparse_grid, self._module_pass(step, branch, rows))
            predicted |= zip(alike, out.chunk(len(alike)), strict=True)
        return [predicted[place] for place in range(len(branches))]

    def flops(self, config: DiTConfig | ClassDiTConfig, grid: Grid) -> int:
        """FLOPs of the network's passes so far, as `pass_cost` counts them."""
        outside = pass_flops(config, grid, None, modules=False)
        modules = sum(
            count * (pass_flops(config, grid, cells) - outside) for cells, count in self._modules_run.items()
        )
        return self._rows_run * outside + modules

    def _module_pass(self, step: int, branch: Branch, rows: list[int]) -> ModulePass | None:
        self._rows_run += len(rows)
        if branch.skips_modules:
            return skip_modules
        if self._cache is None:
            self._modules_run[branch.sparse_grid] += len(rows)
            return None
        return self._counted(self._cache.at(step, rows), branch.sparse_grid)

    def _counted(self, module_pass: ModulePass, grid: Grid | None) -> ModulePass:
        def counting(embedded_RNC: Tensor, entering_RNC: Tensor, run_modules: RunModules) -> Tensor:
            def run(places: Sequence[int] | None) -> Tensor:
                self._modules_run[grid] += len(entering_RNC if places is None else places)
                return run_modules(places)

            return module_pass(embedded_RNC, entering_RNC, run)

        return counting


def begin_steps(
    config: DiTConfig | ClassDiTConfig, density: str | None, guidance_density: str | None, cache: str | None, *,
    guided: bool, num_steps: int, grid: Grid, num_pictures: int,
) -> GuidedSteps:
    """The steps of a drawing by the settings of a request, whose None are full, same and off.

    guided: whether guidance runs. grid: the full grid of (rows, columns).
    Raises RequestError naming the setting, its value and what there is.
    """
    steps = step_branches(
        config, "this model", density, guidance_density, guided=guided, num_steps=num_steps, grid=grid
    )
    return GuidedSteps(steps, num_pictures, usable_cache(config, "this model", cache))

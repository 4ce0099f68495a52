"""What the networks over latents share: patches, fixed positions, the order of their blocks, guidance on a batch.

Shape suffixes: B batch, c channels, H rows, W columns of a latent, N tokens, C hidden size.
"""

from functools import lru_cache

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from mezzotint.dit.block_order import ModulePass, Rows, RunBlock, run_blocks
from mezzotint.dit.blocks import ModulatedBlock
from mezzotint.dit.density import Grid
from mezzotint.dit.latent_config import LatentConfig
from mezzotint.dit.layers import patchify
from mezzotint.dit.positions import sincos_table
from mezzotint.dit.segments import TokenGrids
from mezzotint.dit.surroundings import Surroundings


class LatentNetwork(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Subclasses call `_embed` and `_transform`, and hold `blocks`."""

    _supports_gradient_checkpointing = True
    blocks: nn.ModuleList

    def __init__(self, shape: LatentConfig, position_scale: float = 1.0) -> None:
        super().__init__()
        self.shape, self._position_scale = shape, position_scale
        self.patch_embed = nn.Linear(shape.patch_values, shape.hidden_size)
        self.reset_positions()
        self.gradient_checkpointing = False

    def reset_positions(self) -> None:
        """Fixed positions of the training grid [N, C]. Saved with the weights, as the original checkpoints do."""
        grid, weight = self.shape.own_grid, self.patch_embed.weight
        positions = sincos_table(grid, self.shape.hidden_size, grid, self._position_scale)
        self.positions = nn.Parameter(positions.to(weight.device, weight.dtype), requires_grad=False)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Xavier everywhere; merging starts as the dense tokens."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ModulatedBlock) and module.merge is not None:
                module.merge.reset()

    def _embed(self, x_BcHW: Tensor) -> tuple[Tensor, Grid]:
        """Latents to tokens with their positions [B, N, C], and the token grid."""
        grid = self.shape.grid(x_BcHW.shape[-2], x_BcHW.shape[-1])
        patches = patchify(x_BcHW.to(self.dtype), self.shape.patch_size)
        return self.patch_embed(patches) + self._positions_of(grid), grid

    def _positions_of(self, grid: Grid) -> Tensor:
        """Positions [N, C]; grids other than the trained one are stretched to it."""
        if grid == self.shape.own_grid:
            return self.positions
        table = _cached_positions(grid, self.shape.hidden_size, self.shape.own_grid, self._position_scale)
        return table.to(self.device, self.dtype)

    def _transform(
        self, tokens: Tensor, full: Grid, sparse: Grid | None, given: list[Tensor], around: Surroundings,
        module_pass: ModulePass | None,
    ) -> Tensor:
        """All blocks. given: what each modulates by, one for all or one a block."""
        grids = TokenGrids(
            full=full, sparse=self.shape.sparse_grid(sparse, full), frames=around.frames,
            positions=self._positions_of(full) if self.shape.readd_positions else None,
        )

        def run_rows(rows: Rows) -> RunBlock:
            own, chosen = around.of_rows(rows), given if rows is None else [each[rows] for each in given]

            def run(index: int, x: Tensor, other: Tensor | None) -> Tensor:
                return self._run_block(index, x, chosen[index % len(chosen)], own.seeing(other, grids))

            return run

        return run_blocks(self.shape, tokens, grids, run_rows, module_pass)

    def _run_block(self, index: int, x: Tensor, given: Tensor, around: Surroundings) -> Tensor:
        return self._run(self.blocks[index], x, given, around)

    def _run(self, block: nn.Module, *inputs: object) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)


_cached_positions = lru_cache(maxsize=64)(sincos_table)


def guided_halves(out: Tensor, scale: float, num_channels: int, channel_dim: int) -> Tensor:
    """Classifier-free guidance within a batch whose first half is conditional and whose second is not.

    The first num_channels along channel_dim become unconditional + scale * (conditional - unconditional) in both
    halves; the rest stays as it is.
    """
    guided, rest = out.split([num_channels, out.shape[channel_dim] - num_channels], dim=channel_dim)
    wanted, unwanted = guided.chunk(2)
    mixed = torch.lerp(unwanted, wanted, scale)
    return torch.cat([torch.cat([mixed, mixed]), rest], dim=channel_dim)

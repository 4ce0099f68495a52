"""A class-conditional diffusion transformer over latents (DiT, arXiv 2212.09748), dense or in segments of different
token density (FlexDiT / SparseDiT, arXiv 2412.06028).

Shape suffixes: B batch, c latent channels, N tokens, C hidden size.
"""

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mezzotint.dit.adaln_blocks import AdaLNBlock, initialise_adaln
from mezzotint.dit.block_order import ModulePass
from mezzotint.dit.blocks import FinalLayer
from mezzotint.dit.class_condition import ClassCondition
from mezzotint.dit.density import Grid
from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.dit.latent_network import LatentNetwork, guided_halves
from mezzotint.dit.layers import unpatchify
from mezzotint.dit.surroundings import Surroundings


class ClassDiT(LatentNetwork):
    """Predicts the noise in a latent (and the variance of the step) from its timestep and class label.

    The arguments are those of `ClassDiTConfig`, where each is described; the saved config.json holds them.
    """

    _no_split_modules = ("AdaLNBlock",)
    shape: ClassDiTConfig
    GUIDED_CHANNELS = 3
    """Channels that `forward_with_cfg` guides: all but one of four, as DiT's own code has it, for its numbers."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 1152,
        num_layers: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        learn_sigma: bool = True,
        segments: str | None = None,
        default_grid: Grid | None = None,
        readd_positions: bool = False,
        num_classes: int = 1000,
        null_class: bool = True,
        condition_per_block: bool = False,
        frequency_shift: int = 0,
        mlp_norm_eps: float = 1e-6,
    ) -> None:
        shape = ClassDiTConfig.from_mapping(self.config)
        super().__init__(shape)
        copies = num_layers if condition_per_block else 1
        self.conditions = nn.ModuleList(ClassCondition(shape) for _ in range(copies))
        self.blocks = nn.ModuleList(AdaLNBlock(shape, role) for role in shape.roles)
        self.final = FinalLayer(shape)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        super()._initialise()
        initialise_adaln(self)
        nn.init.zeros_(self.final.linear.weight)

    def forward(
        self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None, grid: Grid | None = None, *,
        module_pass: ModulePass | None = None,
    ) -> Tensor:
        """Predict.

        x: noisy latents [B, c, H, W]; H and W multiples of patch_size.
        timestep: [B], 0 to 999 (may be fractional). class_labels: [B]; num_classes is no label.
        grid: rows and columns of the sparse tokens, at most the full grid; None takes default_grid.
        module_pass: stands in the place of the sparse-dense modules of a network with segments; None runs them.
        Returns [B, c, H, W] in the network's dtype, or [B, 2c, H, W] with learn_sigma: the noise, then the variance.
        Raises ValueError where a size does not fit.
        """
        tokens, full = self._embed(x)
        conditions = [embed(timestep, class_labels) for embed in self.conditions]
        tokens = self._transform(tokens, full, grid, conditions, Surroundings(), module_pass)
        return unpatchify(self.final(tokens, conditions[0]), full, self.shape.patch_size)

    def forward_with_cfg(
        self, x: Tensor, timestep: Tensor, class_labels: Tensor, scale: float, grid: Grid | None = None
    ) -> Tensor:
        """Guidance in one pass over a doubled batch: labels in the first half, num_classes in the second.

        x: its first half is drawn in both. Guides the first three channels only (DiT's own code, which explains it by
        reproducibility). Returns what `forward` does, both halves guided alike.
        """
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), timestep, class_labels, grid)
        return guided_halves(out, scale, self.GUIDED_CHANNELS, channel_dim=1)

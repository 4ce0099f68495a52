"""A text-conditioned diffusion transformer over latents (PixArt-alpha, arXiv 2310.00426): cross-attention to text, one
modulation table for all blocks; dense or in segments of different token density.

Shape suffixes: B batch, c latent channels, N tokens, L text tokens, C hidden size.
"""

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mezzotint.dit.attention import text_mask_without_empty_rows
from mezzotint.dit.block_order import ModulePass
from mezzotint.dit.blocks import Block
from mezzotint.dit.density import Grid
from mezzotint.dit.latent_config import PixArtConfig
from mezzotint.dit.latent_network import LatentNetwork
from mezzotint.dit.layers import ModulatedNorm, VectorEmbed, sinusoid, unpatchify
from mezzotint.dit.segment_layout import Role
from mezzotint.dit.surroundings import Surroundings


class PixArt(LatentNetwork):
    """Predicts the noise in a latent (and the variance of the step) from its timestep and its text.

    The arguments are those of `PixArtConfig`, where each is described; the saved config.json holds them.
    """

    _no_split_modules = ("PixArtBlock",)
    shape: PixArtConfig

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
        text_size: int = 4096,
        size_conditions: bool = False,
        position_scale: float = 1.0,
    ) -> None:
        shape = PixArtConfig.from_mapping(self.config)
        super().__init__(shape, position_scale)
        self.text_embed = TextEmbed(text_size, hidden_size)
        self.time_embed = VectorEmbed(256, hidden_size)
        self.size_embed = VectorEmbed(256, hidden_size // 3) if size_conditions else None
        self.aspect_embed = VectorEmbed(256, hidden_size // 3) if size_conditions else None
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)
        self.blocks = nn.ModuleList(PixArtBlock(shape, role) for role in shape.roles)
        self.final = TableFinalLayer(shape)
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        super()._initialise()
        for module in self.modules():
            if isinstance(module, PixArtBlock | TableFinalLayer):
                nn.init.normal_(module.table, std=self.shape.hidden_size**-0.5)
            if isinstance(module, PixArtBlock) and module.cross is not None:
                nn.init.zeros_(module.cross.proj.weight)
        nn.init.zeros_(self.final.linear.weight)

    def forward(
        self, x: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor | None = None, grid: Grid | None = None, *,
        sizes: Tensor | None = None, aspect_ratios: Tensor | None = None, module_pass: ModulePass | None = None,
    ) -> Tensor:
        """Predict.

        x: noisy latents [B, c, H, W]; H and W multiples of patch_size. timestep: [B], 0 to 999.
        text: encoded text tokens [B, L, T]; text_mask: bool [B, L], True where a token counts.
        grid: rows and columns of the sparse tokens, at most the full grid; None takes default_grid.
        sizes, aspect_ratios: height and width in pixels [B, 2] and height over width [B], with size_conditions only.
        module_pass: stands in the place of the sparse-dense modules of a network with segments; None runs them.
        Returns [B, c, H, W] in the network's dtype, or [B, 2c, H, W] with learn_sigma: the noise, then the variance.
        Raises ValueError where a size does not fit, or where size conditions are missing or not asked for.
        """
        tokens, full = self._embed(x)
        words = self.text_embed(text.to(self.dtype))
        time = self._condition(timestep, sizes, aspect_ratios)
        shared = self.modulation(F.silu(time)).unflatten(1, (6, -1))
        around = Surroundings(text=words, text_mask=text_mask_without_empty_rows(text_mask, words))
        tokens = self._transform(tokens, full, grid, [shared], around, module_pass)
        return unpatchify(self.final(tokens, time), full, self.shape.patch_size)

    def _condition(self, timestep: Tensor, sizes: Tensor | None, aspect_ratios: Tensor | None) -> Tensor:
        """Embedded time, height, width and aspect ratio [B, C]."""
        if (self.size_embed is None) != (sizes is None) or (sizes is None) != (aspect_ratios is None):
            needed = "must both be given" if self.shape.size_conditions else "must be None"
            raise ValueError(f"sizes and aspect_ratios {needed}; size_conditions is {self.shape.size_conditions}.")
        time = self.time_embed(self._features(timestep))
        if self.size_embed is None or self.aspect_embed is None or sizes is None or aspect_ratios is None:
            return time
        sides = self.size_embed(self._features(sizes.flatten())).unflatten(0, (-1, 2)).flatten(1)
        return time + torch.cat([sides, self.aspect_embed(self._features(aspect_ratios.flatten()))], dim=1)

    def _features(self, numbers: Tensor) -> Tensor:
        return sinusoid(numbers, scale=1.0).to(self.dtype)


class PixArtBlock(Block):
    """Cross-attention reads the tokens as they are, without a norm (PixArt's own code)."""

    def __init__(self, config: PixArtConfig, role: Role = "dense") -> None:
        super().__init__(config, role)
        self.cross_norm = nn.Identity()


class TableFinalLayer(nn.Module):
    """Norm, modulation by a table of its own and the time, and a Linear to the values of each patch."""

    def __init__(self, config: PixArtConfig) -> None:
        super().__init__()
        self.norm = ModulatedNorm(config)
        self.table = nn.Parameter(torch.zeros(2, config.hidden_size))
        self.linear = nn.Linear(config.hidden_size, config.output_values)

    def forward(self, x_BNC: Tensor, time_BC: Tensor) -> Tensor:
        shift, scale = (self.table + time_BC[:, None]).unbind(1)
        return self.linear(self.norm(x_BNC, shift, scale))


class TextEmbed(nn.Module):
    """Text tokens to the hidden size: Linear, tanh-GELU, Linear."""

    def __init__(self, text_size: int, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(text_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, text_BLT: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(text_BLT), approximate="tanh"))

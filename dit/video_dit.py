"""A space-time diffusion transformer over the latents of a clip (Latte, arXiv 2401.03048, variant 1), dense or in
segments of different token density: pooling and recovery work within each frame, on pairs of blocks.

Shape suffixes: B batch, T frames, c latent channels, N tokens of a frame, C hidden size.
"""

from functools import lru_cache

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from mezzotint.dit.adaln_blocks import SpaceTimePair, initialise_adaln
from mezzotint.dit.block_order import ModulePass
from mezzotint.dit.blocks import FinalLayer
from mezzotint.dit.class_condition import ClassCondition
from mezzotint.dit.density import Grid
from mezzotint.dit.latent_config import VideoDiTConfig
from mezzotint.dit.latent_network import LatentNetwork, guided_halves
from mezzotint.dit.layers import unpatchify
from mezzotint.dit.positions import line_table
from mezzotint.dit.surroundings import Surroundings


class VideoDiT(LatentNetwork):
    """Predicts the noise in a clip's latents from its timestep, and its class label where it has classes.

    The arguments are those of `VideoDiTConfig`, where each is described; the saved config.json holds them.
    """

    _no_split_modules = ("SpaceTimePair",)
    shape: VideoDiTConfig

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
        num_classes: int = 0,
        null_class: bool = True,
        num_frames: int = 16,
    ) -> None:
        shape = VideoDiTConfig.from_mapping(self.config)
        super().__init__(shape)
        self.frame_positions = nn.Parameter(
            line_table(torch.arange(num_frames), hidden_size), requires_grad=False
        )
        self.conditions = nn.ModuleList([ClassCondition(shape)])
        self.blocks = nn.ModuleList(SpaceTimePair(shape, role) for role in shape.roles)
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

        x: noisy latents [B, T, c, H, W]; H and W multiples of patch_size.
        timestep: [B], 0 to 999 (may be fractional). class_labels: [B], num_classes is no label; None without classes.
        grid: rows and columns of the sparse tokens of a frame, at most the full grid; None takes default_grid.
        module_pass: stands in the place of the sparse-dense modules of a network with segments; None runs them.
        Returns [B, T, c, H, W] in the network's dtype, or 2c channels with learn_sigma: the noise, then the variance.
        Raises ValueError where a size does not fit.
        """
        num_clips, num_frames = x.shape[:2]
        tokens, full = self._embed(x.flatten(0, 1))
        tokens = tokens.unflatten(0, (num_clips, num_frames)).flatten(1, 2)
        condition = self.conditions[0](timestep, class_labels)
        tokens = self._transform(tokens, full, grid, [condition], Surroundings(frames=num_frames), module_pass)
        patches = self.final(tokens, condition).unflatten(1, (num_frames, -1)).flatten(0, 1)
        return unpatchify(patches, full, self.shape.patch_size).unflatten(0, (num_clips, num_frames))

    def _run_block(self, index: int, x: Tensor, given: Tensor, around: Surroundings) -> Tensor:
        first = (self._frame_positions_of(around.frames),) if index == 0 else ()
        return self._run(self.blocks[index], x, given, around, *first)

    def _frame_positions_of(self, num_frames: int) -> Tensor:
        if num_frames == self.shape.num_frames:
            return self.frame_positions
        return _cached_frames(num_frames, self.shape.hidden_size).to(self.device, self.dtype)

    def forward_with_cfg(
        self, x: Tensor, timestep: Tensor, class_labels: Tensor, scale: float, grid: Grid | None = None
    ) -> Tensor:
        """Guidance in one pass over a doubled batch: labels in the first half, num_classes in the second.

        x: its first half is drawn in both. Guides all channels of the noise. Returns what `forward` does.
        """
        half = x[: len(x) // 2]
        out = self(torch.cat([half, half]), timestep, class_labels, grid)
        return guided_halves(out, scale, self.shape.in_channels, channel_dim=2)


@lru_cache(maxsize=64)
def _cached_frames(num_frames: int, hidden_size: int) -> Tensor:
    return line_table(torch.arange(num_frames), hidden_size)

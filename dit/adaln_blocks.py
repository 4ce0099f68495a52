"""Blocks with a modulation of their own (adaLN-Zero, DiT section 3.2), for pictures and for space and time.

Shape suffixes: B batch, T frames, N tokens of a frame, C hidden size. The tokens of a clip are one sequence
[B, T N, C], frame by frame.
"""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from mezzotint.dit.blocks import FinalLayer, ModulatedBlock
from mezzotint.dit.class_condition import ClassCondition
from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.dit.segment_layout import Role
from mezzotint.dit.surroundings import Surroundings


class AdaLNBlock(ModulatedBlock):
    """Each block makes its six vectors from the condition by a Linear of its own."""

    def __init__(self, config: ClassDiTConfig, role: Role = "dense") -> None:
        super().__init__(config, role, config.mlp_norm_eps)
        self.modulation = nn.Linear(config.hidden_size, 6 * config.hidden_size)

    def modulate(self, given: Tensor) -> Sequence[Tensor]:
        """given: the condition [B, C], behind its SiLU."""
        return self.modulation(given).chunk(6, dim=1)


def initialise_adaln(network: nn.Module) -> None:
    """Small embeddings of time and label, and all modulation zero: every block starts as the identity."""
    for module in network.modules():
        if isinstance(module, ClassCondition):
            module.initialise()
        elif isinstance(module, AdaLNBlock | FinalLayer):
            nn.init.zeros_(module.modulation.weight)


class SpatialBlock(AdaLNBlock):
    """Tokens attend within their frame."""

    def mix(self, x_BNC: Tensor, other_BMC: Tensor | None, around: Surroundings) -> Tensor:
        def frames(tokens: Tensor) -> Tensor:
            return tokens.unflatten(1, (around.frames, -1)).flatten(0, 1)

        maps = frames(x_BNC)
        mixed = super().mix(maps, None if other_BMC is None else frames(other_BMC), around)
        return mixed.expand(-1, maps.shape[1], -1).unflatten(0, (len(x_BNC), -1)).flatten(1, 2)


class TemporalBlock(AdaLNBlock):
    """Tokens attend to those at the same place in all frames."""

    def mix(self, x_BNC: Tensor, other_BMC: Tensor | None, around: Surroundings) -> Tensor:
        places = x_BNC.unflatten(1, (around.frames, -1)).transpose(1, 2).flatten(0, 1)
        mixed = super().mix(places, None, around)
        return mixed.unflatten(0, (len(x_BNC), -1)).transpose(1, 2).flatten(1, 2)


class SpaceTimePair(nn.Module):
    """A spatial block in its role, then a temporal one on the tokens that it leaves (Latte, arXiv 2401.03048, variant
    1): density changes within each frame, and the frame axis stays as it is."""

    def __init__(self, config: ClassDiTConfig, role: Role = "dense") -> None:
        super().__init__()
        self.spatial = SpatialBlock(config, role)
        self.temporal = TemporalBlock(config)

    def forward(
        self, x_BNC: Tensor, given: Tensor, around: Surroundings, frame_positions_TC: Tensor | None = None
    ) -> Tensor:
        """frame_positions: added between the two blocks, where frames meet for the first time."""
        x_BNC = self.spatial(x_BNC, given, around)
        if frame_positions_TC is not None:
            x_BNC = x_BNC + frame_positions_TC.repeat_interleave(x_BNC.shape[1] // around.frames, dim=0)
        return self.temporal(x_BNC, given, replace(around, other=None))

"""Shapes of the networks over latents, by class labels or by text: frozen, validated, and free of torch.

The same values live in a model folder's config.json. A latent is an autoencoder's map of a picture, an eighth of it
in each direction.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from mezzotint.dit.config import Mlp, Norm
from mezzotint.dit.density import Grid, check_sparse_grid
from mezzotint.dit.segment_layout import Role, roles_of, sparse_grid_of


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentConfig:
    """What the networks over latents share.

    sample_size: side of the training latents; any multiple of patch_size can be sampled.
    learn_sigma: the network also returns the variance of its step, in as many channels again (arXiv 2102.09672).
    segments: layout of token density as `SegmentLayout` writes it, "1 + 4x[1,3,1,1] + 3"; None is a dense network.
    default_grid: rows and columns of the sparse tokens where a call gives none; None is the full grid.
    readd_positions: add the fixed positions again where tokens become sparse and where they become dense (one reading
        of arXiv 2412.06028; its code adds them once).
    Raises ValueError naming the setting, its value and what it must be.
    """

    sample_size: int = 32
    in_channels: int = 4
    patch_size: int = 2
    hidden_size: int = 1152
    num_layers: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    learn_sigma: bool = True
    segments: str | None = None
    default_grid: Grid | None = None
    readd_positions: bool = False

    def __post_init__(self) -> None:
        for name in ("sample_size", "in_channels", "patch_size", "hidden_size", "num_layers", "num_heads", "mlp_ratio"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0.")
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"sample_size is {self.sample_size}; it must be a multiple of patch_size {self.patch_size}."
            )
        if self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of num_heads {self.num_heads}, and of 4 for "
                "the sines and cosines of rows and columns."
            )
        if self.default_grid is not None:
            object.__setattr__(self, "default_grid", tuple(self.default_grid))  # JSON has lists only
            check_sparse_grid(self.default_grid, self.own_grid)
        _ = self.roles  # a layout that does not fit is refused now

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Take the known keys of a config.json; diffusers' own (`_class_name`) are passed over."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    @property
    def roles(self) -> tuple[Role, ...]:
        """What each block does, in execution order."""
        return roles_of(self.segments, self.num_layers)

    @property
    def norm(self) -> Norm:
        return "layer"

    @property
    def mlp(self) -> Mlp:
        return "gelu"

    @property
    def qk_norm(self) -> bool:
        return False

    @property
    def text_conditioning(self) -> str:
        return "none"

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    @property
    def out_channels(self) -> int:
        return self.in_channels * (2 if self.learn_sigma else 1)

    @property
    def patch_values(self) -> int:
        return self.in_channels * self.patch_size**2

    @property
    def output_values(self) -> int:
        """Numbers that the last layer returns for a patch."""
        return self.out_channels * self.patch_size**2

    @property
    def own_grid(self) -> Grid:
        """Token rows and columns of the training latents."""
        side = self.sample_size // self.patch_size
        return side, side

    def grid(self, height: int, width: int) -> Grid:
        """Token rows and columns of a latent of height x width. Raises ValueError off the patch."""
        for name, side in (("height", height), ("width", width)):
            if side <= 0 or side % self.patch_size:
                raise ValueError(f"{name} is {side}; it must be a positive multiple of {self.patch_size}.")
        return height // self.patch_size, width // self.patch_size

    def sparse_grid(self, grid: Grid | None, full: Grid) -> Grid:
        """The grid of sparse tokens for a full grid: the one given, or the default. Raises ValueError if larger."""
        return sparse_grid_of(self.segments, self.default_grid if grid is None else grid, full)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassDiTConfig(LatentConfig):
    """A class-conditional DiT with adaLN-Zero (Peebles and Xie, arXiv 2212.09748).

    num_classes: class labels; 0 makes the network unconditional.
    null_class: there is one label more, num_classes, that stands for none; guidance needs it.
    condition_per_block: each block embeds time and label by itself (as diffusers' DiTTransformer2DModel does; its
        copies differ once it has been trained).
    frequency_shift: time frequencies are 10000 ** (-i / (128 - frequency_shift)): 0 in DiT, 1 in diffusers.
    mlp_norm_eps: added to the variance in the norm before a feed-forward; 1e-6 in DiT, mostly 1e-5 in diffusers.
    """

    num_classes: int = 1000
    null_class: bool = True
    condition_per_block: bool = False
    frequency_shift: int = 0
    mlp_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        LatentConfig.__post_init__(self)
        if self.num_classes < 0:
            raise ValueError(f"num_classes is {self.num_classes}; it must be 0 or more.")
        if self.frequency_shift not in (0, 1):
            raise ValueError(f"frequency_shift is {self.frequency_shift}; it must be 0 or 1.")
        if not self.mlp_norm_eps > 0:
            raise ValueError(f"mlp_norm_eps is {self.mlp_norm_eps}; it must be more than 0.")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoDiTConfig(ClassDiTConfig):
    """A space-time DiT whose blocks attend within a frame and along the frames in turn (Latte, arXiv 2401.03048).

    num_layers counts both kinds; `segments` counts pairs of them, and pooling leaves the frames as they are.
    num_frames: frames of the training clips; others can be sampled.
    """

    num_frames: int = 16
    num_classes: int = 0

    def __post_init__(self) -> None:
        if self.num_layers % 2:
            raise ValueError(f"num_layers is {self.num_layers}; it must be even, spatial and temporal blocks in turn.")
        if self.num_frames < 1:
            raise ValueError(f"num_frames is {self.num_frames}; it must be at least 1.")
        ClassDiTConfig.__post_init__(self)
        if self.roles[0] not in ("pool", "dense"):
            raise ValueError(
                f"segments is {self.segments!r}; it must start with at least one pair on all tokens, since the frames' "
                "positions are added there."
            )

    @property
    def roles(self) -> tuple[Role, ...]:
        """What each pair of blocks does, in execution order."""
        return roles_of(self.segments, self.num_layers // 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class PixArtConfig(LatentConfig):
    """A text-conditioned DiT with cross-attention and one modulation table (PixArt-alpha, arXiv 2310.00426).

    text_size: width of one text token as the text encoder gives it.
    size_conditions: the network is also told the picture's height, width and aspect ratio (as at 1,024 pixels).
    position_scale: positions are divided by this: the side of the training latents over 64, at least 1.
    """

    text_size: int = 4096
    size_conditions: bool = False
    position_scale: float = 1.0

    def __post_init__(self) -> None:
        LatentConfig.__post_init__(self)
        for name in ("text_size", "position_scale"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0.")
        if self.size_conditions and self.hidden_size % 3:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of 3 with size_conditions, since height, "
                "width and aspect ratio take a third each."
            )

    @property
    def text_conditioning(self) -> str:
        return "cross"

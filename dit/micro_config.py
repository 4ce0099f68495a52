"""The shape of MicroDiT (arXiv 2407.15811): frozen, validated, and free of torch.

Width and feed-forward grow with depth, and every second block is made of experts. The same values live in a model
folder's config.json.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

from mezzotint.dit.density import Grid

TIME_FEATURES = 512
TEXT_MLP_RATIO = 4.0
"""Of the block that text tokens run through."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroBlockShape:
    """One block. size: of its tokens; condition_size: of the vector that it is modulated by; attention_size: of
    queries, keys and values of self-attention (cross-attention has the full size); mlp_size: hidden channels of the
    feed-forward, or of one expert; num_experts: 0 for a dense feed-forward; out_std: deviation of the last matrices
    at the start."""

    size: int
    condition_size: int
    head_dim: int
    attention_size: int
    mlp_size: int
    num_experts: int
    expert_capacity: float
    out_std: float


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroDiTConfig:
    """A text-conditioned DiT over latents with patch-mixer, experts and layer-wise scaling.

    sample_size: side of the training latents; any multiple of patch_size can be sampled.
    hidden_size, num_layers: of the backbone. head_dim: channels of a head, everywhere.
    attention_ratio, mlp_ratio: width of attention and of the feed-forward over hidden_size: at the first block and at
        the last, evenly between them; or one number for each block.
    mlp_multiple: feed-forward widths are rounded up to a multiple of this.
    mixer_layers, mixer_size: blocks that see all tokens before some are dropped, and their width; 0 layers leave the
        patch-mixer out. mixer_attention_ratio, mixer_mlp_ratio: as above, the same in all of them.
    num_experts: of every experts_every-th block, never the backbone's last; 0 for none.
    expert_capacity: experts that a token has on average.
    text_size: width of one text token as the text encoder gives it.
    position_scale: positions are divided by this: 1 at 256 pixels, 2 at 512.
    Raises ValueError naming the setting, its value and what it must be.
    """

    sample_size: int = 32
    in_channels: int = 4
    patch_size: int = 2
    hidden_size: int = 512
    num_layers: int = 16
    head_dim: int = 32
    attention_ratio: tuple[float, ...] = (0.5, 1.0)
    mlp_ratio: tuple[float, ...] = (0.5, 4.0)
    mlp_multiple: int = 256
    mixer_layers: int = 4
    mixer_size: int = 512
    mixer_attention_ratio: float = 1.0
    mixer_mlp_ratio: float = 4.0
    num_experts: int = 8
    expert_capacity: float = 2.0
    experts_every: int = 2
    text_size: int = 1024
    position_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("attention_ratio", "mlp_ratio"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # JSON has lists only
            self._check_ratios(name)
        for name in _MORE_THAN_0:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0.")
        for name in ("mixer_layers", "num_experts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"sample_size is {self.sample_size}; it must be a multiple of patch_size {self.patch_size}."
            )
        self._check_widths()
        if self.num_experts and self.expert_capacity > self.num_experts:
            raise ValueError(
                f"expert_capacity is {self.expert_capacity}; it must be at most num_experts, {self.num_experts}."
            )

    def _check_ratios(self, name: str) -> None:
        ratios = getattr(self, name)
        if len(ratios) not in (2, self.num_layers) or not all(ratio > 0 for ratio in ratios):
            raise ValueError(
                f"{name} is {ratios}; it must be two positive numbers, or one for each of the {self.num_layers} layers."
            )

    def _check_widths(self) -> None:
        if self.hidden_size % 4:
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of 4, for the sines and cosines of rows and "
                "columns."
            )
        for name in ("hidden_size", *(("mixer_size",) if self.mixer_layers else ())):
            if getattr(self, name) % self.head_dim:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a multiple of head_dim {self.head_dim}.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Take the known keys of a config.json; diffusers' own (`_class_name`) are passed over."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    @property
    def patch_values(self) -> int:
        return self.in_channels * self.patch_size**2

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

    @property
    def text_mlp_size(self) -> int:
        """Hidden channels of the feed-forward that text tokens run through."""
        return self._mlp_size(self.hidden_size, TEXT_MLP_RATIO, dense=True)

    @property
    def block_shapes(self) -> tuple[MicroBlockShape, ...]:
        """Of the backbone, in order."""
        ratios = zip(
            spread_evenly(self.attention_ratio, self.num_layers), spread_evenly(self.mlp_ratio, self.num_layers),
            strict=True,
        )
        return tuple(
            self._block(
                self.hidden_size, attention, mlp, with_experts=self._has_experts(i) and i < self.num_layers - 1,
                out_std=0.02 / (2 * (i + 1)) ** 0.5,
            )
            for i, (attention, mlp) in enumerate(ratios)
        )

    @property
    def mixer_shapes(self) -> tuple[MicroBlockShape, ...]:
        """Of the patch-mixer, in order."""
        return tuple(
            self._block(
                self.mixer_size, self.mixer_attention_ratio, self.mixer_mlp_ratio,
                with_experts=self._has_experts(i) and i > 0,
                out_std=0.02 / (2 * self.num_layers) ** 0.5,
            )
            for i in range(self.mixer_layers)
        )

    def _has_experts(self, index: int) -> bool:
        return self.num_experts > 0 and (index + 1) % self.experts_every == 0

    def _block(
        self, size: int, attention_ratio: float, mlp_ratio: float, *, with_experts: bool, out_std: float
    ) -> MicroBlockShape:
        return MicroBlockShape(
            size=size, condition_size=self.hidden_size, head_dim=self.head_dim,
            attention_size=self._attention_size(size, attention_ratio),
            mlp_size=self._mlp_size(size, mlp_ratio, dense=not with_experts),
            num_experts=self.num_experts if with_experts else 0, expert_capacity=self.expert_capacity, out_std=out_std,
        )

    def _attention_size(self, size: int, ratio: float) -> int:
        """Whole pairs of heads, but for the ratio 1."""
        return size if ratio == 1 else _round_up(int(size * ratio), 2 * self.head_dim)

    def _mlp_size(self, size: int, ratio: float, *, dense: bool) -> int:
        """A dense feed-forward has three matrices for an expert's two, so two thirds of the width."""
        hidden = int(size * ratio)
        return _round_up(2 * hidden // 3 if dense else hidden, self.mlp_multiple)


_MORE_THAN_0 = (
    "sample_size", "in_channels", "patch_size", "hidden_size", "num_layers", "head_dim", "mlp_multiple", "mixer_size",
    "mixer_attention_ratio", "mixer_mlp_ratio", "expert_capacity", "experts_every", "text_size", "position_scale",
)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def spread_evenly(ends: Sequence[float], count: int) -> tuple[float, ...]:
    """The first number, the last and evenly spaced ones between them; one number for each as they are."""
    if len(ends) == count:
        return tuple(ends)
    first, last = ends
    if count == 1:
        return (last,)
    return *(first + i * ((last - first) / (count - 1)) for i in range(count - 1)), last


PRESETS: dict[str, MicroDiTConfig] = {
    "micro-tiny-2": MicroDiTConfig(),
    "micro-xl-2": MicroDiTConfig(hidden_size=1024, num_layers=28, head_dim=64, mixer_layers=6, mixer_size=768),
}
"""The published shapes, for latents of 256 pixels (sample_size 64 and position_scale 2 at 512) of 4 channels."""

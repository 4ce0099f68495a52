"""The shape of a network: frozen, validated, and free of torch.

The same values live in a model folder's transformer/config.json.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from mezzotint.dit.segment_layout import Role, roles_of

TextConditioning = Literal["joint", "cross"]
Norm = Literal["layer", "rms"]
Mlp = Literal["gelu", "swiglu"]
Prediction = Literal["x", "v"]
AttentionPattern = Literal["full", "window", "routed"]
PatchSpace = Literal["pixels", "components"]

PLACE_FEATURES = 64
"""Sines and cosines that tell a token its place (see positions.place_table)."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "text_conditioning": ("joint", "cross"),
    "norm": ("layer", "rms"),
    "mlp": ("gelu", "swiglu"),
    "prediction": ("x", "v"),
    "patch_space": ("pixels", "components"),
    "attention": ("full", "window", "routed"),
}
_MORE_THAN_0 = (
    "sample_size", "in_channels", "patch_size", "hidden_size", "num_layers", "num_heads", "mlp_ratio",
    "attention_window", "attention_share_layers", "expert_capacity", "experts_every", "text_size", "max_text_tokens",
    "rope_theta", "noise_scale", "data_std",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiTConfig:
    """A text-conditioned diffusion transformer.

    sample_size: side of the training pictures in pixels; any multiple of patch_size can be sampled.
    patch_size: side of a patch in pixels.
    patch_bottleneck: width between a raw patch and the hidden size; 0 leaves the bottleneck out
        (JiT, arXiv 2511.13720: large patches lie near a low-dimensional manifold).
    patch_space: "pixels" reads and writes every value of a patch; "components" works on patch_bottleneck
        principal components of the training patches, each scaled by its own deviation (see components.py).
    text_size: width of one text token as the text encoder gives it.
    max_text_tokens: text tokens that the network reads; the pooled text vector sees the whole prompt.
    text_conditioning: "joint" puts text and image tokens in one sequence; "cross" lets image tokens
        attend to the text tokens, padding masked.
    place_embedding: add to each image token an embedding of its place from the centre of the grid. Rotary
        positions alone tell only how tokens lie to each other.
    attention: which image tokens see each other. "full": all; "window": each square tile of tokens sees a window of
        tiles around it; "routed": each tile sees the tiles whose pooled keys fit its pooled query best, chosen in
        every layer and head (BiFormer, arXiv 2303.08810). Text is always seen, and sees all.
    attention_tile: side of a tile in tokens, 4 or 8. attention_window: side of the window in tokens. With segments
        both are counted in tokens of each grid, so that sparse ones see further.
    attention_keep: share of the blocks that routing keeps.
    attention_share_layers: consecutive layers that share one routed choice, that of the first of them.
    segments: layout of token density as `SegmentLayout` writes it, "1 + 2x[1,2,1,1] + 1"; None is a dense network.
        Only image tokens are pooled, text stays whole.
    mixer_layers: blocks in front of the others that see all image tokens, before some are dropped in training
        (deferred masking, MicroDiT, arXiv 2407.15811).
    num_experts: experts in the feed-forward of every experts_every-th block, never the last; 0 for none. They have two
        matrices with an exact GELU of mlp_ratio times hidden_size each, whatever mlp says.
    expert_capacity: experts that a token has on average; each expert takes its best tokens of a picture.
    prediction: what the network returns, the clean picture ("x") or the velocity ("v").
    noise_scale: standard deviation of the noise at t = 1. A patch of p x p x c values averages unit noise
        down to 1 / p, so it has to grow with the patch.
    data_std: standard deviation of the pictures in [-1, 1], used to scale the input to unit variance.
    """

    sample_size: int = 256
    in_channels: int = 3
    patch_size: int = 32
    patch_bottleneck: int = 128
    patch_space: PatchSpace = "pixels"
    hidden_size: int = 320
    num_layers: int = 12
    num_heads: int = 5
    mlp_ratio: float = 4.0
    text_size: int = 384
    max_text_tokens: int = 12
    text_conditioning: TextConditioning = "joint"
    norm: Norm = "layer"
    mlp: Mlp = "gelu"
    qk_norm: bool = True
    rope_theta: float = 100.0
    place_embedding: bool = False
    attention: AttentionPattern = "full"
    attention_tile: int = 8
    attention_window: int = 24
    attention_keep: float = 0.25
    attention_share_layers: int = 1
    segments: str | None = None
    mixer_layers: int = 0
    num_experts: int = 0
    expert_capacity: float = 2.0
    experts_every: int = 2
    prediction: Prediction = "x"
    noise_scale: float = 8.0
    data_std: float = 0.7

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}.")
        for name in _MORE_THAN_0:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0.")
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"sample_size is {self.sample_size}; it must be a multiple of patch_size {self.patch_size}."
            )
        if self.patch_space == "components":
            self._check_components()
        self._check_attention()
        self._check_experts()
        _ = self.roles  # a layout that does not fit is refused now
        if self.hidden_size % (4 * self.num_heads):
            raise ValueError(
                f"hidden_size is {self.hidden_size}; it must be a multiple of 4 * num_heads = "
                f"{4 * self.num_heads}, since each head turns in pairs over rows and columns."
            )

    def _check_attention(self) -> None:
        if self.attention_tile not in (4, 8):
            raise ValueError(f"attention_tile is {self.attention_tile}; it must be 4 or 8 tokens.")
        if not 0 < self.attention_keep <= 1:
            raise ValueError(f"attention_keep is {self.attention_keep}; it must be over 0 and at most 1.")

    def _check_experts(self) -> None:
        for name in ("mixer_layers", "num_experts"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.num_experts and self.expert_capacity > self.num_experts:
            raise ValueError(
                f"expert_capacity is {self.expert_capacity}; it must be at most num_experts, {self.num_experts}."
            )

    def _check_components(self) -> None:
        if not 0 < self.patch_bottleneck <= self.patch_values:
            raise ValueError(
                f"patch_bottleneck is {self.patch_bottleneck}; with patch_space components it must be from 1 to "
                f"{self.patch_values}, the values of a patch."
            )
        if self.prediction != "x":
            raise ValueError(f"prediction is {self.prediction!r}; with patch_space components it must be x.")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Take the known keys of a transformer/config.json; diffusers' own (`_class_name`) are passed over."""
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})

    @property
    def roles(self) -> tuple[Role, ...]:
        """What each block does, in execution order."""
        return roles_of(self.segments, self.num_layers)

    @property
    def expert_blocks(self) -> frozenset[int]:
        """Numbers of the blocks with experts."""
        return frozenset(i for i in range(self.num_layers - 1) if self._has_experts(i))

    @property
    def expert_mixer_blocks(self) -> frozenset[int]:
        """Numbers of the patch-mixer's blocks with experts."""
        return frozenset(i for i in range(1, self.mixer_layers) if self._has_experts(i))

    def _has_experts(self, index: int) -> bool:
        return self.num_experts > 0 and (index + 1) % self.experts_every == 0

    @property
    def patch_values(self) -> int:
        return self.in_channels * self.patch_size**2

    @property
    def output_values(self) -> int:
        """Numbers that the last layer returns for a patch."""
        return self.patch_bottleneck if self.patch_space == "components" else self.patch_values

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Token rows and columns of a picture of height x width pixels. Raises ValueError off the patch."""
        for name, side in (("height", height), ("width", width)):
            if side <= 0 or side % self.patch_size:
                raise ValueError(f"{name} is {side}; it must be a positive multiple of {self.patch_size} pixels.")
        return height // self.patch_size, width // self.patch_size


PRESETS: dict[str, DiTConfig] = {
    "emoji-256": DiTConfig(),
}

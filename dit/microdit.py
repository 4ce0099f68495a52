"""MicroDiT (arXiv 2407.15811): a text-conditioned diffusion transformer over latents that is cheap to train.

A few blocks see every patch (the patch-mixer), then most patches may be dropped, and only the rest go through the
backbone, whose width grows with depth and half of whose blocks are experts.

Shape suffixes: B batch, c latent channels, N tokens, K kept tokens, L text tokens, T text encoder size, C hidden size.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from mezzotint.dit.density import Grid
from mezzotint.dit.layers import patchify, sinusoid, unpatchify
from mezzotint.dit.masking import Kept, Span, check_keep, check_span
from mezzotint.dit.micro_blocks import GeluEmbed, MicroBlock, MicroFinalLayer, NormedLinear, TextBlock
from mezzotint.dit.micro_config import TIME_FEATURES, MicroDiTConfig
from mezzotint.dit.positions import sincos_table


class MicroDiT(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """EDM's network F (arXiv 2206.00364, section 5): from a scaled noisy latent, ln(sigma) / 4 and text.

    The arguments are those of `MicroDiTConfig`, where each is described; the saved config.json holds them.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("MicroBlock",)
    positions: Tensor
    mask_token: Tensor

    @register_to_config
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 4,
        patch_size: int = 2,
        hidden_size: int = 512,
        num_layers: int = 16,
        head_dim: int = 32,
        attention_ratio: tuple[float, ...] = (0.5, 1.0),
        mlp_ratio: tuple[float, ...] = (0.5, 4.0),
        mlp_multiple: int = 256,
        mixer_layers: int = 4,
        mixer_size: int = 512,
        mixer_attention_ratio: float = 1.0,
        mixer_mlp_ratio: float = 4.0,
        num_experts: int = 8,
        expert_capacity: float = 2.0,
        experts_every: int = 2,
        text_size: int = 1024,
        position_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.shape = shape = MicroDiTConfig.from_mapping(self.config)
        self.patch_embed = nn.Linear(shape.patch_values, hidden_size)
        self.register_buffer("positions", _table(shape, shape.own_grid))
        self.time_embed = GeluEmbed(TIME_FEATURES, hidden_size, normed=False)
        self.text_embed = GeluEmbed(text_size, hidden_size, normed=True)
        self.text_block = TextBlock(shape)
        self.pooled_embed = GeluEmbed(hidden_size, hidden_size, normed=True)
        mixer_is_wide = mixer_layers == 0 or mixer_size == hidden_size
        self.mixer_in = nn.Identity() if mixer_is_wide else NormedLinear(hidden_size, mixer_size)
        self.mixer_text = nn.Identity() if mixer_is_wide else NormedLinear(hidden_size, mixer_size)
        self.mixer = nn.ModuleList(MicroBlock(block) for block in shape.mixer_shapes)
        self.mixer_out = nn.Identity() if mixer_is_wide else NormedLinear(mixer_size, hidden_size)
        self.blocks = nn.ModuleList(MicroBlock(block) for block in shape.block_shapes)
        self.final = MicroFinalLayer(shape)
        self.register_buffer("mask_token", torch.zeros(shape.patch_values))
        self.gradient_checkpointing = False
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Xavier and zero biases, small embeddings, shut gates, and an answer of zero."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embed in (self.time_embed, self.text_embed, self.pooled_embed, self.text_block, self.final):
            embed.initialise()
        for block, shape in zip(
            [*self.mixer, *self.blocks], [*self.shape.mixer_shapes, *self.shape.block_shapes], strict=True
        ):
            block.initialise(shape.out_std)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, *, keep: Tensor | None = None, bypass: Span | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """Predict.

        x: noisy latents, scaled to unit deviation [B, c, H, W]; H and W multiples of patch_size.
        t: ln(sigma) / 4 [B], or one for all.
        y: encoded text tokens [B, 1, L, T]; all zero without a prompt. Padding is seen as well.
        keep: int64 [B, K], numbers of the tokens that go on behind the patch-mixer; the values of all other patches
            are those of the mask token, zero. It masks in training and in evaluation alike; None keeps all.
        bypass: with keep, the others are not dropped: they pass these blocks of the backbone by (first, end) and
            come back behind them.
        guidance_scale: also predict without text, in one pass over a doubled batch, and return
            without + scale * (with - without); None predicts with text alone.
        Returns [B, c, H, W] in the network's dtype. Raises ValueError where a size does not fit.
        """
        if guidance_scale is not None:
            return self._guided(x, t, y, guidance_scale, keep, bypass)
        text, condition = self._condition(t.expand(len(x)), y)
        tokens, full = self._embed(x)
        kept = self._kept(keep, bypass, tokens)
        tokens = self.mixer_in(tokens)
        text_of_mixer = self.mixer_text(text)
        for block in self.mixer:
            tokens = self._run(block, tokens, text_of_mixer, condition)
        dropped = kept is not None and bypass is None
        tokens = self._backbone(kept.take(tokens) if kept and dropped else tokens, text, condition, kept, bypass)
        patches = self.final(tokens, condition)
        if kept and dropped:
            patches = kept.fill(patches, self.mask_token, full[0] * full[1])
        return unpatchify(patches, full, self.shape.patch_size)

    def _guided(
        self, x: Tensor, t: Tensor, y: Tensor, scale: float, keep: Tensor | None, bypass: Span | None
    ) -> Tensor:
        both = self(
            torch.cat([x, x]), t.expand(len(x)).repeat(2), torch.cat([y, torch.zeros_like(y)]),
            keep=None if keep is None else keep.repeat(2, 1), bypass=bypass,
        )
        wanted, unwanted = both.chunk(2)
        return torch.lerp(unwanted, wanted, scale)

    def _condition(self, t_B: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Text tokens [B, L, C], and the vector of time and text behind its GELU [B, C]."""
        if y.ndim != 4 or y.shape[1] != 1 or y.shape[3] != self.shape.text_size or len(y) != len(t_B):
            raise ValueError(
                f"y is of shape {list(y.shape)}; it must be [{len(t_B)}, 1, text tokens, {self.shape.text_size}]."
            )
        text = self.text_block(self.text_embed(y.squeeze(1).to(self.dtype)))
        time = self.time_embed(sinusoid(t_B, size=TIME_FEATURES, scale=1.0).to(self.dtype))
        return text, F.gelu(time + self.pooled_embed(text.mean(dim=1)), approximate="tanh")

    def _embed(self, x_BcHW: Tensor) -> tuple[Tensor, Grid]:
        """Latents to tokens with their positions [B, N, C], and the token grid."""
        full = self.shape.grid(x_BcHW.shape[-2], x_BcHW.shape[-1])
        own = full == self.shape.own_grid
        positions = self.positions if own else _cached_table(self.shape, full).to(self.device, self.dtype)
        return self.patch_embed(patchify(x_BcHW.to(self.dtype), self.shape.patch_size)) + positions, full

    def _kept(self, keep: Tensor | None, bypass: Span | None, tokens_BNC: Tensor) -> Kept | None:
        if bypass is not None:
            if keep is None:
                raise ValueError(f"bypass is {tuple(bypass)} and keep is None; keep must say which tokens do not pass.")
            check_span(bypass, len(self.blocks))
        if keep is None:
            return None
        check_keep(keep, *tokens_BNC.shape[:2])
        return Kept(keep)

    def _backbone(
        self, tokens: Tensor, text: Tensor, condition: Tensor, kept: Kept | None, bypass: Span | None
    ) -> Tensor:
        tokens = self.mixer_out(tokens)
        everyone = tokens
        for index, block in enumerate(self.blocks):
            if kept and bypass and index == bypass[0]:
                everyone, tokens = tokens, kept.take(tokens)
            tokens = self._run(block, tokens, text, condition)
            if kept and bypass and index + 1 == bypass[1]:
                tokens = kept.put_back(everyone, tokens)
        return tokens

    def _run(self, block: nn.Module, *inputs: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)


def _table(shape: MicroDiTConfig, grid: Grid) -> Tensor:
    """Positions fp32 [N, C]; grids other than the trained one are stretched to it."""
    return sincos_table(grid, shape.hidden_size, shape.own_grid, shape.position_scale)


_cached_table = lru_cache(maxsize=64)(_table)

"""A text-conditioned diffusion transformer over pixels, in reading order.

Shape suffixes: B batch, c picture channels, N image tokens, L text tokens, C hidden size, T text encoder size.
"""

from functools import lru_cache
from math import prod

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from mezzotint.dit.attention import Rope, text_mask_without_empty_rows
from mezzotint.dit.block_order import ModulePass
from mezzotint.dit.blocks import Block, FinalLayer
from mezzotint.dit.components import PatchComponents
from mezzotint.dit.config import (
    PLACE_FEATURES,
    AttentionPattern,
    DiTConfig,
    Mlp,
    Norm,
    PatchSpace,
    Prediction,
    TextConditioning,
)
from mezzotint.dit.density import Grid
from mezzotint.dit.experts import Experts
from mezzotint.dit.kept_attention import kept_attention, sorted_by_tiles
from mezzotint.dit.kept_grids import KeptTokenGrids
from mezzotint.dit.layers import PatchEmbed, VectorEmbed, patchify, sinusoid, unpatchify
from mezzotint.dit.masking import Kept, Span, check_keep, check_masking
from mezzotint.dit.positions import place_table, rope_table
from mezzotint.dit.segment_layout import sparse_grid_of
from mezzotint.dit.segments import TokenGrids
from mezzotint.dit.sparse_attention import sparse_attention
from mezzotint.dit.surroundings import Surroundings
from mezzotint.dit.token_views import RunViewed, TokenView


class DiT(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the clean picture (or the velocity) from a noisy one, its noise time and its text.

    The arguments are those of `DiTConfig`, where each is described; the saved config.json holds them.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)

    @register_to_config
    def __init__(
        self,
        sample_size: int = 256,
        in_channels: int = 3,
        patch_size: int = 32,
        patch_bottleneck: int = 128,
        patch_space: PatchSpace = "pixels",
        hidden_size: int = 320,
        num_layers: int = 12,
        num_heads: int = 5,
        mlp_ratio: float = 4.0,
        text_size: int = 384,
        max_text_tokens: int = 12,
        text_conditioning: TextConditioning = "joint",
        norm: Norm = "layer",
        mlp: Mlp = "gelu",
        qk_norm: bool = True,
        rope_theta: float = 100.0,
        place_embedding: bool = False,
        attention: AttentionPattern = "full",
        attention_tile: int = 8,
        attention_window: int = 24,
        attention_keep: float = 0.25,
        attention_share_layers: int = 1,
        segments: str | None = None,
        mixer_layers: int = 0,
        num_experts: int = 0,
        expert_capacity: float = 2.0,
        experts_every: int = 2,
        prediction: Prediction = "x",
        noise_scale: float = 8.0,
        data_std: float = 0.7,
    ) -> None:
        super().__init__()
        self.shape = shape = DiTConfig.from_mapping(self.config)
        in_components = shape.patch_space == "components"
        self.components = PatchComponents(shape) if in_components else None
        self.patch_embed = nn.Linear(patch_bottleneck, hidden_size) if in_components else PatchEmbed(shape)
        self.place_embed = nn.Linear(PLACE_FEATURES, hidden_size, bias=False) if place_embedding else None
        self.text_embed = nn.Linear(text_size, hidden_size)
        self.time_embed = VectorEmbed(256, hidden_size)
        self.pooled_embed = VectorEmbed(text_size, hidden_size)
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)
        self.mixer = nn.ModuleList(
            Block(shape, "dense", _experts(shape, i in shape.expert_mixer_blocks)) for i in range(mixer_layers)
        )
        self.blocks = nn.ModuleList(
            Block(shape, role, _experts(shape, i in shape.expert_blocks)) for i, role in enumerate(shape.roles)
        )
        self.final = FinalLayer(shape)
        self.gradient_checkpointing = False
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Every block starts as the identity (its last Linears are zero), with open gates."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Block):
                module.table[[2, 5]] = 1.0
                for linear in module.last_linears():
                    nn.init.zeros_(linear.weight)
                if isinstance(module.mlp, Experts):
                    module.mlp.reset(0.0)
                if module.merge is not None:
                    module.merge.reset()
        for linear in (self.modulation, self.final.modulation, self.final.linear):
            nn.init.zeros_(linear.weight)

    def forward(
        self, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor, text_mask: Tensor | None = None, *,
        in_components: bool = False, grid: Grid | None = None, module_pass: ModulePass | None = None,
        keep: Tensor | None = None, bypass: Span | None = None,
    ) -> Tensor:
        """Predict.

        x: noisy pictures [B, c, H, W]; H and W multiples of patch_size.
        t: noise time [B] in [0, 1], 0 = data, 1 = noise.
        text: encoded text tokens [B, L, T], padding zero. Without a prompt all are zero.
        pooled: mean of the text tokens [B, T]; zero without a prompt.
        text_mask: bool [B, L], True where a token counts; used by cross-attention only. A row without any
            token attends to its padding, as the joint sequence does.
        in_components: x and the result are maps of components [B, K, H / patch_size, W / patch_size] as
            `components.analyse` makes them, fp32: the arithmetic of training, where noise and loss need no pixels.
        grid: rows and columns of the sparse image tokens, for a network with segments; at most the full grid, which
            None takes.
        module_pass: stands in the place of the sparse-dense modules of a network with segments; None runs them.
        keep: int64 [B, K], numbers of the image tokens that go on behind the patch-mixer, in training and in
            evaluation alike; of the other patches the network says nothing (its last layer's values are zero).
        bypass: with keep and without segments, the others are not dropped: they pass these blocks by (first, end) and
            come back behind them.
        Returns [B, c, H, W] in the network's dtype. Raises ValueError where a size, the grid or keep does not fit, and
        for a module_pass without segments or with keep.
        """
        given = (t, text, pooled, text_mask, grid, module_pass, keep, bypass)
        if self.components is not None:
            maps = x if in_components else self.components.analyse(x)
            predicted = self._predict_maps(self.components, maps, *given)
            return predicted if in_components else self.components.synthesise(predicted)
        full = self.shape.grid(x.shape[-2], x.shape[-1])
        tokens = self.patch_embed(patchify(x.to(self.dtype), self.shape.patch_size), self._input_scale(t))
        return unpatchify(self._transform(tokens, full, *given), full, self.shape.patch_size)

    def _predict_maps(
        self, components: PatchComponents, maps: Tensor, t: Tensor, text: Tensor, pooled: Tensor,
        text_mask: Tensor | None, sparse_grid: Grid | None, module_pass: ModulePass | None, keep: Tensor | None,
        bypass: Span | None,
    ) -> Tensor:
        grid = (maps.shape[-2], maps.shape[-1])
        noisy_BNK = maps.flatten(2).transpose(1, 2)
        input_scale, kept, answer_scale = components.scales(t, self.shape.noise_scale)
        tokens = self.patch_embed((noisy_BNK * input_scale).to(self.dtype))
        answer_BNK = self._transform(tokens, grid, t, text, pooled, text_mask, sparse_grid, module_pass, keep, bypass)
        clean_BNK = torch.addcmul(noisy_BNK * kept, answer_BNK.float(), answer_scale)
        return clean_BNK.transpose(1, 2).unflatten(2, grid)

    def _transform(
        self, tokens: Tensor, full: Grid, t: Tensor, text: Tensor, pooled: Tensor, text_mask: Tensor | None,
        sparse_grid: Grid | None, module_pass: ModulePass | None, keep: Tensor | None, bypass: Span | None,
    ) -> Tensor:
        """Embedded image tokens [B, N, C] to what the last layer says of each patch."""
        if self.place_embed is not None:
            tokens = tokens + self.place_embed(_cached_places(full).to(tokens.device, self.dtype))
        words = self.text_embed(text.to(self.dtype))
        condition = self._condition(t, pooled)
        joint = self.shape.text_conditioning == "joint"
        grids = TokenGrids(
            full=full, sparse=sparse_grid_of(self.shape.segments, sparse_grid, full),
            whole=words.shape[1] if joint else 0,
        )
        kept = self._kept(keep, bypass, module_pass, grids, tokens)
        side = {} if joint else {"text": words, "text_mask": text_mask_without_empty_rows(text_mask, words)}
        tokens = torch.cat([words, tokens], dim=1) if joint else tokens
        shared = self.modulation(condition).unflatten(1, (6, -1))
        run = RunViewed(self._run, shared, Surroundings(grids=grids, **side), self.shape.attention_share_layers)
        tokens = self._run_blocks(tokens, grids, run, module_pass, kept, bypass)
        patches = self.final(tokens[:, grids.whole :], condition)
        if kept is None or bypass is not None:
            return patches
        return kept.fill(patches, patches.new_zeros(patches.shape[2]), prod(full))

    def _kept(
        self, keep: Tensor | None, bypass: Span | None, module_pass: ModulePass | None, grids: TokenGrids,
        tokens_BNC: Tensor,
    ) -> Kept | None:
        """The tokens that are kept, in the order in which they run; None for all."""
        check_masking(self.shape, keep, bypass, given_pass=module_pass is not None)
        if keep is None:
            return None
        check_keep(keep, *tokens_BNC.shape[:2])
        return Kept(sorted_by_tiles(self.shape, grids.full, keep), grids.whole)

    def _run_blocks(
        self, tokens: Tensor, grids: TokenGrids, run: RunViewed, module_pass: ModulePass | None, kept: Kept | None,
        bypass: Span | None,
    ) -> Tensor:
        """All blocks: in tile order where attention has a pattern, at two densities where there are segments."""
        every = self._view(grids, grids.full)
        tokens = run.blocks(self.mixer, every, tokens, grids)
        if kept is not None and bypass is not None:
            first, end = bypass
            tokens = run.blocks(self.blocks[:first], every, tokens, grids)
            passing = run.blocks(self.blocks[first:end], self._kept_view(grids, kept), kept.take(tokens), grids)
            return run.blocks(self.blocks[end:], every, kept.put_back(tokens, passing), grids)
        if kept is not None:
            every, tokens = self._kept_view(grids, kept), kept.take(tokens)
            grids = KeptTokenGrids(full=grids.full, sparse=grids.sparse, whole=grids.whole, keep=kept.index)
        cells = every if grids.sparse == grids.full else self._view(grids, grids.sparse)
        return run.segments(self.shape, self.blocks, every, cells, tokens, grids, module_pass)

    def _view(self, grids: TokenGrids, cells: Grid) -> TokenView:
        """How all tokens of one of the grids are seen."""
        rope = self._rope(grids.full, cells, grids.whole)
        return TokenView.of(rope, sparse_attention(self.shape, cells, grids.whole, rope[0].device))

    def _kept_view(self, grids: TokenGrids, kept: Kept) -> TokenView:
        cos, sin = (table[kept.rows()][:, None] for table in self._rope(grids.full, grids.full, grids.whole))
        return TokenView.of((cos, sin), kept_attention(self.shape, grids.full, kept.index, grids.whole))

    def _input_scale(self, t: Tensor) -> Tensor:
        """One over the standard deviation of a picture at its noise time [B] (EDM's c_in)."""
        signal, noise = self.shape.data_std * (1 - t.float()), self.shape.noise_scale * t.float()
        return (signal.square() + noise.square()).rsqrt().to(self.dtype)

    def _condition(self, t: Tensor, pooled: Tensor) -> Tensor:
        time = self.time_embed(sinusoid(t).to(self.dtype))
        return F.silu(time + self.pooled_embed(pooled.to(self.dtype)))

    def _rope(self, full: Grid, cells: Grid, num_text: int) -> Rope:
        table = _cached_rope(full, self.shape.head_dim, self.shape.rope_theta, num_text, cells=cells)
        return table[0].to(self.device, self.dtype), table[1].to(self.device, self.dtype)

    def _run(self, block: nn.Module, *inputs: object) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *inputs)
        return block(*inputs)


def _experts(shape: DiTConfig, wanted: bool) -> Experts | None:
    """The feed-forward of a block that has experts."""
    if not wanted:
        return None
    return Experts(shape.hidden_size, shape.mlp_size, shape.num_experts, shape.expert_capacity)


_cached_rope = lru_cache(maxsize=64)(rope_table)
_cached_places = lru_cache(maxsize=64)(place_table)

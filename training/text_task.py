"""Training a text-conditioned DiT by flow matching.

Shape suffixes: B batch, c channels, S picture side.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mezzotint.dit.density import Grid
from mezzotint.dit.model import DiT
from mezzotint.dit.recut import recut
from mezzotint.dit.segment_layout import SegmentLayout
from mezzotint.sampling.precision import DTYPES
from mezzotint.sampling.text import EMBEDDED, TextEncoder
from mezzotint.training.config import ConfigError, TrainConfig, to_mapping
from mezzotint.training.data import PictureData, TextTable, draw_captions
from mezzotint.training.density_stairs import draw_stair
from mezzotint.training.distillation import Teacher
from mezzotint.training.feed import Batch
from mezzotint.training.masking import draw_keep, grid_among_kept, only_kept
from mezzotint.training.objectives import add_noise, draw_t, velocity_loss
from mezzotint.training.sample_grid import save_sample_grid
from mezzotint.training.task import StepKey

PICTURES_FOR_COMPONENTS = 1024
"""Pictures whose patches the principal components are taken from, spread evenly over the data set."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Drawn:
    """A batch with its noise: the clean pictures (or their components), the noise in its scale, what the network is
    called with (noisy pictures, t, text, pooled, mask), and the sparse grid."""

    clean: Tensor
    noise: Tensor
    inputs: tuple[Tensor, ...]
    grid: Grid | None


class TextTask:
    """Pictures with captions, a DiT, and the velocity loss. See `task.Task`."""

    def __init__(self, config: TrainConfig, output: Path, accelerator: Accelerator) -> None:
        """Open the data and encode its captions. Raises ConfigError (settings, data)."""
        self.config, self.device = config, accelerator.device
        self.encoder = TextEncoder(EMBEDDED, self.device)
        _check_fit(config, self.encoder)
        with accelerator.main_process_first():  # the others take up what it has unpacked and encoded
            self.data = PictureData(config.data, config.model.sample_size)
            self.table = TextTable(
                self.data.captions, self.encoder, config.model.max_text_tokens, output / "text.safetensors"
            )
        self.teacher: Teacher | None = None

    def draw_weights(self) -> Tensor:
        return self.data.draw_weights(self.config.data.balance)

    def empty_network(self) -> DiT:
        return DiT.from_config(to_mapping(self.config)["model"])

    def start_network(self, init_from: str | None) -> DiT:
        if init_from is not None:
            return _network_of(init_from, self.config)
        network = self.empty_network()
        if network.components is not None:
            network.components.fit(self.data.sample(PICTURES_FOR_COMPONENTS).float().div_(127.5).sub_(1))
        return network

    def prepare(self, network: nn.Module) -> None:
        if self.config.distill.teacher:
            self.teacher = Teacher(self.config.distill, cast(DiT, network), self.device, DTYPES[self.config.dtype])

    def loss(self, wrapped: Callable[..., Tensor], network: nn.Module, batch: Batch, key: StepKey) -> Tensor:
        network, config, generator = cast(DiT, network), self.config, key.own()
        drawn = self._draw(network, batch, key, generator)
        keep = draw_keep(config.masking, len(batch[0]), self._full, generator)
        chosen = self._chosen_tokens(drawn.grid, keep)
        clean, hints, in_components = drawn.clean, torch.zeros(()), network.components is not None
        if self.teacher is None:
            prediction = wrapped(*drawn.inputs, in_components=in_components, **chosen)
        else:
            with self.teacher.watching(network) as seen:
                prediction = wrapped(*drawn.inputs, in_components=in_components, **chosen)
            clean = self.teacher.target(clean, drawn.noise, drawn.inputs, in_components=in_components)
            hints = self.teacher.hint_loss(seen)
        compared = (prediction, clean, drawn.noise)
        if keep is not None and config.masking.bypass is None:  # of the other patches nothing was said
            patch_size = 1 if in_components else config.model.patch_size
            compared = tuple(only_kept(part, chosen["keep"], patch_size) for part in compared)  # type: ignore[assignment]
        losses = velocity_loss(
            *compared, drawn.inputs[1], kind=config.model.prediction, min_t=config.objective.min_t
        )
        # Per pixel value, also where the difference was taken in components.
        return losses.mean() * (config.model.output_values / config.model.patch_values) + hints.to(self.device)

    def _draw(self, network: DiT, batch: Batch, key: StepKey, generator: torch.Generator) -> "_Drawn":
        """Captions, noise times of one stair, and noise for a batch."""
        config, (indices, pictures) = self.config, batch
        numbers = draw_captions([self.data.captions[i] for i in indices], self.table, config.data, generator)
        stair = draw_stair(config.density, config.objective, self._full, key)
        quantiles = (stair.quantile_from, stair.quantile_to)
        t = draw_t(len(indices), config.objective, generator, quantiles).to(self.device)
        clean = pictures.to(self.device).float().div_(127.5).sub_(1)
        if network.components is not None:  # noise and loss are the same there, of fewer numbers
            clean = network.components.analyse(clean)
        noise = torch.randn(clean.shape, generator=generator).mul_(config.model.noise_scale).to(self.device)
        text = (part.to(self.device) for part in self.table.batch(numbers))
        return _Drawn(clean=clean, noise=noise, inputs=(add_noise(clean, t, noise), t, *text), grid=stair.grid)

    def _chosen_tokens(self, grid: Grid | None, keep: Tensor | None) -> dict[str, Any]:
        """Which tokens run where: the sparse grid, and those that masking keeps."""
        if keep is None:
            return {"grid": grid}
        bypass = self.config.masking.bypass
        grid = grid if bypass else grid_among_kept(grid, self._full, keep.shape[1])
        return {"grid": grid, "keep": keep.to(self.device), "bypass": bypass}

    @property
    def _full(self) -> Grid:
        return self.config.model.grid(self.config.model.sample_size, self.config.model.sample_size)

    def save_samples(self, network: nn.Module, path: Path) -> None:
        save_sample_grid(cast(DiT, network), self.encoder, self.config.samples, path)

    def facts(self) -> dict[str, Any]:
        return {"text_encoder": self.encoder.name}


def _check_fit(config: TrainConfig, encoder: TextEncoder) -> None:
    """What the network must have in common with the pictures and the text encoder."""
    width = encoder.model.config.hidden_size
    for name, value, wanted, why in (
        ("in_channels", config.model.in_channels, 3, "pictures are RGB"),
        ("text_size", config.model.text_size, width, f"the text encoder {encoder.name} is so wide"),
    ):
        if value != wanted:
            raise ConfigError(f"model.{name} is {value}; it must be {wanted}, since {why}.")


def _network_of(init_from: str, config: TrainConfig) -> DiT:
    """The weights of a model in the recipe's shape; a dense one is cut into the recipe's segments."""
    from mezzotint.sampling.catalog import find_model

    card = find_model(init_from)
    segments = config.model.segments
    must_be_cut = segments is not None and card.text_config.segments is None
    given = replace(card.text_config, noise_scale=config.model.noise_scale)
    if (replace(given, segments=segments) if must_be_cut else given) != config.model:
        raise ConfigError(f"--init-from is {init_from}, a network of another shape than the recipe's; "
                          "the two must have the same model settings (noise_scale may differ, and a dense network "
                          "is cut into the recipe's segments).")
    network = DiT.from_pretrained(card.folder / "transformer", dtype=torch.float32)
    if must_be_cut:
        network = recut(network, SegmentLayout.parse(cast(str, segments)), config.density.sparse_share)
    network.register_to_config(noise_scale=config.model.noise_scale)
    network.shape = config.model
    return network

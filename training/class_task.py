"""Training a class-conditional DiT over cached latents by DDPM, as DiT and SparseDiT (arXiv 2412.06028) are trained.

Shape suffixes: B batch, c channels, H height, W width.
"""

from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from mezzotint.dit.checkpoints.files import read_json
from mezzotint.dit.checkpoints.sources import load_pretrained
from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.recut import recut
from mezzotint.dit.segment_layout import SegmentLayout
from mezzotint.sampling.catalog import find_model, model_names
from mezzotint.sampling.class_labels import Classes
from mezzotint.training.class_config import ClassTrainConfig
from mezzotint.training.class_model import keep_autoencoder, keep_names, save_class_grid
from mezzotint.training.config_reading import ConfigError
from mezzotint.training.ddpm_objective import DDPMObjective
from mezzotint.training.density_stairs import EvenTimes, draw_stair
from mezzotint.training.feed import Batch
from mezzotint.training.latent_data import LatentData, LatentFolder, draw_latents
from mezzotint.training.task import StepKey


class ClassTask:
    """Latents with class labels, a ClassDiT, and the loss of `DDPMObjective`. See `task.Task`."""

    def __init__(self, config: ClassTrainConfig, output: Path, accelerator: Accelerator) -> None:
        """Open the latents. Raises ConfigError (settings, data)."""
        self.config, self.output, self.device = config, output, accelerator.device
        self._is_main = accelerator.is_main_process
        self.data = LatentData(config.data.path)
        _check_fit(config, self.data.index)
        if self._is_main:
            keep_autoencoder(self.data.folder, output)
        schedule = config.objective
        self.objective = DDPMObjective(
            schedule.num_timesteps, schedule.beta_start, schedule.beta_end, self.device
        )

    def draw_weights(self) -> Tensor:
        return torch.full((len(self.data),), 1 / len(self.data), dtype=torch.float64)

    def empty_network(self) -> ClassDiT:
        return ClassDiT(**asdict(self.config.model))

    def start_network(self, init_from: str | None) -> ClassDiT:
        network, names = (self.empty_network(), None) if init_from is None else _network_of(init_from, self.config)
        if self._is_main:
            keep_names(names or dict(enumerate(self.data.index.classes)), self.output)
        return network

    def prepare(self, network: nn.Module) -> None:
        """Nothing is left to do."""

    def loss(self, wrapped: Callable[..., Tensor], network: nn.Module, batch: Batch, key: StepKey) -> Tensor:
        config, generator = self.config, key.own()
        indices, items_B2cHW = batch
        x_BcHW = draw_latents(items_B2cHW, self.data.index, generator).to(self.device)
        labels_B = torch.tensor([self.data.labels[i] for i in indices])
        dropped_B = torch.rand(len(indices), generator=generator) < config.data.label_dropout
        labels_B = torch.where(dropped_B, config.model.num_classes, labels_B).to(self.device)
        stair = draw_stair(config.density, EvenTimes(), config.model.own_grid, key)
        t_B = self.objective.draw_t(len(indices), generator, (stair.quantile_from, stair.quantile_to)).to(self.device)
        noise_BcHW = torch.randn(x_BcHW.shape, generator=generator).to(self.device)
        noisy_BcHW = self.objective.add_noise(x_BcHW, t_B, noise_BcHW)
        out = wrapped(noisy_BcHW, t_B, labels_B, grid=stair.grid)
        return self.objective.loss(out, x_BcHW, noisy_BcHW, t_B, noise_BcHW).mean()

    def save_samples(self, network: nn.Module, path: Path) -> None:
        save_class_grid(cast(ClassDiT, network), self.config, self.output, path)

    def facts(self) -> dict[str, Any]:
        return {}


def _check_fit(config: ClassTrainConfig, data: LatentFolder) -> None:
    """What the network must have in common with the latents."""
    for name, value, wanted in (
        ("in_channels", config.model.in_channels, data.channels),
        ("sample_size", config.model.sample_size, data.sample_size),
    ):
        if value != wanted:
            raise ConfigError(f"model.{name} is {value}; it must be {wanted}, as the latents in {config.data.path}.")
    if config.model.num_classes < len(data.classes):
        raise ConfigError(f"model.num_classes is {config.model.num_classes}; it must be at least {len(data.classes)}, "
                          f"as many classes as {config.data.path} has.")


def _network_of(init_from: str, config: ClassTrainConfig) -> tuple[ClassDiT, dict[int, str] | None]:
    """The weights of a model in the recipe's shape, fp32, and the names of its classes where it has any.

    init_from: whatever `mezzotint convert` reads or writes. A dense network is cut into the recipe's segments.
    """
    folder = find_model(init_from).folder if not Path(init_from).exists() and init_from in model_names() else None
    source = folder or Path(init_from)
    inner = source / "transformer"
    try:
        network = load_pretrained(inner if inner.is_dir() else source)
        if not isinstance(network, ClassDiT):
            raise ValueError(f"it is a {type(network).__name__}, and this recipe trains a ClassDiT.")
        names = _names_of(source, network)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--init-from is {init_from}; {' '.join(str(error).split())}") from None
    segments = config.model.segments
    if segments is not None and network.shape.segments is None:
        network = recut(network, SegmentLayout.parse(segments), config.density.sparse_share)
    _check_shape(init_from, network, config)
    return torch.nn.Module.to(network, dtype=torch.float32).train(), names


def _names_of(source: Path, network: ClassDiT) -> dict[int, str] | None:
    """Of a pipeline's folder. Raises ValueError where its names are not those of the network's classes."""
    file = source / "model_index.json"
    named = read_json(file).get("id2label") if file.is_file() else None
    return dict(Classes.of(network.shape.num_classes, named).names) or None


def _check_shape(init_from: str, network: ClassDiT, config: ClassTrainConfig) -> None:
    pairs = [(f.name, getattr(network.shape, f.name), getattr(config.model, f.name)) for f in fields(config.model)]
    wrong = [f"{name} is {theirs} and not {ours}" for name, theirs, ours in pairs if theirs != ours]
    if wrong:
        raise ConfigError(f"--init-from is {init_from}, a network of another shape than the recipe's: "
                          f"{'; '.join(wrong)}; give it the recipe's model settings, or change those with --set.")

"""Cached latents of pictures with their class labels, for training: a folder that `encode_latents` writes.

    latents.json               what is in the folder: see `LatentFolder`
    latents-00000.safetensors  mean and std, fp16 [n, c, H, W] each, and label, int64 [n]
    vae/                       the autoencoder, so that latents can be decoded

An autoencoder encodes a picture as a normal distribution for each value, and training draws from it anew each time.
A folder without std holds the latents themselves.
"""

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mezzotint.training.config import ConfigError

INDEX = "latents.json"
VAE = "vae"


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentFolder:
    """latents.json. classes: their names, by number. shards: file names with how many items each holds.

    scaling_factor, shift_factor: the autoencoder's; a network works on (latent - shift_factor) * scaling_factor.
    """

    classes: tuple[str, ...]
    channels: int
    sample_size: int
    scaling_factor: float
    shift_factor: float
    shards: tuple[tuple[str, int], ...]

    def write(self, folder: Path) -> None:
        """Write it into its folder."""
        (folder / INDEX).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "LatentFolder":
        """Raises ConfigError where there is none, or it cannot be read."""
        try:
            values: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            shards = tuple((str(file), int(count)) for file, count in values.pop("shards"))
            return cls(**values | {"classes": tuple(values["classes"]), "shards": shards})
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
            raise ConfigError(
                f"data.path is {folder}; it must be a folder of latents, made by `python -m "
                f"mezzotint.training.encode_latents`, and its {INDEX} cannot be read ({reason})."
            ) from None


class LatentData:
    """Latents by index: `picture(i)` and `labels[i]`. Files are mapped, not read, so a set may exceed the memory."""

    def __init__(self, path: str) -> None:
        """Open a folder. Raises ConfigError where there is none, or its files are not what its index says."""
        self.folder = Path(path)
        self.index = LatentFolder.read(self.folder)
        if not any(count for _, count in self.index.shards):
            raise ConfigError(f"data.path is {path}; it holds no latents.")
        self._ends = list(accumulate(count for _, count in self.index.shards))
        self._opened: dict[int, Any] = {}
        self.labels: list[int] = [label for shard in range(len(self._ends)) for label in self._labels_of(shard)]
        beyond = next((label for label in self.labels if not 0 <= label < len(self.index.classes)), None)
        if beyond is not None:
            raise ConfigError(f"data.path is {path}; it holds the label {beyond}, and the classes in its {INDEX} are "
                              f"{len(self.index.classes)}.")

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        """A mapped file does not travel to another process; there it is opened again."""
        return self.__dict__ | {"_opened": {}}

    def picture(self, index: int) -> Tensor:
        """Mean and deviation of each value, fp16 [2, c, H, W]; [1, c, H, W] where the latents themselves are kept."""
        shard = bisect_right(self._ends, index)
        place = index - (self._ends[shard - 1] if shard else 0)
        try:
            file = self._open(shard)
            names = sorted({"mean", "std"} & set(file.keys()))
            return torch.stack([file.get_slice(name)[place] for name in names])
        except (OSError, SafetensorError, IndexError) as error:
            raise self._broken(shard, error) from None

    def _open(self, shard: int) -> Any:
        if shard not in self._opened:
            self._opened[shard] = safe_open(self.folder / self.index.shards[shard][0], framework="pt")
        return self._opened[shard]

    def _labels_of(self, shard: int) -> list[int]:
        count = self.index.shards[shard][1]
        shape = [count, self.index.channels, self.index.sample_size, self.index.sample_size]
        try:
            file = self._open(shard)
            labels: list[int] = file.get_tensor("label").tolist()
            found = file.get_slice("mean").get_shape()
        except (OSError, SafetensorError) as error:
            raise self._broken(shard, error) from None
        if found != shape or len(labels) != count:
            raise ConfigError(f"data.path is {self.folder}; {self.index.shards[shard][0]} holds latents {found} and "
                              f"{len(labels)} labels, and its {INDEX} says {shape}.")
        return labels

    def _broken(self, shard: int, error: Exception) -> ConfigError:
        reason = " ".join(str(error).split())
        return ConfigError(f"data.path is {self.folder}; {self.index.shards[shard][0]} cannot be read ({reason}).")


def draw_latents(items_B2cHW: Tensor, index: LatentFolder, generator: torch.Generator) -> Tensor:
    """Latents as a network works on them, fp32 [B, c, H, W], drawn from what `LatentData.picture` gave."""
    parts: Sequence[Tensor] = items_B2cHW.float().unbind(1)
    latents = parts[0]
    if len(parts) == 2:
        latents = latents + parts[1] * torch.randn(latents.shape, generator=generator).to(latents.device)
    return (latents - index.shift_factor) * index.scaling_factor

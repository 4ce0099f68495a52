"""Pictures with captions for training, by index, and which of them each step takes.

Shape suffixes: S picture side, L text tokens, T text encoder size.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.sampling.text import TextEncoder
from mezzotint.training.config import ConfigError, DataConfig
from mezzotint.training.randomness import generator_for

CACHE_BYTES = 4 * 2**30
"""Decoded pictures are kept in memory up to this size; beyond it they are decoded at each use."""


class PictureData:
    """A data set by index: `picture(i)`, `captions[i]` and `labels[i]`."""

    def __init__(self, config: DataConfig, sample_size: int) -> None:
        """Open the data set. Raises ConfigError when there is none, or when it lacks captions."""
        self.rows = open_data(config.path)
        self.sample_size = sample_size
        self.captions = [_captions_of(row) for row in _text_rows(self.rows)]
        self.labels = [_label_of(row) for row in _text_rows(self.rows)]
        fits = len(self.rows) * 3 * sample_size**2 <= CACHE_BYTES
        self._cache: dict[int, Tensor] | None = {} if fits else None

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, index: int) -> Tensor:
        """uint8 [3, S, S]: the shorter side fitted, the centre cropped, transparency on white."""
        if self._cache is None:
            return load_picture(self.rows[index]["image"], self.sample_size)
        if index not in self._cache:
            self._cache[index] = load_picture(self.rows[index]["image"], self.sample_size)
        return self._cache[index]

    def draw_weights(self, balance: float) -> Tensor:
        """Probability of each picture, count(label) ** -balance, fp64."""
        counts = Counter(self.labels)
        weights = torch.tensor([counts[label] ** -balance for label in self.labels], dtype=torch.float64)
        return weights / weights.sum()


def open_data(path: str) -> Any:
    """Open a `datasets` folder, an imagefolder with metadata.jsonl, or a Hub id; returns a `datasets.Dataset`."""
    import datasets

    folder = Path(path)
    if (folder / "state.json").is_file():
        return datasets.load_from_disk(folder)
    if folder.is_dir() and any(folder.rglob("metadata.jsonl")):
        return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
    if folder.exists() or path.count("/") != 1 or path.startswith("."):
        raise ConfigError(
            f"data.path is {path}; it must be a folder made by `datasets`, a folder of pictures with metadata.jsonl, "
            "or a Hub id owner/name (`python -m mezzotint.training.emoji_data --out DIR` makes one)."
        )
    return datasets.load_dataset(path, split="train")


def _text_rows(rows: Any) -> Any:
    return rows.remove_columns(["image"])


def _captions_of(row: dict[str, Any]) -> list[str]:
    for key in ("captions", "caption", "text"):
        if row.get(key):
            return [row[key]] if isinstance(row[key], str) else list(row[key])
    raise ConfigError(f"the data set's columns are {', '.join(row)}; one of captions, caption or text must be there "
                      "and not be empty.")


def _label_of(row: dict[str, Any]) -> str:
    return row.get("base_label") or row.get("label") or _captions_of(row)[0]


def load_picture(image: Image.Image, side: int) -> Tensor:
    """A PIL picture as uint8 [3, side, side]."""
    if image.mode in ("RGBA", "LA", "P", "PA"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return data.view(side, side, 3).permute(2, 0, 1).contiguous()


class TextTable:
    """Every caption of the data set, encoded once: bf16 tokens [n, L, T] and pooled [n, T]."""

    def __init__(self, captions: Sequence[Sequence[str]], encoder: TextEncoder, max_tokens: int, cache: Path) -> None:
        """Encode, or take up `cache` (a safetensors file) when it was made from these captions and encoder."""
        unique = dict.fromkeys(c for several in captions for c in several)
        self.numbers = {caption: i for i, caption in enumerate(unique)}
        key = hashlib.sha256(json.dumps([encoder.name, max_tokens, *self.numbers]).encode()).hexdigest()
        tensors = _read_cache(cache, key)
        if tensors is None:
            encoded = encoder.encode_many(list(self.numbers), max_tokens)
            tensors = {"tokens": encoded.tokens.to(torch.bfloat16), "pooled": encoded.pooled.to(torch.bfloat16),
                       "mask": encoded.mask}
            _write_cache(cache, key, tensors)
        self.tokens, self.pooled, self.mask = tensors["tokens"], tensors["pooled"], tensors["mask"]

    def batch(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens [B, L, T], pooled [B, T] and mask [B, L]; -1 is no prompt: zeros."""
        present = numbers >= 0
        rows = numbers.clamp(min=0)
        return (
            self.tokens[rows] * present[:, None, None],
            self.pooled[rows] * present[:, None],
            self.mask[rows] & present[:, None],
        )


def _read_cache(path: Path, key: str) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def _write_cache(path: Path, key: str, tensors: dict[str, Tensor]) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, unfinished, metadata={"key": key})
    unfinished.replace(path)


class StepSampler:
    """Which pictures a step takes: drawn anew each step with the balanced probabilities, with replacement.

    A function of (seed, step): a resumed run, or one on another number of processes, sees the same batches.
    """

    def __init__(self, weights: Tensor, batch_size: int, seed: int, rank: int = 0, num_ranks: int = 1) -> None:
        if batch_size % num_ranks:
            raise ConfigError(f"batch_size is {batch_size}; it must be a multiple of the {num_ranks} processes.")
        self.weights, self.batch_size, self.seed = weights, batch_size, seed
        self.rank, self.num_ranks = rank, num_ranks

    def indices(self, step: int) -> list[int]:
        """Indices of this process's share of the batch at `step`."""
        drawn = torch.multinomial(
            self.weights, self.batch_size, replacement=True, generator=generator_for(self.seed, step)
        )
        return drawn.tolist()[self.rank :: self.num_ranks]


def draw_captions(
    captions: Sequence[Sequence[str]], table: TextTable, config: DataConfig, generator: torch.Generator
) -> Tensor:
    """One caption number a picture by the weights of its lengths, or -1 where the prompt is dropped."""
    numbers = [table.numbers[several[_pick(len(several), config.caption_weights, generator)]] for several in captions]
    dropped = torch.rand(len(numbers), generator=generator) < config.caption_dropout
    return torch.where(dropped, -1, torch.tensor(numbers))


def _pick(count: int, weights: Sequence[float], generator: torch.Generator) -> int:
    padded = [weights[min(i, len(weights) - 1)] for i in range(count)]
    if not any(padded):  # a picture with fewer captions than the weights foresee
        return count - 1
    return int(torch.multinomial(torch.tensor(padded), 1, generator=generator))


def batches(data: PictureData, sampler: StepSampler, first_step: int) -> Iterator[tuple[list[int], Tensor]]:
    """Endless (indices, uint8 pictures [B, 3, S, S]) from `first_step` on."""
    step = first_step
    while True:
        indices = sampler.indices(step)
        yield indices, torch.stack([data.picture(i) for i in indices])
        step += 1

"""Pictures with captions for training, by index, and which of them each step takes.

Shape suffixes: S picture side, L text tokens, T text encoder size.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.sampling.text import TextEncoder
from mezzotint.training.config import ConfigError, DataConfig
from mezzotint.training.randomness import generator_for

CACHE_BYTES = 4 * 2**30
"""Decoded pictures are kept in memory up to this size; beyond it they are decoded at each use, and
data.num_workers gives that to further processes."""


class PictureData:
    """A data set by index: `picture(i)`, `captions[i]` and `labels[i]`."""

    def __init__(self, config: DataConfig, sample_size: int) -> None:
        """Open the data set. Raises ConfigError when there is none, or when it lacks captions."""
        self.rows = open_data(config.path)
        _check_columns(self.rows, config.path)
        self.sample_size = sample_size
        texts = self.rows.remove_columns(["image"])
        self.captions = [_captions_of(row, i) for i, row in enumerate(texts)]
        self.labels = [_label_of(row, several) for row, several in zip(texts, self.captions, strict=True)]
        # Each worker would fill a cache of its own.
        fits = not config.num_workers and len(self.rows) * 3 * sample_size**2 <= CACHE_BYTES
        self._cache: dict[int, Tensor] | None = {} if fits else None

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, index: int) -> Tensor:
        """uint8 [3, S, S]: the shorter side fitted, the centre cropped, transparency on white."""
        if self._cache is None:
            return self._decode(index)
        if index not in self._cache:
            self._cache[index] = self._decode(index)
        return self._cache[index]

    def sample(self, count: int) -> Tensor:
        """At most `count` pictures spread evenly over the set, uint8 [n, 3, S, S]."""
        stride = max(1, -(-len(self) // count))
        return torch.stack([self.picture(i) for i in range(0, len(self), stride)])

    def _decode(self, index: int) -> Tensor:
        try:
            return load_picture(self.rows[index]["image"], self.sample_size)
        except OSError as error:  # Pillow's for a picture that it cannot read, too
            raise ConfigError(f"data.path: picture {index} of the set cannot be read ({error}); take it out.") from None

    def draw_weights(self, balance: float) -> Tensor:
        """Probability of each picture, count(label) ** -balance, fp64."""
        counts = Counter(self.labels)
        weights = torch.tensor([counts[label] ** -balance for label in self.labels], dtype=torch.float64)
        return weights / weights.sum()


def open_data(path: str) -> Any:
    """Open a `datasets` folder, an imagefolder with metadata.jsonl, or a Hub id; returns a `datasets.Dataset`."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    folder = Path(path)
    is_imagefolder = folder.is_dir() and any(folder.rglob("metadata.jsonl"))
    is_saved = (folder / "state.json").is_file()
    may_be_id = path.count("/") == 1 and not path.startswith((".", "/")) and not folder.exists()
    if not (is_imagefolder or is_saved or may_be_id):
        raise ConfigError(f"data.path is {path}; {_WANTED}.")
    try:
        if is_saved:
            return datasets.load_from_disk(folder)
        if is_imagefolder:
            return datasets.load_dataset("imagefolder", data_dir=str(folder), split="train")
        return datasets.load_dataset(path, split="train")
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        absent = "" if folder.exists() else f"there is no such folder ({_WANTED}), and as a Hub id "
        raise ConfigError(f"data.path is {path}; {absent}it cannot be opened: {_reason(error)}") from None


_WANTED = (
    "it must be a folder made by `datasets`, a folder of pictures with metadata.jsonl, or a Hub id owner/name; "
    "`python -m mezzotint.training.emoji_data --out DIR` makes one"
)


def _reason(error: Exception) -> str:
    """The first line of the error that an error was made from, where there is one."""
    return (str(error.__cause__ or error).strip().splitlines() or [type(error).__name__])[0]


def _check_columns(rows: Any, path: str) -> None:
    columns = getattr(rows, "column_names", None)
    if not isinstance(columns, list):
        raise ConfigError(f"data.path is {path}; it holds several splits, so give the folder of one.")
    if "image" not in columns or not set(_CAPTION_COLUMNS) & set(columns):
        raise ConfigError(f"data.path is {path}; its columns are {', '.join(columns)}, and image and one of "
                          f"{', '.join(_CAPTION_COLUMNS)} must be there.")
    if type(rows.features["image"]).__name__ != "Image":
        raise ConfigError(f"data.path is {path}; its column image holds {rows.features['image']}, not pictures.")
    if not len(rows):
        raise ConfigError(f"data.path is {path}; it holds no pictures.")


_CAPTION_COLUMNS = ("captions", "caption", "text")


def _captions_of(row: dict[str, Any], index: int) -> list[str]:
    for key in _CAPTION_COLUMNS:
        if row.get(key):
            return [row[key]] if isinstance(row[key], str) else list(row[key])
    raise ConfigError(f"data.path: picture {index} of the set has no caption; write one, or take the picture out.")


def _label_of(row: dict[str, Any], several: Sequence[str]) -> str:
    return row.get("base_label") or row.get("label") or several[0]


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
            tensors = {"tokens": encoded.tokens.to("cpu", torch.bfloat16),
                       "pooled": encoded.pooled.to("cpu", torch.bfloat16), "mask": encoded.mask.cpu()}
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
    try:
        with safe_open(path, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError:  # broken by a full disk, say; it is made again
        return None


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

"""What drawn pictures are compared with: features and labels of real pictures.

The features of the emoji set ship with the package, so that an evaluation needs no data set. Make them anew
with `python -m mezzotint.training.reference --data DIR --out training/features/emoji.safetensors`.

Shape suffixes: G real pictures, D distinct labels, F feature size.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mezzotint.training.data import open_data
from mezzotint.training.quality import FEATURE_SIZE, FEATURES, FeatureExtractor, blurred

SHIPPED = Path(__file__).resolve().parent / "features" / "emoji.safetensors"
BLUR_SIDE = 48
"""Pixels that a real picture is shrunk to, for a score that a drawn picture can be held against."""

LEVELS = 255
"""Features are kept as bytes, each picture's from 0 to its largest; the cosine moves by less than 1e-4."""


class NoReferenceError(ValueError):
    """Real pictures or their features that cannot be used; the text is one sentence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """Real pictures: their features [G, F] and labels (without skin tone), and for each distinct label, in
    the order of first appearance, the features [D, F] of its first picture blurred to BLUR_SIDE pixels."""

    features_GF: Tensor
    labels: tuple[str, ...]
    blurred_DF: Tensor
    source: str

    @property
    def distinct_labels(self) -> list[str]:
        """In the order of first appearance."""
        return list(dict.fromkeys(self.labels))


def first_of_each(labels: Sequence[str]) -> list[int]:
    """Indices of the first picture of each distinct label."""
    first: dict[str, int] = {}
    for i, label in enumerate(labels):
        first.setdefault(label, i)
    return list(first.values())


def measure(
    images: Sequence[Image.Image], labels: Sequence[str], extract: FeatureExtractor, source: str
) -> Reference:
    """Compute the reference of real pictures; some 20 ms a picture on one core."""
    blurs = [blurred(images[i], BLUR_SIDE) for i in first_of_each(labels)]
    return Reference(
        features_GF=extract(images, progress="features of real pictures"),
        blurred_DF=extract(blurs, progress="features of blurred pictures"),
        labels=tuple(labels),
        source=source,
    )


def measure_data(path: str, extract: FeatureExtractor, source: str | None = None) -> Reference:
    """The reference of a data set (see data.open_data). Raises NoReferenceError when it has no labels."""
    rows = open_data(path)
    column = next((name for name in ("base_label", "label") if name in rows.column_names), None)
    if column is None:
        raise NoReferenceError(
            f"the columns of {path} are {', '.join(rows.column_names)}; "
            "retrieval needs one named base_label or label."
        )
    return measure(_Pictures(rows), list(rows[column]), extract, source=source or path)


class _Pictures(Sequence[Image.Image]):
    """The pictures of a data set, decoded one batch at a time."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]["image"]


def save_reference(reference: Reference, path: Path) -> None:
    """Write one safetensors file, whole or not at all."""
    tensors = {}
    for name, features in (("real", reference.features_GF), ("blurred", reference.blurred_DF)):
        scale = features.amax(dim=1, keepdim=True) / LEVELS
        tensors[name] = (features / scale.clamp(min=1e-12)).round().to(torch.uint8)
        tensors[f"{name}.scale"] = scale
    metadata = {
        "features": FEATURES,
        "labels": json.dumps(reference.labels, ensure_ascii=False),
        "source": reference.source,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}")
    save_file(tensors, unfinished, metadata=metadata)
    unfinished.replace(path)


def load_reference(path: Path = SHIPPED) -> Reference:
    """Read what save_reference wrote. Raises NoReferenceError when its features are not FEATURES."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("features") != FEATURES:
            raise NoReferenceError(
                f"the features in {path} are {metadata.get('features')!r}; they must be {FEATURES!r}, "
                "so make the file anew with `python -m mezzotint.training.reference`."
            )
        real = file.get_tensor("real") * file.get_tensor("real.scale")
        blurs = file.get_tensor("blurred") * file.get_tensor("blurred.scale")
    labels = tuple(json.loads(metadata["labels"]))
    return Reference(features_GF=real, labels=labels, blurred_DF=blurs, source=metadata["source"])


def main() -> None:
    """Command line: measure a data set and write its reference."""
    parser = argparse.ArgumentParser(description="Measure the features of a data set's pictures.")
    parser.add_argument("--data", required=True, help="data set with pictures and labels")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="safetensors file to write")
    parser.add_argument("--source", help="what to note as the pictures' source and licence (default: --data)")
    arguments = parser.parse_args()
    reference = measure_data(arguments.data, FeatureExtractor(), arguments.source)
    save_reference(reference, arguments.out)
    print(f"{len(reference.labels)} pictures of {len(reference.distinct_labels)} labels, "
          f"{arguments.out.stat().st_size / 1e6:.1f} MB, {FEATURE_SIZE} values each: {arguments.out}")


if __name__ == "__main__":
    main()

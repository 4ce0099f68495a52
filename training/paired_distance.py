"""How far pictures are from those that another setting of the same model draws with the same prompts and seeds.

Shape suffixes: B pairs, F feature size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn.functional import cosine_similarity


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDistance:
    """Means over all pairs. feature_distance: 1 - cosine of the features. rms_pixel_difference: root of the mean
    squared difference over the pixels and channels of a pair, black being 0 and white 1."""

    feature_distance: float
    rms_pixel_difference: float


def paired_distance(
    images: Sequence[Image.Image], others: Sequence[Image.Image], features_BF: Tensor, other_features_BF: Tensor
) -> PairedDistance:
    """Compare picture i with other picture i. Raises ValueError where there are not as many of both or none at all, and
    where the sizes of a pair differ."""
    counts = {len(images), len(others), len(features_BF), len(other_features_BF)}
    if len(counts) > 1 or counts == {0}:
        raise ValueError(f"there are {len(images)} and {len(others)} pictures with {len(features_BF)} and "
                         f"{len(other_features_BF)} features; a distance of pairs needs as many of each, and one at "
                         "least.")
    cosine_B = cosine_similarity(features_BF.double(), other_features_BF.double(), dim=1)
    differences = [_rms(one, other) for one, other in zip(images, others, strict=True)]
    return PairedDistance(
        feature_distance=float(1 - cosine_B.mean()), rms_pixel_difference=float(np.mean(differences))
    )


def _rms(one: Image.Image, other: Image.Image) -> float:
    if one.size != other.size:
        raise ValueError(f"a pair has pictures of {one.size} and {other.size} pixels; both must be of one size.")
    difference = np.asarray(one.convert("RGB"), np.float64) - np.asarray(other.convert("RGB"), np.float64)
    return float(np.sqrt(np.mean((difference / 255) ** 2)))

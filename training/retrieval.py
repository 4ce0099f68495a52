"""Label retrieval: does the nearest real picture bear the label that was asked for?

Shape suffixes: Q questions, G gallery pictures, F feature size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import normalize

COUNTED_LABELS = 5
"""Labels that are looked at for the top 5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Retrieval:
    """Fractions in [0, 1] of pictures whose label is the nearest, or among the five nearest distinct ones."""

    top1: float
    top5: float


def nearest_labels(
    features_QF: Tensor, gallery_GF: Tensor, labels: Sequence[str], count: int = COUNTED_LABELS
) -> list[list[str]]:
    """For each picture the first `count` distinct labels of the gallery, nearest first.

    Nearness is the cosine of the features; of two gallery pictures at one distance the earlier comes first.
    labels: one for each gallery picture. Raises ValueError when there are not as many.
    """
    if len(labels) != len(gallery_GF):
        raise ValueError(f"labels has {len(labels)} texts for {len(gallery_GF)} pictures; give one for each.")
    similarity_QG = normalize(features_QF, dim=1) @ normalize(gallery_GF, dim=1).T
    ranked_QG = similarity_QG.sort(dim=1, descending=True, stable=True).indices
    return [_first_distinct((labels[i] for i in row), count) for row in ranked_QG.tolist()]


def _first_distinct(labels: Iterable[str], count: int) -> list[str]:
    seen: dict[str, None] = {}
    for label in labels:
        seen.setdefault(label)
        if len(seen) == count:
            break
    return list(seen)


def score(ranked: Sequence[Sequence[str]], wanted: Sequence[str]) -> Retrieval:
    """Compare the ranked labels of each picture with the one that was asked for.

    Raises ValueError when there is nothing to compare.
    """
    if not wanted:
        raise ValueError("wanted is empty; a score needs at least one picture.")
    pairs = list(zip(ranked, wanted, strict=True))
    return Retrieval(
        top1=sum(label == labels[0] for labels, label in pairs) / len(pairs),
        top5=sum(label in labels[:COUNTED_LABELS] for labels, label in pairs) / len(pairs),
    )

"""How well a model draws what it is asked for, by label retrieval (see retrieval.py), and how near its pictures as a
whole are to real ones, by kernel distance (see kernel_distance.py).

One picture is drawn for each of a fixed choice of labels. Beside its score stand two others that say what the
score means: real pictures blurred to 48 pixels as a reference, and the same drawn pictures held against the
labels of other pictures as the floor.
"""

import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from mezzotint.training.kernel_distance import KernelDistance, kernel_distance
from mezzotint.training.paired_distance import PairedDistance, paired_distance
from mezzotint.training.quality import FEATURES, FeatureExtractor
from mezzotint.training.reference import Reference, first_of_each
from mezzotint.training.retrieval import Retrieval, nearest_labels, score

LABEL_SEED = 0
"""Draws the labels; fixed, so that two models are asked for the same pictures."""

BATCH_SIZE = 32
"""Pictures drawn at once."""

Draw = Callable[[list[str], list[int]], list[Image.Image]]
"""Draws one picture for each prompt with the seed beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The scores, and what lies behind them: label i was the prompt of picture i, which has seed i, features_QF[i],
    and ranked[i] as the five nearest labels. `distance` and `blurred_distance` are kernel distances to one real picture
    of each label. Seconds are by phase."""

    retrieval: Retrieval
    blurred: Retrieval
    shuffled: Retrieval
    distance: KernelDistance
    blurred_distance: KernelDistance
    features: str
    labels: list[str]
    images: list[Image.Image]
    features_QF: Tensor
    ranked: list[list[str]]
    seconds: dict[str, float]


def evaluate_drawings(
    draw: Draw, reference: Reference, extract: FeatureExtractor, num_labels: int = 256
) -> Evaluation:
    """Draw `num_labels` pictures and score them. Raises ValueError when the reference has too few labels."""
    labels = choose_labels(reference.distinct_labels, num_labels)
    start = time.perf_counter()
    images = draw_all(draw, labels)
    drawn = time.perf_counter()
    features = extract(images, progress="features")
    ranked = nearest_labels(features, reference.features_GF, reference.labels)
    # Labels are drawn each with the same chance, so a label with six skin tones counts no more than another here.
    real = reference.features_GF[first_of_each(reference.labels)]
    scored = time.perf_counter()
    return Evaluation(
        retrieval=score(ranked, labels),
        blurred=score_blurred(reference, labels),
        shuffled=score(ranked, deranged(labels)),
        distance=kernel_distance(features, real),
        blurred_distance=kernel_distance(blurred_features(reference, labels), real),
        features=FEATURES,
        labels=labels,
        images=images,
        features_QF=features,
        ranked=ranked,
        seconds={"sample": drawn - start, "features": scored - drawn},
    )


def evaluate_pairs(draw: Draw, evaluated: Evaluation, extract: FeatureExtractor) -> PairedDistance:
    """Draw the same prompts and seeds with another setting, and compare each picture with its pair."""
    others = draw_all(draw, evaluated.labels)
    return paired_distance(evaluated.images, others, evaluated.features_QF, extract(others, progress="features"))


def choose_labels(distinct: Sequence[str], count: int) -> list[str]:
    """`count` labels drawn with a fixed seed, whatever the order of the data set."""
    if not 2 <= count <= len(distinct):
        raise ValueError(f"labels is {count}; it must be from 2 to {len(distinct)}, as many as there are.")
    return random.Random(LABEL_SEED).sample(sorted(distinct), count)


def deranged(labels: Sequence[str]) -> list[str]:
    """The labels moved by one place, so that none of them stays where it was."""
    return [*labels[1:], labels[0]]


def draw_all(draw: Draw, labels: Sequence[str]) -> list[Image.Image]:
    """One picture a label in batches; picture i has seed i."""
    images: list[Image.Image] = []
    with tqdm(total=len(labels), desc="drawing", unit="picture", disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(labels), BATCH_SIZE):
            batch = list(labels[start : start + BATCH_SIZE])
            images += draw(batch, list(range(start, start + len(batch))))
            bar.update(len(batch))
    return images


def score_blurred(reference: Reference, labels: Sequence[str]) -> Retrieval:
    """The score of the first real picture of each label, blurred."""
    chosen = blurred_features(reference, labels)
    return score(nearest_labels(chosen, reference.features_GF, reference.labels), labels)


def blurred_features(reference: Reference, labels: Sequence[str]) -> Tensor:
    """Features of the first real picture of each label, blurred."""
    places = {label: i for i, label in enumerate(reference.distinct_labels)}
    return reference.blurred_DF[torch.tensor([places[label] for label in labels])]

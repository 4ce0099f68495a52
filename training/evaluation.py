"""How well a model draws what it is asked for, by label retrieval (see retrieval.py).

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
from tqdm import tqdm

from mezzotint.training.quality import FEATURES, FeatureExtractor
from mezzotint.training.reference import Reference
from mezzotint.training.retrieval import Retrieval, nearest_labels, score

LABEL_SEED = 0
"""Draws the labels; fixed, so that two models are asked for the same pictures."""

BATCH_SIZE = 32
"""Pictures drawn at once."""

Draw = Callable[[list[str], list[int]], list[Image.Image]]
"""Draws one picture for each prompt with the seed beside it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """The scores, and what lies behind them: label i was the prompt of picture i, which has seed i and of
    which ranked[i] are the five nearest labels. Seconds are by phase."""

    retrieval: Retrieval
    blurred: Retrieval
    shuffled: Retrieval
    features: str
    labels: list[str]
    images: list[Image.Image]
    ranked: list[list[str]]
    seconds: dict[str, float]


def evaluate_retrieval(
    draw: Draw, reference: Reference, extract: FeatureExtractor, num_labels: int = 256
) -> Evaluation:
    """Draw `num_labels` pictures and score them. Raises ValueError when the reference has too few labels."""
    labels = choose_labels(reference.distinct_labels, num_labels)
    start = time.perf_counter()
    images = draw_all(draw, labels)
    drawn = time.perf_counter()
    features = extract(images, progress="features")
    ranked = nearest_labels(features, reference.features_GF, reference.labels)
    scored = time.perf_counter()
    return Evaluation(
        retrieval=score(ranked, labels),
        blurred=score_blurred(reference, labels),
        shuffled=score(ranked, deranged(labels)),
        features=FEATURES,
        labels=labels,
        images=images,
        ranked=ranked,
        seconds={"sample": drawn - start, "features": scored - drawn},
    )


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
    places = {label: i for i, label in enumerate(reference.distinct_labels)}
    chosen = reference.blurred_DF[torch.tensor([places[label] for label in labels])]
    return score(nearest_labels(chosen, reference.features_GF, reference.labels), labels)

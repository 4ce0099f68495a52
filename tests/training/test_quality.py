from pathlib import Path

import pytest
import torch
from PIL import Image, ImageStat
from torch.nn.functional import cosine_similarity

from mezzotint.training.quality import FEATURE_SIZE, FeatureExtractor, blurred

EMOJI = Path(__file__).parents[1] / "data" / "emoji"


@pytest.fixture(scope="module")
def extract() -> FeatureExtractor:
    return FeatureExtractor()


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in sorted(EMOJI.glob("*.webp"))]


def test_features_are_the_same_each_time_and_whatever_the_batch(
    extract: FeatureExtractor, pictures: list[Image.Image]
) -> None:
    together = extract(pictures)
    assert together.shape == (10, FEATURE_SIZE)
    assert torch.equal(together, extract(pictures))
    alone = torch.cat([extract([picture]) for picture in reversed(pictures)]).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_features_tell_pictures_apart(extract: FeatureExtractor, pictures: list[Image.Image]) -> None:
    features = torch.nn.functional.normalize(extract(pictures), dim=1)
    similarity = (features @ features.T).fill_diagonal_(0)
    assert similarity.max() < 0.95
    assert features.min() >= 0


def test_the_network_sees_what_imagenet_taught_it(extract: FeatureExtractor) -> None:
    """Its own classifier names two pictures, so weights, order of colours and range fit together."""
    soccer_ball, umbrella = 805, 879
    images = [Image.open(EMOJI / f"{name}.webp") for name in ("26bd", "2602")]
    with torch.no_grad():
        probabilities = extract.network._fc(extract(images)).softmax(dim=-1)
    assert probabilities[0, soccer_ball] > 0.5
    assert probabilities[1, umbrella] > 0.5


def test_transparency_is_laid_on_white(extract: FeatureExtractor) -> None:
    glass = Image.new("RGBA", (64, 64), (255, 0, 0, 0))
    white, red = (Image.new("RGB", (64, 64), colour) for colour in ("white", "red"))
    features = extract([glass, white, red])
    torch.testing.assert_close(features[0], features[1])
    assert cosine_similarity(features[1], features[2], dim=0) < 0.99


def test_no_picture_gives_no_features(extract: FeatureExtractor) -> None:
    assert extract([]).shape == (0, FEATURE_SIZE)


def test_blurring_keeps_the_size_and_takes_the_detail() -> None:
    board = Image.effect_noise((256, 256), 80).convert("RGB")
    soft = blurred(board, 48)
    assert soft.size == (256, 256)
    before, after = (ImageStat.Stat(image).stddev[0] for image in (board, soft))
    assert after < before / 2
    flat = Image.new("RGB", (256, 256), (10, 120, 230))
    assert blurred(flat, 48).tobytes() == flat.tobytes()

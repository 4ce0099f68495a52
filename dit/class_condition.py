"""Noise time and class label as one vector.

Shape suffixes: B batch, C hidden size.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.dit.latent_config import ClassDiTConfig
from mezzotint.dit.layers import VectorEmbed, sinusoid


class ClassCondition(nn.Module):
    """silu(embedded time + embedded label); without labels for an unconditional network."""

    def __init__(self, config: ClassDiTConfig) -> None:
        super().__init__()
        self.frequency_shift = config.frequency_shift
        self.time_embed = VectorEmbed(256, config.hidden_size)
        labels = config.num_classes + config.null_class
        self.label_embed = nn.Embedding(labels, config.hidden_size) if config.num_classes else None

    def forward(self, timestep_B: Tensor, labels_B: Tensor | None) -> Tensor:
        """timestep: of the discrete schedule, 0 to 999; labels: num_classes is no label. Returns [B, C].

        Raises ValueError where a label is missing, or given to an unconditional network.
        """
        if (labels_B is None) != (self.label_embed is None):
            raise ValueError(
                "class_labels is None; this network needs a label for each sample." if labels_B is None
                else "class_labels is given; this network is unconditional, so it must be None."
            )
        features = sinusoid(timestep_B, scale=1.0, shift=self.frequency_shift)
        time = self.time_embed(features.to(self.time_embed.fc1.weight.dtype))
        return F.silu(time if self.label_embed is None else time + self.label_embed(labels_B))

    def initialise(self) -> None:
        """Normal with deviation 0.02 (DiT's initialisation)."""
        for linear in (self.time_embed.fc1, self.time_embed.fc2):
            nn.init.normal_(linear.weight, std=0.02)
        if self.label_embed is not None:
            nn.init.normal_(self.label_embed.weight, std=0.02)

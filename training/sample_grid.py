"""A grid of pictures from fixed prompts and seeds, so that a run can be watched."""

from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler

from mezzotint.dit.model import DiT
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.sampling.text import TextEncoder
from mezzotint.training.config import SampleConfig
from mezzotint.training.picture_grid import picture_grid


def save_sample_grid(network: DiT, encoder: TextEncoder, config: SampleConfig, path: Path) -> None:
    """Draw config.prompts with seeds 0, 1, ... and save the grid as PNG."""
    pipeline = Pipeline(network, FlowMatchEulerDiscreteScheduler(shift=1.0), text_encoder_name=encoder.name)
    pipeline.use_text_encoder(encoder)
    drawn = pipeline(
        list(config.prompts), seed=0, num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture_grid(drawn.images, captions=list(config.prompts), columns=min(8, len(config.prompts))).save(path)

"""A training run to a model folder in diffusers' layout, with its card."""

import os
import shutil
from pathlib import Path

from diffusers import FlowMatchEulerDiscreteScheduler

from mezzotint.dit.model import DiT
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.training.checkpoint import list_checkpoints, load_checkpoint
from mezzotint.training.config import ConfigError, from_mapping, to_mapping
from mezzotint.training.model_card import write_card


def export_run(
    run: Path, target: Path, *, time_shift: float = 1.0, guidance_scale: float | None = None,
    num_inference_steps: int | None = None,
) -> Path:
    """Write the EMA weights of a run's newest checkpoint to the folder `target`, in bf16; returns `target`.

    time_shift, guidance_scale, num_inference_steps: the model's defaults for sampling; None takes those of the
    run's own sample grids. A model that lies at `target` is replaced only once the new one is whole.
    Raises ConfigError when the run has no checkpoint.
    """
    found = list_checkpoints(run)
    if not found:
        raise ConfigError(f"RUN is {run}; it holds no checkpoint, so let training/train.py write one first.")
    checkpoint = load_checkpoint(found[-1])
    config = from_mapping(checkpoint.state["config"])
    network = DiT.from_config(to_mapping(config)["model"])
    network.load_state_dict(checkpoint.ema)
    pipeline = Pipeline(
        network.bfloat16(),
        FlowMatchEulerDiscreteScheduler(shift=time_shift),
        text_encoder_name=checkpoint.state["text_encoder"],
        guidance_scale=guidance_scale or config.samples.guidance_scale,
        num_inference_steps=num_inference_steps or config.samples.num_inference_steps,
    )
    unfinished = target.with_name(f".{target.name}-{os.getpid()}")
    pipeline.save_pretrained(unfinished)
    write_card(unfinished, target.name, run, config, checkpoint.state)
    shutil.rmtree(target, ignore_errors=True)
    unfinished.rename(target)
    return target

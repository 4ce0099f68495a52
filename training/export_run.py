"""A training run to a model folder in diffusers' layout, with its card."""

import os
import shutil
from pathlib import Path

from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

from mezzotint.dit.model import DiT
from mezzotint.sampling.pipeline import Pipeline
from mezzotint.training.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from mezzotint.training.class_config import ClassTrainConfig
from mezzotint.training.config import ConfigError, TrainConfig, from_mapping, to_mapping
from mezzotint.training.model_card import write_card


def export_run(
    run: Path, target: Path, *, time_shift: float = 1.0, guidance_scale: float | None = None,
    num_inference_steps: int | None = None,
) -> Path:
    """Write the EMA weights of a run's newest checkpoint to the folder `target`, in bf16; returns `target`.

    time_shift, guidance_scale, num_inference_steps: the model's defaults for sampling; None takes those of the
    run's own sample grids. A model that lies at `target` is replaced only once the new one is whole.
    Raises ConfigError when the run has no checkpoint, or when something else than a model lies at `target`.
    """
    found = list_checkpoints(run)
    if not found:
        raise ConfigError(f"RUN is {run}; it holds no checkpoint, so let training/train.py write one first.")
    if target.exists() and not (target / "model_index.json").is_file():
        raise ConfigError(f"{target} is there and is no model; give another name, or move it away.")
    checkpoint = load_checkpoint(found[-1])
    config = from_mapping(checkpoint.state["config"])
    if isinstance(config, ClassTrainConfig):
        pipeline = _class_pipeline(run, config, checkpoint, time_shift, guidance_scale, num_inference_steps)
    else:
        pipeline = _text_pipeline(config, checkpoint, time_shift, guidance_scale, num_inference_steps)
    unfinished = target.with_name(f".{target.name}-{os.getpid()}")
    try:
        pipeline.save_pretrained(unfinished)
        write_card(unfinished, target.name, run, config, checkpoint.state)
        _replace(target, unfinished)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return target


def _text_pipeline(
    config: TrainConfig, checkpoint: Checkpoint, time_shift: float, guidance_scale: float | None,
    num_inference_steps: int | None,
) -> DiffusionPipeline:
    network = DiT.from_config(to_mapping(config)["model"])
    network.load_state_dict(checkpoint.ema)
    return Pipeline(
        network.bfloat16(),
        FlowMatchEulerDiscreteScheduler(shift=time_shift),
        text_encoder_name=checkpoint.state["text_encoder"],
        guidance_scale=config.samples.guidance_scale if guidance_scale is None else guidance_scale,
        num_inference_steps=num_inference_steps or config.samples.num_inference_steps,
    )


def _class_pipeline(
    run: Path, config: ClassTrainConfig, checkpoint: Checkpoint, time_shift: float, guidance_scale: float | None,
    num_inference_steps: int | None,
) -> DiffusionPipeline:
    from mezzotint.dit.class_dit import ClassDiT
    from mezzotint.training.class_model import run_pipeline

    if time_shift != 1:
        raise ConfigError(f"--time-shift is {time_shift:g}; it must be 1 for {run}, a model that is sampled by DDIM.")
    network = ClassDiT(**to_mapping(config)["model"])
    network.load_state_dict(checkpoint.ema)
    return run_pipeline(network.bfloat16(), config, run, guidance_scale, num_inference_steps)


def _replace(target: Path, new: Path) -> None:
    """Put `new` in the place of `target`; the old one is deleted only after that."""
    old = new.with_name(f"{new.name}-old")
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)

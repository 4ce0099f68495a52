"""The model of a class-conditional run: its network with the autoencoder that its latents come from.

A run keeps both at hand, so that it can be drawn from and exported when its data have gone.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler

from mezzotint.dit.class_dit import ClassDiT
from mezzotint.sampling.class_pipeline import ClassPipeline
from mezzotint.sampling.quiet_loading import quiet_loading
from mezzotint.training.class_config import ClassTrainConfig
from mezzotint.training.config_reading import ConfigError
from mezzotint.training.latent_data import VAE
from mezzotint.training.picture_grid import picture_grid

NAMES = "classes.json"


def keep_autoencoder(latents: Path, run: Path) -> None:
    """Copy the autoencoder of a folder of latents into a run's folder, once. Raises ConfigError where there is none."""
    if not (latents / VAE / "config.json").is_file():
        raise ConfigError(f"data.path is {latents}; it has no {VAE}/ with the autoencoder of its latents, which "
                          "`python -m mezzotint.training.encode_latents` puts there.")
    if (run / VAE).is_dir():
        return
    unfinished = run / f".{VAE}-{os.getpid()}"
    shutil.copytree(latents / VAE, unfinished)
    unfinished.rename(run / VAE)


def keep_names(names: Mapping[int, str], run: Path) -> None:
    """Write down what a run's classes are called."""
    (run / NAMES).write_text(json.dumps(names, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_names(run: Path) -> dict[int, str]:
    """The names that were kept; none where there are none."""
    file = run / NAMES
    return {int(n): name for n, name in json.loads(file.read_text(encoding="utf-8")).items()} if file.is_file() else {}


def run_pipeline(
    network: ClassDiT, config: ClassTrainConfig, run: Path, guidance_scale: float | None = None,
    num_inference_steps: int | None = None,
) -> ClassPipeline:
    """What draws with a run's network: DDIM over the noise schedule that it was trained with.

    guidance_scale, num_inference_steps: the model's defaults; None takes those of the run's sample grids.
    Raises ConfigError where the run has lost its autoencoder.
    """
    objective, samples = config.objective, config.samples
    scheduler = DDIMScheduler(
        num_train_timesteps=objective.num_timesteps, beta_start=objective.beta_start, beta_end=objective.beta_end,
        beta_schedule="linear", clip_sample=False,
    )
    try:
        with quiet_loading():
            vae = AutoencoderKL.from_pretrained(run / VAE, local_files_only=True).eval()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run / VAE} cannot be loaded: {' '.join(str(error).split())}") from None
    return ClassPipeline(
        network, vae, scheduler, id2label=read_names(run),
        guidance_scale=samples.guidance_scale if guidance_scale is None else guidance_scale,
        num_inference_steps=num_inference_steps or samples.num_inference_steps,
    )


def save_class_grid(network: ClassDiT, config: ClassTrainConfig, run: Path, path: Path) -> None:
    """Draw the run's sample classes with seeds 0, 1, ... in the first of its densities, and save the grid as PNG."""
    pipeline, labels = run_pipeline(network, config, run), config.samples.class_labels
    pipeline.vae.to(network.device)
    density = config.density.densities[0] if config.density.densities else None
    drawn = pipeline(list(labels), seed=0, density=density)
    shown = pipeline.classes.labels()
    captions = [str(shown[label]) for label in labels]
    path.parent.mkdir(parents=True, exist_ok=True)
    picture_grid(drawn.images, captions=captions, columns=min(8, len(labels))).save(path)

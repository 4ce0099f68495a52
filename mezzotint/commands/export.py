"""`mezzotint export`: a training run to a model that can be drawn with."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a training run.")],
    name: Annotated[str, typer.Option(help="The model's name.")],
    to: Annotated[Path | None, typer.Option(help="Folder for models; your own one when not given.")] = None,
    time_shift: Annotated[float, typer.Option(min=0.01, help="Default shift of the noise times.")] = 1.0,
    guidance: Annotated[float | None, typer.Option(min=0, max=30, help="Default guidance scale.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=250, help="Default number of steps.")] = None,
) -> None:
    """Write a run's averaged weights as a model folder in diffusers' layout."""
    from mezzotint.commands.failure import fail
    from mezzotint.sampling.catalog import models_folder

    if not name or Path(name).name != name or name.startswith("."):
        fail(f"--name is {name!r}; it must be a plain folder name, such as emoji-256.")
    try:
        from mezzotint.training.export_run import export_run

        folder = to or models_folder()
        folder.mkdir(parents=True, exist_ok=True)
        print(export_run(run, folder / name, time_shift=time_shift, guidance_scale=guidance,
                         num_inference_steps=steps))
    except (ValueError, OSError) as error:
        fail(str(error))

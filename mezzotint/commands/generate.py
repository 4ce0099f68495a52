"""`mezzotint generate`: a prompt to a file, here and now, without the queue."""

from pathlib import Path
from typing import Annotated

import typer


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to draw, for a model that draws by text.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write; several get -1, -2, ... added.")] = Path(
        "picture.png"
    ),
    model: Annotated[str, typer.Option(help="Name of a model, or a model folder.")] = "emoji-256",
    class_label: Annotated[
        str | None, typer.Option(help="Number or name of a class, for a model that draws by class labels.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; a multiple of the model's patch.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; a multiple of the model's patch.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    density: Annotated[
        str | None, typer.Option(help="Tokens kept, for models with segments: full, balanced, fast, or as 0.61-0.86.")
    ] = None,
    guidance_density: Annotated[
        str | None, typer.Option(help="The same for guidance's branch: same, skip, or as --density; same if not given.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Step cache, for models with segments: off, first-block[:0.1], taylor[:3].")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first picture.")] = None,
    num_images: Annotated[int, typer.Option("-n", "--num-images", help="Pictures.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp32; what is faster when not given.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw a picture from a prompt, or from a class label."""
    if prompt is None and class_label is None:
        raise typer.BadParameter("Missing argument 'PROMPT', or the option --class-label.")
    import json
    import time

    start = time.perf_counter()
    from mezzotint.commands.failure import fail
    from mezzotint.sampling.intake import accept
    from mezzotint.sampling.request import RequestError

    try:
        request, _ = accept({
            "prompt": prompt, "class_label": _label(class_label), "negative_prompt": negative_prompt,
            "model": model, "width": width, "height": height,
            "num_inference_steps": steps, "guidance_scale": guidance, "density": density,
            "guidance_density": guidance_density, "cache": cache, "seed": seed,
            "num_images": num_images,
        })
        _check_output(output)
        from mezzotint.commands.local_drawing import draw_to_files

        report = draw_to_files(request, output, device=device, dtype=dtype, start=start)
    except (RequestError, MemoryError, OSError) as error:
        fail(str(error))
    if json_output:
        print(json.dumps(report))
    else:
        for one in report["outputs"]:
            print(f"{one['path']}  seed {one['seed']}")


def _label(written: str | None) -> int | str | None:
    """A word of digits is the number of a class."""
    return int(written) if written is not None and written.isdecimal() and len(written) < 10 else written


def _check_output(output: Path) -> None:
    from mezzotint.commands.failure import fail

    if output.suffix.lower() != ".png":
        fail(f"-o is {output}; its name must end in .png.")
    if not output.absolute().parent.is_dir():
        fail(f"-o is {output}; the folder {output.absolute().parent} does not exist.")

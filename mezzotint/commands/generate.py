"""`mezzotint generate`: a prompt to a file, here and now, without the queue."""

from pathlib import Path
from typing import Annotated

import typer


def generate(
    prompt: Annotated[str, typer.Argument(help="What to draw.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="PNG to write; several get -1, -2, ... added.")] = Path(
        "picture.png"
    ),
    model: Annotated[str, typer.Option(help="Name of a model, or a model folder.")] = "emoji-256",
    negative_prompt: Annotated[str | None, typer.Option(help="What to keep away from.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels; a multiple of the model's patch.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; a multiple of the model's patch.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    density: Annotated[
        str | None, typer.Option(help="Tokens kept, for models with segments: full, balanced, fast, or as 0.61-0.86.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first picture.")] = None,
    num_images: Annotated[int, typer.Option("-n", "--num-images", help="Pictures.")] = 1,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp32; what is faster when not given.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Draw a picture from a prompt."""
    import json
    import time

    start = time.perf_counter()
    from mezzotint.commands.failure import fail
    from mezzotint.sampling.intake import accept
    from mezzotint.sampling.request import RequestError

    try:
        request, _ = accept({
            "prompt": prompt, "negative_prompt": negative_prompt, "model": model, "width": width, "height": height,
            "num_inference_steps": steps, "guidance_scale": guidance, "density": density, "seed": seed,
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


def _check_output(output: Path) -> None:
    from mezzotint.commands.failure import fail

    if output.suffix.lower() != ".png":
        fail(f"-o is {output}; its name must end in .png.")
    if not output.absolute().parent.is_dir():
        fail(f"-o is {output}; the folder {output.absolute().parent} does not exist.")

"""`mezzotint plan`: what a request would compute, step by step, without loading a model."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mezzotint.sampling.plan import StepPlan


def plan(
    model: Annotated[str, typer.Option(help="Name of a model, or a model folder.")] = "emoji-256",
    width: Annotated[int | None, typer.Option(help="Pixels; a multiple of the model's patch.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; a multiple of the model's patch.")] = None,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; 1 is none.")] = None,
    density: Annotated[
        str | None, typer.Option(help="Tokens kept, for models with segments: full, balanced, fast, or as 0.61-0.86.")
    ] = None,
    num_images: Annotated[int, typer.Option("-n", "--num-images", help="Pictures.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the token grids and the multiply-adds of each step. Tokens are image tokens; text comes on top."""
    from mezzotint.commands.failure import fail
    from mezzotint.commands.report import print_json, print_rows
    from mezzotint.sampling.intake import accept
    from mezzotint.sampling.request import RequestError

    try:
        request, planned = accept({
            "prompt": "only priced", "model": model, "width": width, "height": height, "num_inference_steps": steps,
            "guidance_scale": guidance, "density": density, "num_images": num_images,
        })
    except RequestError as error:
        fail(str(error))
    rows = [{"step": number, **_row(step)} for number, step in enumerate(planned.steps, start=1)]
    total = planned.flops // 2
    if json_output:
        print_json({
            "model": model, "density": request.density, "num_images": num_images, "macs": total, "steps": rows,
        })
        return
    print_rows(f"{model}, density {request.density}", [_shown(row) for row in rows])
    print(f"{total / 1e9:,.4g} GMACs for {num_images} {'picture' if num_images == 1 else 'pictures'}")


def _row(step: "StepPlan") -> dict[str, Any]:
    """A step of one picture; the multiply-adds of both branches where guidance runs."""
    from math import prod

    return {
        "t": step.t, "grid": step.grid, "tokens": prod(step.grid), "sparse_grid": step.sparse_grid,
        "sparse_tokens": None if step.sparse_grid is None else prod(step.sparse_grid),
        "guided": step.guided, "macs": step.flops // 2,
    }


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: grids as 6 x 6, multiply-adds in thousands of millions."""
    grids = {key: row[key] and "{} x {}".format(*row[key]) for key in ("grid", "sparse_grid")}
    rest = {key.replace("_", " "): value for key, value in (row | grids).items() if key != "macs"}
    return rest | {"guided": "yes" if row["guided"] else "no", "GMACs": row["macs"] / 1e9}

"""`mezzotint plan`: what a request would compute, step by step, without loading a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mezzotint.dit.density import Grid
    from mezzotint.sampling.plan import Plan, StepPlan

MODULES = {False: "run", True: "from the cache", None: "decided while drawing"}
"""What becomes of the sparse-dense modules at a step."""


def plan(
    model: Annotated[str, typer.Argument(help="Name of a model, or a model folder.")] = "emoji-256",
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
    num_images: Annotated[int, typer.Option("-n", "--num-images", help="Pictures.")] = 1,
    seconds: Annotated[
        bool, typer.Option("--seconds", help="Time one pass of each kind, and say how long drawing takes here.")
    ] = False,
    plot: Annotated[Path | None, typer.Option(help="Save a PNG of tokens and cost by step here.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the token grids and the multiply-adds of each step. Tokens are image tokens; text comes on top."""
    from mezzotint.commands.failure import fail
    from mezzotint.commands.report import print_json
    from mezzotint.sampling.catalog import find_model
    from mezzotint.sampling.intake import accept, any_subject

    try:
        _check_plot(plot)
        card = find_model(model)
        request, planned = accept(any_subject(card) | {
            "model": model, "width": width, "height": height, "num_inference_steps": steps,
            "guidance_scale": guidance, "density": density, "guidance_density": guidance_density, "cache": cache,
            "num_images": num_images,
        })
        chosen = {name: getattr(request, name) for name in ("density", "guidance_density", "cache")}
        report = {"model": model, **chosen, **_report(planned)}
        if seconds:
            report |= _seconds(planned, card.config, report["steps"])
        if plot:
            from mezzotint.commands.plan_picture import draw_plan

            draw_plan(_title(report), report["steps"], plot)
    except ModuleNotFoundError as error:
        fail(f'the package {error.name} is missing; --plot needs pip install "mezzotint[train]".')
    except (ValueError, OSError) as error:
        fail(str(error))
    print_json(report) if json_output else _print_table(report)


def _check_plot(plot: Path | None) -> None:
    if plot and plot.suffix.lower() != ".png":
        raise ValueError(f"--plot is {plot}; its name must end in .png.")
    if plot and not plot.absolute().parent.is_dir():
        raise ValueError(f"--plot is {plot}; the folder {plot.absolute().parent} does not exist.")


def _report(planned: "Plan") -> dict[str, Any]:
    return {
        "num_images": planned.num_images, "macs": planned.flops // 2, "dense_macs": planned.dense_flops // 2,
        "macs_are_at_most": any(step.cached is None for step in planned.steps),
        "steps": [{"step": number, **_row(step)} for number, step in enumerate(planned.steps, start=1)],
    }


def _row(step: "StepPlan") -> dict[str, Any]:
    """A step of one picture; the multiply-adds of both branches where guidance runs."""
    guidance = step.branches[1] if step.guided else None
    guidance_grid = None if guidance is None else guidance.sparse_grid
    return {
        "t": step.t, "grid": step.grid, "tokens": _tokens(step.grid), "sparse_grid": step.sparse_grid,
        "sparse_tokens": _tokens(step.sparse_grid), "guided": step.guided, "guidance_grid": guidance_grid,
        "guidance_tokens": _tokens(guidance_grid),
        "guidance_skips_modules": guidance is not None and guidance.skips_modules,
        "modules": None if step.sparse_grid is None else MODULES[step.cached], "macs": step.flops // 2,
    }


def _tokens(grid: "Grid | None") -> int | None:
    return None if grid is None else grid[0] * grid[1]


def _seconds(planned: "Plan", config: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Adds its seconds to each row; what a drawing takes, and how that is known."""
    import torch

    from mezzotint.sampling.pass_timing import step_seconds
    from mezzotint.sampling.precision import dtype_name, fastest_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = fastest_dtype(str(device))
    timed = step_seconds(planned.steps, config, device, dtype)
    for row, one in zip(rows, timed, strict=True):
        row["seconds"] = one
    return {
        "seconds": sum(timed) * planned.num_images,
        "seconds_from": "medians of single passes, one kind each, timed now with random weights; text, scheduler and "
                        "decoding are left out",
        "device": str(device), "dtype": dtype_name(dtype), "num_threads": torch.get_num_threads(),
    }


def _title(report: dict[str, Any]) -> str:
    words = {"density": "density", "guidance_density": "of guidance", "cache": "cache"}
    return ", ".join([report["model"], *(f"{word} {report[name]}" for name, word in words.items())])


def _print_table(report: dict[str, Any]) -> None:
    from mezzotint.commands.report import print_rows

    print_rows(_title(report), [_shown(row) for row in report["steps"]])
    most = "at most " if report["macs_are_at_most"] else ""
    count = f"{report['num_images']} {'picture' if report['num_images'] == 1 else 'pictures'}"
    print(f"{most}{report['macs'] / 1e9:,.4g} GMACs for {count}, {report['macs'] / report['dense_macs']:.1%} of the "
          f"dense network's {report['dense_macs'] / 1e9:,.4g}")
    if "seconds" in report:
        print(f"{most}{report['seconds']:.3g} s on {report['device']} in {report['dtype']} (threads: "
              f"{report['num_threads']}): {report['seconds_from']}")


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: grids as 6 x 6, multiply-adds in thousands of millions, times in milliseconds."""
    shown = {
        "step": row["step"], "t": row["t"], "grid": _sides(row["grid"]), "tokens": row["tokens"],
        "sparse grid": _sides(row["sparse_grid"]), "sparse tokens": row["sparse_tokens"],
        "guidance": _guidance(row), "modules": row["modules"], "GMACs": row["macs"] / 1e9,
    }
    return shown | ({"ms": row["seconds"] * 1e3} if "seconds" in row else {})


def _sides(grid: "Grid | None") -> str | None:
    return None if grid is None else f"{grid[0]} x {grid[1]}"


def _guidance(row: dict[str, Any]) -> str:
    if not row["guided"]:
        return "no"
    if row["guidance_skips_modules"]:
        return "skips modules"
    return _sides(row["guidance_grid"]) or "yes"

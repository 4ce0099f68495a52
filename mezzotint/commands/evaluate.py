"""`mezzotint evaluate`: how well a model draws what it is asked for."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.commands.report import print_json

if TYPE_CHECKING:
    from mezzotint.sampling.hub import LoadedModel
    from mezzotint.sampling.pipeline import Pipeline
    from mezzotint.training.evaluation import Evaluation
    from mezzotint.training.reference import Reference

SHEET_PICTURES = 64


def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a model folder.")] = "emoji-256",
    data: Annotated[
        str | None, typer.Option(help="Compare with this data set's pictures, not with the emoji that ship.")
    ] = None,
    labels: Annotated[int, typer.Option(min=2, help="How many labels to draw.")] = 256,
    steps: Annotated[int | None, typer.Option(min=1, max=250, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=30, help="Guidance scale.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="Save a PNG of the first 64 pictures here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Draw one picture for each of many labels, and count how often the nearest real picture bears it.

    Beside it stand real pictures blurred to 48 pixels, and the drawn pictures against shuffled labels.
    """
    import contextlib
    import sys

    from mezzotint.commands.failure import fail

    _check_sheet(sheet)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is not the result
            report = _report(model, data, labels, steps, guidance, sheet)
    except ModuleNotFoundError as error:
        fail(f'the package {error.name} is missing; evaluation needs pip install "mezzotint[train]".')
    except (OSError, ValueError) as error:
        fail(str(error))
    print_json(report) if json else _print_table(report)


def _check_sheet(sheet: Path | None) -> None:
    """Before minutes are spent on pictures that could not be saved."""
    from mezzotint.commands.failure import fail

    if sheet and sheet.suffix.lower() != ".png":
        fail(f"--sheet is {sheet}; its name must end in .png.")
    if sheet and not sheet.absolute().parent.is_dir():
        fail(f"--sheet is {sheet}; the folder {sheet.absolute().parent} is not there, so make it first.")


def _report(
    model: str, data: str | None, labels: int, steps: int | None, guidance: float | None, sheet: Path | None
) -> dict[str, Any]:
    import time
    from dataclasses import asdict

    from mezzotint.sampling.catalog import find_model
    from mezzotint.training.evaluation import choose_labels, evaluate_retrieval
    from mezzotint.training.quality import FeatureExtractor
    from mezzotint.training.reference import load_reference, measure_data

    start = time.perf_counter()
    card = find_model(model)
    steps = card.num_inference_steps if steps is None else steps
    guidance = card.guidance_scale if guidance is None else guidance
    extract = FeatureExtractor()
    reference = measure_data(data, extract) if data else load_reference()
    choose_labels(reference.distinct_labels, labels)  # refused now, and not after a minute of loading
    loaded = _load(model)
    ready = time.perf_counter()

    def draw(prompts: list[str], seeds: list[int]) -> list[Any]:
        drawn = loaded.pipeline(
            prompts, seed=seeds, num_inference_steps=steps, guidance_scale=guidance, batch_size=len(prompts)
        )
        return drawn.images

    result = evaluate_retrieval(draw, reference, extract, labels)
    if sheet:
        _save_sheet(result, sheet)
    seconds = {"load": ready - start, **result.seconds, "total": time.perf_counter() - start}
    return {
        "model": {"name": model, "fingerprint": loaded.fingerprint},
        "retrieval": asdict(result.retrieval),
        "blurred_48px": asdict(result.blurred),
        "shuffled": asdict(result.shuffled),
        "features": result.features,
        "num_labels": labels,
        "gallery": _described(reference),
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "seconds": {phase: round(s, 3) for phase, s in seconds.items()},
        **_machine(loaded.pipeline),
    }


def _load(model: str) -> "LoadedModel":
    import torch

    from mezzotint.sampling.hub import Hub
    from mezzotint.sampling.precision import fastest_dtype

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Hub(torch.device(device), fastest_dtype(device)).get(model)


def _machine(pipeline: "Pipeline") -> dict[str, Any]:
    import torch

    from mezzotint.sampling.precision import dtype_name

    return {
        "device": str(pipeline.device),
        "dtype": dtype_name(pipeline.transformer.dtype),
        "num_threads": torch.get_num_threads(),
    }


def _described(reference: "Reference") -> dict[str, Any]:
    return {
        "source": reference.source,
        "num_pictures": len(reference.labels),
        "num_labels": len(reference.distinct_labels),
    }


def _save_sheet(result: "Evaluation", path: Path) -> None:
    """The first pictures; under each its prompt, and what it was taken for where that is something else."""
    from mezzotint.training.picture_grid import picture_grid

    captions = [
        label if nearest[0] == label else f"{label} (taken for: {nearest[0]})"
        for label, nearest in zip(result.labels, result.ranked, strict=True)
    ][:SHEET_PICTURES]
    picture_grid(result.images[: len(captions)], captions, caption_lines=3).save(path)


def _print_table(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"Label retrieval of {report['model']['name']} over {report['num_labels']} labels")
    for heading in ("pictures", "top 1", "top 5"):
        table.add_column(heading, justify="left" if heading == "pictures" else "right")
    rows = {"drawn": "retrieval", "real, blurred to 48 px": "blurred_48px", "labels shuffled": "shuffled"}
    for words, key in rows.items():
        table.add_row(words, f"{report[key]['top1']:.1%}", f"{report[key]['top5']:.1%}")
    console = Console()
    console.print(table)
    console.print(f"features {report['features']}, gallery of {report['gallery']['num_pictures']:,} pictures")
    console.print(f"steps {report['num_inference_steps']}, guidance {report['guidance_scale']:g}")
    console.print(f"{report['seconds']['total']:.0f} s on {report['device']} in {report['dtype']}")

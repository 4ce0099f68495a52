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
PAIRED_SETTINGS = ("density", "guidance_density", "cache")


def evaluate(
    model: Annotated[str, typer.Argument(help="A shipped model's name, or a model folder.")] = "emoji-256",
    data: Annotated[
        str | None, typer.Option(help="Compare with this data set's pictures, not with the emoji that ship.")
    ] = None,
    labels: Annotated[int, typer.Option(min=2, help="How many labels to draw.")] = 256,
    steps: Annotated[int | None, typer.Option(min=1, max=250, help="Denoising steps.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, max=30, help="Guidance scale.")] = None,
    density: Annotated[
        str | None, typer.Option(help="Tokens kept, for models with segments: full, balanced, fast, or as 0.61-0.86.")
    ] = None,
    guidance_density: Annotated[
        str | None, typer.Option(help="The same for guidance's branch: same, skip, or as --density; same if not given.")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="Step cache, for models with segments: off, first-block[:0.1], taylor[:3].")
    ] = None,
    paired_with: Annotated[
        str | None,
        typer.Option(help="Draw all again with other settings, as in guidance_density=same or density=full,cache=off, "
                          "and say how far the pictures are from those."),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Save a PNG of the first 64 pictures here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Draw one picture for each of many labels, and count how often the nearest real picture bears it.

    Beside it stand real pictures blurred to 48 pixels, the drawn pictures against shuffled labels, and the kernel
    distance of the drawn pictures to real ones.
    """
    import contextlib
    import sys

    from mezzotint.commands.failure import fail

    _check_sheet(sheet)
    asked = {
        "num_inference_steps": steps, "guidance_scale": guidance, "density": density,
        "guidance_density": guidance_density, "cache": cache,
    }
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is not the result
            report = _report(model, data, labels, asked, paired_with, sheet)
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
    model: str, data: str | None, labels: int, asked: dict[str, Any], paired_with: str | None, sheet: Path | None
) -> dict[str, Any]:
    import time
    from dataclasses import asdict

    from mezzotint.training.evaluation import choose_labels, evaluate_drawings, evaluate_pairs
    from mezzotint.training.quality import FeatureExtractor
    from mezzotint.training.reference import load_reference, measure_data

    start = time.perf_counter()
    settings = _complete(model, asked)
    other = None if paired_with is None else _complete(model, settings | _changes(paired_with))
    extract = FeatureExtractor()
    reference = measure_data(data, extract) if data else load_reference()
    choose_labels(reference.distinct_labels, labels)  # refused now, and not after a minute of loading
    loaded = _load(model)
    ready = time.perf_counter()
    artist = Artist(loaded.text_pipeline, settings)
    result = evaluate_drawings(artist.draw, reference, extract, labels)
    pairs: dict[str, Any] = {}
    if other is not None:
        paired = evaluate_pairs(Artist(loaded.text_pipeline, other).draw, result, extract)
        pairs["paired"] = {"with": other, **asdict(paired)}
    if sheet:
        _save_sheet(result, sheet)
    seconds = {"load": ready - start, **result.seconds, "total": time.perf_counter() - start}
    return {
        "model": {"name": model, "fingerprint": loaded.fingerprint},
        "retrieval": asdict(result.retrieval),
        "blurred_48px": asdict(result.blurred),
        "shuffled": asdict(result.shuffled),
        "kernel_distance": {"drawn": asdict(result.distance), "blurred_48px": asdict(result.blurred_distance)},
        **pairs,
        "features": result.features,
        "num_labels": labels,
        "gallery": _described(reference),
        **settings,
        "macs_a_picture": artist.flops // 2 // labels,
        "seconds": {phase: round(s, 3) for phase, s in seconds.items()},
        **_machine(loaded.text_pipeline),
    }


class Artist:
    """Draws prompts with fixed settings, and counts the FLOPs."""

    def __init__(self, pipeline: "Pipeline", settings: dict[str, Any]) -> None:
        self.pipeline, self.settings, self.flops = pipeline, settings, 0

    def draw(self, prompts: list[str], seeds: list[int]) -> list[Any]:
        drawn = self.pipeline(prompts, seed=seeds, batch_size=len(prompts), **self.settings)
        self.flops += drawn.flops
        return drawn.images


def _complete(model: str, asked: dict[str, Any]) -> dict[str, Any]:
    """The settings of a drawing, checked before anything is loaded; None is the model's own, or the usual."""
    from mezzotint.sampling.catalog import find_model
    from mezzotint.sampling.intake import accept

    card = find_model(model)
    _ = card.text_config  # a model that draws by class labels is refused
    steps = asked["num_inference_steps"] or card.num_inference_steps
    request = accept({"prompt": "only checked", "model": model} | asked | {"num_inference_steps": steps})[0]
    return {name: getattr(request, name) for name in asked}


def _changes(written: str) -> dict[str, str]:
    """The settings of --paired-with."""
    changes = {}
    for part in written.split(","):
        name, _, value = (word.strip() for word in part.partition("="))
        if name not in PAIRED_SETTINGS or not value:
            raise ValueError(f"--paired-with is {written!r}; it must be one or more of {', '.join(PAIRED_SETTINGS)}, "
                             "as in guidance_density=same or density=full,cache=off.")
        changes[name] = value
    return changes


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

    table = Table(title=f"{report['model']['name']} over {report['num_labels']} labels")
    for heading in ("pictures", "label is top 1", "top 5", "kernel distance", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "pictures" else "right")
    rows = {"drawn": "retrieval", "real, blurred to 48 px": "blurred_48px", "labels shuffled": "shuffled"}
    distances = {"retrieval": report["kernel_distance"]["drawn"], **report["kernel_distance"]}
    for words, key in rows.items():
        table.add_row(words, *(f"{report[key][top]:.1%}" for top in ("top1", "top5")), *_distance(distances.get(key)))
    console = Console()
    console.print(table)
    if "paired" in report:
        print(_paired(report["paired"]))
    console.print(f"features {report['features']}, gallery of {report['gallery']['num_pictures']:,} pictures")
    print(", ".join(f"{name} {report[name]}" for name in ("num_inference_steps", "guidance_scale", *PAIRED_SETTINGS)))
    console.print(f"{report['macs_a_picture'] / 1e9:,.4g} GMACs a picture, {report['seconds']['total']:.0f} s on "
                  f"{report['device']} in {report['dtype']}")


def _distance(distance: dict[str, float] | None) -> tuple[str, str]:
    if distance is None:
        return "-", "-"
    return f"{distance['value']:.3g}", f"{distance['low']:.3g} to {distance['high']:.3g}"


def _paired(paired: dict[str, Any]) -> str:
    other = ", ".join(f"{name} {paired['with'][name]}" for name in PAIRED_SETTINGS)
    return (f"against {other}: feature distance {paired['feature_distance']:.3g}, "
            f"RMS pixel difference {paired['rms_pixel_difference']:.3g} of 1")

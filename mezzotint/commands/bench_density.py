"""`mezzotint bench density`: a pretrained DiT in segments beside diffusers' own dense one."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.commands.report import print_json, print_rows

if TYPE_CHECKING:
    from mezzotint.sampling.density_benchmark import DensityRow


def density(
    pixels: Annotated[str, typer.Option(help="Picture sides: 256, 512 or both, separated by a comma.")] = "256,512",
    steps: Annotated[int, typer.Option(min=1, max=250, help="Denoising steps, each with guidance.")] = 25,
    dtype: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Time DiT-XL/2 (random weights) at the published token densities against diffusers' dense network.

    Takes minutes and some 6 GB of memory. Close other programs first.
    """
    import contextlib
    import sys

    from mezzotint.commands.failure import fail

    try:
        with contextlib.redirect_stdout(sys.stderr):
            report = _report(pixels, steps, dtype)
    except ValueError as error:
        fail(str(error))
    print_json(report) if json else print_rows(_title(report), report["rows"])


def _report(pixels: str, steps: int, dtype: str) -> dict[str, Any]:
    import torch

    from mezzotint.kernels.machine_kind import describe_device
    from mezzotint.sampling.density_benchmark import measure_density

    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if dtype not in dtypes:
        raise ValueError(f"--dtype is {dtype!r}; it must be bf16 or fp32.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sides = [_side(word) for word in pixels.split(",")]
    rows = [_row(row) for side in sides for row in measure_density(side, steps, dtypes[dtype], device)]
    return {"rows": rows, "device": describe_device(device)}


def _side(word: str) -> int:
    if word.strip() not in ("256", "512"):
        raise ValueError(f"--pixels is {word!r}; it must be 256, 512 or both, separated by a comma.")
    return int(word)


def _row(row: "DensityRow") -> dict[str, Any]:
    from dataclasses import asdict

    return {**asdict(row), "speedup": row.speedup}


def _title(report: dict[str, Any]) -> str:
    return f"DiT-XL/2 on {', '.join(f'{key} {value}' for key, value in report['device'].items())}"

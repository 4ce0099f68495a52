"""`mezzotint bench`: measures what this package is made for, beside what it replaces."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.commands.bench_density import density
from mezzotint.commands.report import print_json, print_rows

if TYPE_CHECKING:
    import torch

    from mezzotint.kernels.attention_benchmark import Row, Sweep
    from mezzotint.kernels.operations_benchmark import Measured

app = typer.Typer(help="Measure the kernels on this machine.", no_args_is_help=True, rich_markup_mode=None)
app.command()(density)


@app.command()
def attention(
    tokens: Annotated[str, typer.Option(help="Sequence lengths, separated by commas.")] = "64,256,1024,2048,4096",
    density: Annotated[str, typer.Option(help="Kept shares of the blocks, over 0 and up to 1.")] = "1,0.5,0.25,0.125",
    head_dim: Annotated[str, typer.Option(help="Channels a head.")] = "64,72,128",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32.")] = "bf16,fp32",
    heads: Annotated[int, typer.Option(min=1, help="Heads.")] = 16,
    block: Annotated[int, typer.Option(help="Tokens a block: 16, 32, 64 or 128.")] = 64,
    forward_only: Annotated[bool, typer.Option("--forward-only", help="Leave the backward pass out.")] = False,
    flex: Annotated[bool, typer.Option(help="Compare with compiled FlexAttention, too (slow to compile).")] = True,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes cuda where it is.")] = "auto",
    plot: Annotated[Path, typer.Option(help="Where the chart goes, a PNG.")] = Path("attention.png"),
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Time block-sparse attention against SDPA and FlexAttention: length x density x head dim x dtype.

    All sides of a point are called in turn, and the medians are compared. Close other programs first.
    """
    import contextlib
    import sys

    from mezzotint.commands.failure import fail

    try:
        sweep = _sweep(tokens, density, head_dim, dtype, heads, block, forward_only, flex)
        _check_plot(plot)
        with contextlib.redirect_stdout(sys.stderr):
            report = _attention_report(sweep, _device(device))
            _draw(report, plot)
    except ModuleNotFoundError as error:
        fail(f'the package {error.name} is missing; the chart needs pip install "mezzotint[train]".')
    except ValueError as error:
        fail(str(error))
    print_json(report) if json else _print_table(report)


@app.command()
def kernels(
    compile_report: Annotated[
        bool, typer.Option("--compile-report", help="Registers, spills, shared memory and MMA counts, without a GPU.")
    ] = False,
    tokens: Annotated[str, typer.Option(help="Tokens of all pictures, separated by commas.")] = "64,1024,4096",
    picture_tokens: Annotated[int, typer.Option(min=1, help="Tokens of one picture, or all where there are fewer.")]
    = 256,
    width: Annotated[str, typer.Option(help="Channels; experts have four times as many inside.")]
    = "320,512,1024,1152",
    experts: Annotated[int, typer.Option(min=1, max=64, help="Experts.")] = 8,
    capacity: Annotated[str, typer.Option(help="Experts a token has on average.")] = "2",
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32.")] = "bf16,fp32",
    forward_only: Annotated[bool, typer.Option("--forward-only", help="Leave the backward pass out.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto takes cuda where it is.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Time a mixture of experts against one-hot products and plain torch, and norm_modulate against torch's operators.

    All sides of a point are called in turn, and the medians are compared. Close other programs first.

    With --compile-report: compile every Triton kernel for sm_80 and sm_90 instead, and say what the compiler made of
    it. Exit code 1 when a limit is broken (spills, shared memory, wasted MMA).
    """
    from mezzotint.commands.failure import fail

    if not compile_report:
        try:
            report = _operations_report(
                tokens, picture_tokens, width, dtype, experts, capacity, forward_only, _device(device)
            )
        except ValueError as error:
            fail(str(error))
        print_json(report) if json else _print_operations(report)
        return
    from dataclasses import asdict

    from mezzotint.kernels.compile_report import compile_report as compile_all
    from mezzotint.kernels.compile_report import limits

    try:
        rows = compile_all()
    except ValueError as error:
        fail(str(error))
    broken = limits(rows)
    if json:
        print_json({"rows": [asdict(row) for row in rows], "broken": broken})
    else:
        print_rows("Compiled without a GPU", [asdict(row) for row in rows])
    if broken:
        fail(" ".join(broken))


def _sweep(
    tokens: str, density: str, head_dim: str, dtype: str, heads: int, block: int, forward_only: bool, flex: bool
) -> "Sweep":
    from mezzotint.kernels.attention_benchmark import PASSES, Sweep

    if block not in (16, 32, 64, 128):
        raise ValueError(f"--block is {block}; it must be 16, 32, 64 or 128.")
    return Sweep(
        tokens=_numbers("--tokens", tokens, int, 1, 10**6), densities=_numbers("--density", density, float, 0, 1),
        head_dims=_numbers("--head-dim", head_dim, int, 1, 256), dtypes=_dtypes(dtype),
        passes=PASSES[:1] if forward_only else PASSES, heads=heads, block=block, flex=flex,
    )


def _dtypes(text: str) -> "list[torch.dtype]":
    import torch

    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    for word in text.split(","):
        if word not in dtypes:
            raise ValueError(f"--dtype is {word!r}; it must be one of {', '.join(dtypes)}, separated by commas.")
    return [dtypes[word] for word in text.split(",")]


def _numbers(name: str, text: str, kind: type, low: float, high: float) -> list[Any]:
    try:
        values = [kind(word) for word in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(low <= v <= high and v > 0 for v in values):
        over = "over 0 and up to" if kind is float else f"from {low} to"
        raise ValueError(f"{name} is {text!r}; it must be numbers {over} {high}, separated by commas.")
    return values


def _check_plot(plot: Path) -> None:
    if plot.suffix.lower() != ".png":
        raise ValueError(f"--plot is {plot}; its name must end in .png.")
    if not plot.absolute().parent.is_dir():
        raise ValueError(f"--plot is {plot}; the folder {plot.absolute().parent} is not there, so make it first.")


def _device(name: str) -> "torch.device":
    import torch

    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"--device is {name!r}; it must be auto, cpu or cuda.")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device is cuda; torch finds none here, so give cpu.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _attention_report(sweep: "Sweep", device: "torch.device") -> dict[str, Any]:
    import sys

    from tqdm import tqdm

    from mezzotint.kernels.attention_benchmark import points, run_sweep
    from mezzotint.kernels.machine_kind import describe_device

    total = len(points(sweep)) * len(sweep.passes)
    progress = tqdm(run_sweep(sweep, device), total=total, unit="point", disable=not sys.stderr.isatty())
    rows = [_row(row) for row in progress]
    return {"rows": rows, "device": describe_device(device)}


def _row(row: "Row") -> dict[str, Any]:
    from dataclasses import asdict

    values = asdict(row)
    values["pass"] = values.pop("direction")
    return {**values, "over_sdpa": row.over_sdpa, "over_flex": row.over_flex}


def _operations_report(
    tokens: str, picture_tokens: int, width: str, dtype: str, experts: int, capacity: str, forward_only: bool,
    device: "torch.device",
) -> dict[str, Any]:
    import sys

    from tqdm import tqdm

    from mezzotint.kernels.attention_benchmark import PASSES
    from mezzotint.kernels.machine_kind import describe_device
    from mezzotint.kernels.operations_benchmark import OperationsSweep, num_points, run_operations
    from mezzotint.training.memory import keep_freed_memory

    sweep = OperationsSweep(
        tokens=_numbers("--tokens", tokens, int, 1, 10**6), picture_tokens=picture_tokens,
        widths=_numbers("--width", width, int, 1, 10**4),
        dtypes=_dtypes(dtype), passes=PASSES[:1] if forward_only else PASSES, experts=experts,
        capacities=_numbers("--capacity", capacity, float, 0, experts),
    )
    keep_freed_memory()  # as in training: with page faults at every result, those are what is compared
    progress = tqdm(run_operations(sweep, device), total=num_points(sweep), unit="point",
                    disable=not sys.stderr.isatty())
    return {"rows": [_operation_row(row) for row in progress], "device": describe_device(device)}


def _operation_row(row: "Measured") -> dict[str, Any]:
    from dataclasses import asdict

    values = asdict(row)
    values["pass"] = values.pop("direction")
    seconds = values.pop("seconds")
    others = [side for side in seconds if side != "ours"]
    return {**values, **{f"{side}_s": seconds[side] for side in seconds}, **{f"over_{s}": row.over(s) for s in others}}


def _print_operations(report: dict[str, Any]) -> None:
    """One table an operation, without the others' seconds: the ratios say them."""
    described = ", ".join(f"{key} {value}" for key, value in report["device"].items())
    for operation in dict.fromkeys(row["operation"] for row in report["rows"]):
        rows = [
            {
                key: value for key, value in row.items()
                if value is not None and key not in ("operation", "experts") and (key == "ours_s" or key[-2:] != "_s")
            }
            for row in report["rows"] if row["operation"] == operation
        ]
        print_rows(f"{operation} on {described}", rows)


def _draw(report: dict[str, Any], path: Path) -> None:
    """One panel a dtype and pass: speed over SDPA by length, a line for each density (head dims averaged)."""
    from statistics import geometric_mean

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = report["rows"]
    panels = sorted({(r["dtype"], r["pass"]) for r in rows})
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.8), squeeze=False, sharey=True)
    for axis, (dtype, direction) in zip(axes[0], panels, strict=True):
        here = [r for r in rows if (r["dtype"], r["pass"]) == (dtype, direction)]
        for kept in sorted({r["density"] for r in here}, reverse=True):
            lengths = sorted({r["tokens"] for r in here if r["density"] == kept})
            ratios = [
                geometric_mean(r["over_sdpa"] for r in here if (r["tokens"], r["density"]) == (n, kept))
                for n in lengths
            ]
            axis.plot(lengths, ratios, marker="o", label=f"density {kept:g}")
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set(title=f"{dtype}, {direction}", xlabel="tokens", xscale="log", yscale="log")
    axes[0][0].set_ylabel("times as fast as dense SDPA")
    axes[0][-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _print_table(report: dict[str, Any]) -> None:
    shown = ("tokens", "head_dim", "dtype", "density", "pass", "backend", "ours_s", "sdpa_s", "flex_s", "over_sdpa",
             "over_flex")
    rows = [{key: row[key] for key in shown} for row in report["rows"]]
    print_rows(f"Attention on {', '.join(f'{k} {v}' for k, v in report['device'].items())}", rows)
    for reason in sorted({r["flex_reason"] for r in report["rows"] if r["flex_reason"]}):
        print(f"no figure of FlexAttention: {reason}")

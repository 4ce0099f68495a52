"""`mezzotint convert`: a pretrained network cut into segments of different token density."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.commands.report import print_json

if TYPE_CHECKING:
    from diffusers import ModelMixin


def convert(
    source: Annotated[str, typer.Argument(help="A DiT or Latte checkpoint, a model folder, or a model's name.")],
    density: Annotated[str, typer.Option(help="A layout's name, such as dit-xl-256, or '1 + 4x[1,3,1,1] + 3'.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; it must not be there yet.")],
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, where a checkpoint is of no known size.")]
    = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Cut a pretrained DiT, PixArt or Latte into dense and sparse segments, ready to be fine-tuned.

    Its weights are copied, so at the start the cut network knows what the dense one did. Of a pipeline's folder the
    other parts are copied, too.
    """
    import contextlib
    import sys

    from mezzotint.commands.failure import fail
    from mezzotint.dit.segment_layout import named_layout

    try:
        layout = named_layout(density)  # refused now, and not after a minute of loading
        folder = _source_folder(source)
        if output.exists():
            raise ValueError(f"-o is {output}; it is there already, so give another name or move it away.")
        with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is not the result
            report = _convert(folder, str(layout), output, heads)
    except (ValueError, OSError) as error:
        fail(str(error))
    print_json(report) if json else _print_text(report)


def _source_folder(source: str) -> Path:
    """A path as it is given, or the folder of a model that is known by name."""
    from mezzotint.sampling.catalog import find_model, model_names

    if not Path(source).exists() and source in model_names():
        return find_model(source).folder
    if not Path(source).exists():
        raise ValueError(f"SOURCE is {source!r}; there is no such file or folder, and no model of that name.")
    return Path(source)


def _convert(source: Path, written_layout: str, output: Path, heads: int | None) -> dict[str, Any]:
    from mezzotint.dit.checkpoints.sources import load_pretrained
    from mezzotint.dit.recut import recut
    from mezzotint.dit.segment_layout import SegmentLayout

    inner = source / "transformer"
    dense = load_pretrained(inner if inner.is_dir() else source, heads)
    cut = recut(dense, SegmentLayout.parse(written_layout))
    _write(cut, source if inner.is_dir() else None, output)
    return {
        "folder": str(output), "network": type(cut).__name__, "layout": written_layout,
        "parameters": {"dense": _count(dense), "cut": _count(cut)},
    }


def _count(network: "ModelMixin") -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _write(cut: "ModelMixin", pipeline: Path | None, output: Path) -> None:
    """The network's folder, or a pipeline's with the network in it; it bears its name only once it is whole."""
    import os
    import shutil

    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f".{output.name}-{os.getpid()}")
    try:
        if pipeline is None:
            cut.save_pretrained(unfinished)
        else:
            _copy_pipeline(cut, pipeline, unfinished)
            cut.save_pretrained(unfinished / "transformer")
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _copy_pipeline(cut: "ModelMixin", pipeline: Path, target: Path) -> None:
    """All parts but the transformer, and an index that names its new class."""
    import json
    import shutil

    from mezzotint.dit.checkpoints.files import read_json

    target.mkdir()
    for part in pipeline.iterdir():
        if part.is_dir() and part.name != "transformer":
            shutil.copytree(part, target / part.name)
    if (pipeline / "model_index.json").is_file():
        index = read_json(pipeline / "model_index.json")
        index["transformer"] = [type(cut).__module__, type(cut).__name__]
        (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _print_text(report: dict[str, Any]) -> None:
    dense, cut = report["parameters"]["dense"], report["parameters"]["cut"]
    print(f"{report['folder']}  {report['network']} in {report['layout']}  {dense:,} -> {cut:,} parameters")

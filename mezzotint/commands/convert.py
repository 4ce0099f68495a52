"""`mezzotint convert`: a pretrained network as a folder of ours, cut into segments of different token density."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mezzotint.commands.report import print_json

if TYPE_CHECKING:
    from diffusers import ModelMixin


def convert(
    source: Annotated[
        str, typer.Argument(help="A DiT, Latte or MicroDiT checkpoint, a model folder, or a model's name.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; it must not be there yet.")],
    density: Annotated[
        str | None,
        typer.Option(help="A layout's name, such as dit-xl-256, or '1 + 4x[1,3,1,1] + 3'; without it nothing is cut."),
    ] = None,
    heads: Annotated[int | None, typer.Option(min=1, help="Attention heads, where a checkpoint is of no known size.")]
    = None,
    parts_from: Annotated[
        Path | None,
        typer.Option(help="A pipeline's folder whose other parts (vae, scheduler, names of classes) go with a "
                          "checkpoint that comes alone."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Cut a pretrained DiT, PixArt or Latte into dense and sparse segments, ready to be fine-tuned; or, without
    --density, only take it over, as a MicroDiT.

    Its weights are copied, so at the start the cut network knows what the dense one did. Of a pipeline's folder the
    other parts are copied, too, so that what comes out can be drawn with.
    """
    import contextlib
    import sys

    from mezzotint.commands.failure import fail
    from mezzotint.dit.segment_layout import named_layout

    try:
        # Refused now, and not after a minute of loading.
        layout = None if density is None else str(named_layout(density))
        folder = _source_folder(source)
        if output.exists():
            raise ValueError(f"-o is {output}; it is there already, so give another name or move it away.")
        with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is not the result
            report = _convert(folder, layout, output, heads, _parts(folder, parts_from))
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


def _parts(source: Path, given: Path | None) -> Path | None:
    """The pipeline whose other parts are copied: the source's own, or the one that was given, or none."""
    own = source if (source / "transformer").is_dir() else None
    if given is None:
        return own
    if own is not None:
        raise ValueError(f"--parts-from is {given}; {source} has parts of its own, so leave it out.")
    if not (given / "model_index.json").is_file():
        raise ValueError(f"--parts-from is {given}; it must be a pipeline's folder, with a model_index.json.")
    return given


def _convert(
    source: Path, written_layout: str | None, output: Path, heads: int | None, parts: Path | None
) -> dict[str, Any]:
    from mezzotint.dit.checkpoints.sources import load_pretrained
    from mezzotint.dit.recut import recut
    from mezzotint.dit.segment_layout import SegmentLayout

    inner = source / "transformer"
    dense = load_pretrained(inner if inner.is_dir() else source, heads)
    cut = dense if written_layout is None else recut(dense, SegmentLayout.parse(written_layout))
    _write(cut, parts, output)
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
        if type(cut).__name__ == "ClassDiT":  # diffusers' own pipeline could not call it
            index["_class_name"] = "ClassPipeline"
        (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _print_text(report: dict[str, Any]) -> None:
    dense, cut = report["parameters"]["dense"], report["parameters"]["cut"]
    layout = report["layout"] or "one segment"
    print(f"{report['folder']}  {report['network']} in {layout}  {dense:,} -> {cut:,} parameters")

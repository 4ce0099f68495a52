"""`mezzotint adapters`: In-Context LoRA adapters: bring one in, see what is here, merge some into a model."""

from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True, help="Import, list, describe, merge and compose data for adapters.")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(help="A safetensors file, or the name of a published adapter.")],
    base: Annotated[str, typer.Option(help="Model it was trained on: flux, or the name or folder of one.")] = "flux",
    name: Annotated[str | None, typer.Option(help="Name to give it; the file's own when not given.")] = None,
    json_output: Json = False,
) -> None:
    """Check an adapter's file and keep it under a name.

    FLUX adapters may be in the key layout of diffusers, PEFT, ai-toolkit, kohya or XLabs. Only safetensors is read.
    """
    from mezzotint.commands.failure import fail
    from mezzotint.commands.report import print_json

    try:
        from mezzotint.sampling.adapter_import import import_adapter

        path = _source(file)
        described = _described(import_adapter(path, name or path.stem.lower(), base))
    except (ValueError, OSError) as error:
        fail(str(error))
    print_json(described) if json_output else _print(described)


@app.command("list")
def list_adapters(
    published: Annotated[bool, typer.Option("--published", help="The ten of the In-Context LoRA authors.")] = False,
    json_output: Json = False,
) -> None:
    """List the adapters that are here, or those that were published for FLUX."""
    from mezzotint.commands.report import print_json, print_rows

    rows = _published_rows() if published else _own_rows()
    if json_output:
        print_json({"adapters": rows})
    elif rows:
        print_rows("Published adapters for FLUX.1-dev" if published else "Adapters", rows)
    else:
        print("no adapters here; `mezzotint adapters import FILE` brings one in")


@app.command()
def info(
    name: Annotated[str, typer.Argument(help="An adapter's name, as `list` shows it.")],
    json_output: Json = False,
) -> None:
    """What an adapter's header says: base, rank, panels and how its captions are written."""
    from mezzotint.commands.failure import fail
    from mezzotint.commands.report import print_json
    from mezzotint.sampling.adapter_files import find_adapter

    try:
        described = _described(find_adapter(name))
    except (ValueError, OSError) as error:
        fail(str(error))
    print_json(described) if json_output else _print(described)


@app.command()
def fuse(
    adapters: Annotated[
        list[str], typer.Argument(metavar="NAME[:WEIGHT]...", help="Adapters; a weight is 1 if not given.")
    ],
    model: Annotated[str, typer.Option(help="Name or folder of the model that they were trained on.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; it must not be there yet.")],
    json_output: Json = False,
) -> None:
    """Write a copy of a model with adapters merged into its weights. The model itself stays as it is."""
    from mezzotint.commands.failure import fail
    from mezzotint.commands.report import print_json

    try:
        wanted = [_weighted(text) for text in adapters]
        from mezzotint.sampling.adapter_import import fuse_into_folder

        fuse_into_folder(model, wanted, output)
    except (ValueError, OSError) as error:
        fail(str(error))
    print_json({"folder": str(output), "model": model, "adapters": dict(wanted)}) if json_output else print(output)


@app.command()
def compose(
    task: Annotated[str, typer.Argument(help="styles, tones or sequences.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write; it must not be there yet.")],
    sets: Annotated[int, typer.Option(help="Sets for training.")] = 40,
    held_out: Annotated[int, typer.Option(help="Sets of other subjects, set apart.")] = 16,
    panel_size: Annotated[int, typer.Option(help="Side of a panel in pixels; a multiple of the model's patch.")] = 128,
    seed: Annotated[int, typer.Option(help="Another seed, another choice of subjects.")] = 0,
    sources: Annotated[
        Path | None, typer.Option(help="Folder of npm's archives; emoji.sources beside the output when not given.")
    ] = None,
    json_output: Json = False,
) -> None:
    """Compose training sets from emoji: one subject in two styles, one person in three skin tones, or a sequence.

    It writes NNNN.png with all panels and NNNN.txt with the joint caption. Pictures come through `npm pack`.
    """
    from mezzotint.commands.failure import fail
    from mezzotint.commands.report import print_json

    try:
        from mezzotint.training.compose_sets import compose_sets
        from mezzotint.training.npm_archive import SourceError

        counts = compose_sets(
            task, output, sources or output.absolute().parent / "emoji.sources", num_sets=sets, num_held_out=held_out,
            panel_size=panel_size, seed=seed,
        )
    except (ValueError, OSError, SourceError) as error:
        fail(str(error))
    report = {"folder": str(output), **counts}
    print_json(report) if json_output else print("{folder}  {train} sets, {held_out} held out".format(**report))


def _source(file: str) -> Path:
    """A path as it is given, or the file of a published adapter."""
    from mezzotint.sampling.published_adapters import PUBLISHED, fetch

    path = Path(file)
    return fetch(file) if file in PUBLISHED and not path.exists() else path


def _weighted(text: str) -> tuple[str, float]:
    name, colon, weight = text.partition(":")
    try:
        return name, float(weight) if colon else 1.0
    except ValueError:
        raise ValueError(f"adapter is {text!r}; it must be NAME or NAME:WEIGHT, such as {name}:0.8.") from None


def _described(adapter: Any) -> dict[str, Any]:
    card = adapter.card
    layout = None if card.layout is None else f"{card.layout.rows}x{card.layout.columns}"
    return {
        "name": adapter.name, "base": card.base, "base_fingerprint": card.base_fingerprint, "rank": card.rank,
        "alpha": card.alpha, "modules": adapter.num_modules, "panels": layout,
        "markers": [] if card.layout is None else list(card.layout.markers), "marker": card.marker,
        "caption": card.caption, "size_bytes": adapter.size_bytes, "file": str(adapter.path),
    }


def _print(described: dict[str, Any]) -> None:
    for key, value in described.items():
        print(f"{key:18}{' '.join(value) if isinstance(value, list) else '-' if value in (None, '') else value}")


def _own_rows() -> list[dict[str, Any]]:
    from mezzotint.sampling.adapter_files import adapter_names, find_adapter

    rows: list[dict[str, Any]] = []
    columns = ("name", "base", "base_fingerprint", "rank", "panels", "size_bytes", "error")
    for name in adapter_names():
        row: dict[str, Any] = dict.fromkeys(columns)
        try:
            described = _described(find_adapter(name))
            rows.append(row | {key: described[key] for key in row if key in described})
        except (ValueError, OSError) as error:  # one bad file does not hide the others
            rows.append(row | {"name": name, "error": str(error)})
    return rows


def _published_rows() -> list[dict[str, Any]]:
    from mezzotint.sampling.adapter_files import adapter_names
    from mezzotint.sampling.published_adapters import PUBLISHED

    here = adapter_names()
    return [
        {"name": name, "width": known.width, "height": known.height,
         "panels": f"{known.layout.rows}x{known.layout.columns}", "here": name in here, "prompt": known.prompt}
        for name, known in PUBLISHED.items()
    ]

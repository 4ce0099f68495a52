"""Sets of panels from emoji, as training reads them: NNNN.png with all panels side by side, NNNN.txt with the caption.

Emoji come from npm, and only what MIT or Apache-2.0 allows, since adapters trained on them are shipped: Microsoft's
Fluent 3D (MIT) and Google's Noto (pictures Apache-2.0, 64 pixels, enlarged).
"""

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from mezzotint.sampling.panel_pictures import compose
from mezzotint.sampling.panels import Canvas
from mezzotint.training.emoji_captions import join_key
from mezzotint.training.emoji_data import NAMES, PICTURES, on_white, read_names
from mezzotint.training.npm_archive import fetch_archive
from mezzotint.training.set_plans import FLUENT, NOTO, TASKS, PanelSource, SetPlan, choose

MAX_PICTURE_BYTES = 2**22


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """Where the pictures of one hand lie: files FOLDER/CODE-POINT.* of an npm package."""

    package: str
    folder: str
    licence: str


STYLES: Mapping[str, Style] = {
    FLUENT: Style(package=PICTURES, folder="package/assets", licence="MIT, Microsoft Corporation"),
    NOTO: Style(package="emoji-datasource-google@16.0.0", folder="package/img/google/64",
                licence="Apache-2.0, Google LLC"),
}

Pictures = Mapping[PanelSource, bytes]


def compose_sets(
    task: str, output: Path, sources: Path, *, num_sets: int, num_held_out: int, panel_size: int, seed: int = 0
) -> dict[str, int]:
    """Write output/train and output/held-out, and output/sets.json with what they are made of; returns both counts.

    sources: folder in which npm's archives are kept. panel_size: side of a panel in pixels.
    Raises ValueError for an argument that cannot be used, SourceError where npm's packages cannot be had, and OSError.
    """
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; it must be one of {', '.join(TASKS)}.")
    if not 16 <= panel_size <= 512:
        raise ValueError(f"panel_size is {panel_size}; it must be from 16 to 512.")
    if output.exists():
        raise ValueError(f"output is {output}; it is there already, so give another name or move it away.")
    sources.mkdir(parents=True, exist_ok=True)
    given = TASKS[task]
    archives = {style: fetch_archive(STYLES[style].package, sources) for style in given.styles}
    there = {style: _code_points(archive, STYLES[style].folder) for style, archive in archives.items()}
    plans = [
        plan for plan in given.plans(read_names(fetch_archive(NAMES, sources)))
        if all(join_key(code_point) in there[style] for style, code_point in plan.panels)
    ]
    train, held_out = choose(plans, num_sets, num_held_out, seed)
    pictures = _read(archives, [panel for plan in train + held_out for panel in plan.panels])
    unfinished = output.with_name(f".{output.name}-{os.getpid()}")
    try:
        canvas = Canvas(layout=given.layout, panel_width=panel_size, panel_height=panel_size)
        for name, chosen in (("train", train), ("held-out", held_out)):
            _write(unfinished / name, chosen, pictures, canvas)
        (unfinished / "sets.json").write_text(_facts(task, train, held_out, panel_size, seed), encoding="utf-8")
        unfinished.rename(output)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {"train": len(train), "held_out": len(held_out)}


def _key(member: str, folder: str) -> str | None:
    """The code point of a file in an archive; None for other files."""
    path = Path(member)
    return join_key(path.stem) if str(path.parent) == folder and path.suffix in (".png", ".webp") else None


def _code_points(archive: Path, folder: str) -> set[str]:
    with tarfile.open(archive, "r:gz") as tar:
        return {key for member in tar if (key := _key(member.name, folder))}


def _read(archives: Mapping[str, Path], wanted: Collection[PanelSource]) -> dict[PanelSource, bytes]:
    """The pictures that are wanted, each archive read once from front to back."""
    found = {}
    for style, archive in archives.items():
        keys = {join_key(code_point) for hand, code_point in wanted if hand == style}
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                stream = tar.extractfile(member) if _key(member.name, STYLES[style].folder) in keys else None
                if stream is not None:
                    found[style, join_key(Path(member.name).stem)] = stream.read(MAX_PICTURE_BYTES)
    return found


def _write(folder: Path, plans: Sequence[SetPlan], pictures: Pictures, canvas: Canvas) -> None:
    folder.mkdir(parents=True)
    progress = tqdm(plans, desc=f"{folder.name} sets", unit="set", disable=not sys.stderr.isatty())
    for number, plan in enumerate(progress):
        panels = {
            place: Image.open(io.BytesIO(on_white(pictures[style, join_key(code_point)], code_point)))
            for place, (style, code_point) in enumerate(plan.panels)
        }
        compose(canvas, panels).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(plan.caption + "\n", encoding="utf-8")


def _facts(task: str, train: Sequence[SetPlan], held_out: Sequence[SetPlan], panel_size: int, seed: int) -> str:
    given = TASKS[task]
    facts = {
        "task": task, "marker": given.marker, "panel_size": panel_size, "seed": seed,
        "layout": {"rows": given.layout.rows, "columns": given.layout.columns, "markers": given.layout.markers},
        "sources": [{"package": STYLES[style].package, "licence": STYLES[style].licence} for style in given.styles],
        "train": [plan.subject for plan in train], "held_out": [plan.subject for plan in held_out],
    }
    return json.dumps(facts, ensure_ascii=False, indent=1) + "\n"

"""Build the emoji data set: 3,372 pictures with captions, as a Hugging Face `datasets` folder.

    python -m mezzotint.training.emoji_data --out DIR

Pictures are Microsoft's Fluent emoji (MIT) as packed by @lobehub/fluent-emoji-3d; names and tags come from
emojibase-data (MIT). Both are fetched with `npm pack` and kept beside the set, so that a second run goes on
where the first one stopped. The same versions give the same bytes.
"""

import argparse
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from mezzotint.training.emoji_captions import Emoji, captions, join_key, read_emoji
from mezzotint.training.npm_archive import SourceError, fetch_archive

PICTURES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "emojibase-data@17.0.0"
COMPLETE = "mezzotint-complete.json"


def build(out: Path) -> int:
    """Build the set at `out` and return the number of pictures; a complete one is left as it is.

    Raises SourceError (no npm, no network, broken archive, `out` holds something else) and OSError (no room, no
    permission).
    """
    sources = {"pictures": PICTURES, "names": NAMES}
    marker = out / COMPLETE
    if marker.is_file() and json.loads(marker.read_text())["sources"] == sources:
        return int(json.loads(marker.read_text())["num_pictures"])
    if out.exists() and not marker.is_file() and (out.is_file() or any(out.iterdir())):
        raise SourceError(f"--out is {out}; it holds something else, so give a new folder.")
    kept = out.parent / f"{out.name}.sources"
    kept.mkdir(parents=True, exist_ok=True)
    pictures, names = fetch_archive(PICTURES, kept), fetch_archive(NAMES, kept)
    unfinished = out.parent / f"{out.name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    num_pictures = _write(unfinished, pictures, read_names(names))
    (unfinished / COMPLETE).write_text(json.dumps({"sources": sources, "num_pictures": num_pictures}))
    shutil.rmtree(out, ignore_errors=True)
    unfinished.replace(out)
    return num_pictures


def read_names(archive: Path) -> list[Emoji]:
    """Every emoji that emojibase's archive names, in its order. Raises SourceError for another archive."""
    with tarfile.open(archive, "r:gz") as tar:
        data, messages = (json.load(_member(tar, f"package/en/{name}.json")) for name in ("data", "messages"))
    return list(read_emoji(data, messages))


def _member(tar: tarfile.TarFile, name: str) -> Any:
    try:
        stream = tar.extractfile(name)
    except KeyError:
        stream = None
    if stream is None:
        raise SourceError(f"{tar.name!s} holds no {name}; delete that archive and run the same command again.")
    return stream


def _write(folder: Path, archive: Path, emoji: list[Emoji]) -> int:
    from datasets import Dataset, Features, Image, List, Value

    text = Value("string")
    features = Features({
        "image": Image(), "code_point": text, "label": text, "base_label": text, "group": text,
        "subgroup": text, "tone": Value("int8"), "tags": List(text), "captions": List(text),
    })
    columns: dict[str, list[Any]] = {name: [] for name in features}
    for row in _rows(archive, emoji):
        for name, value in row.items():
            columns[name].append(value)
    Dataset.from_dict(columns, features=features).save_to_disk(folder)
    return len(columns["label"])


def _rows(archive: Path, emoji: list[Emoji]) -> Iterator[dict[str, Any]]:
    """One row an emoji that has a picture, in emojibase's order."""
    with tarfile.open(archive, "r:gz") as tar:
        files = {join_key(Path(m.name).stem): tar.extractfile(m) for m in tar if m.name.endswith(".webp")}
        found = [e for e in emoji if join_key(e.code_point) in files]
        for one in tqdm(found, desc="emoji pictures", unit="picture", disable=not sys.stderr.isatty()):
            stream = files[join_key(one.code_point)]
            assert stream is not None  # only regular members end in .webp
            yield {
                "image": {"bytes": on_white(stream.read(), one.code_point), "path": None},
                "code_point": one.code_point, "label": one.label, "base_label": one.base_label,
                "group": one.group, "subgroup": one.subgroup, "tone": one.tone,
                "tags": list(one.tags), "captions": captions(one),
            }


def on_white(picture: bytes, name: str) -> bytes:
    """A picture with transparency as an opaque PNG on white. Raises SourceError when it cannot be read."""
    try:
        image = Image.open(io.BytesIO(picture)).convert("RGBA")
    except (UnidentifiedImageError, OSError) as error:
        raise SourceError(f"picture {name} cannot be read ({error}); delete the kept archive and run again.") from None
    white = Image.new("RGBA", image.size, "white")
    buffer = io.BytesIO()
    Image.alpha_composite(white, image).convert("RGB").save(buffer, format="PNG", compress_level=4)
    return buffer.getvalue()


def main() -> None:
    """Command line. Exit code 1 with one sentence when a source or the disk fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the data set (made when missing)")
    out = parser.parse_args().out.resolve()
    try:
        num_pictures = build(out)
    except (SourceError, OSError) as error:
        raise SystemExit(f"emoji_data: {error}") from None
    print(f"{num_pictures} pictures with captions in {out}")


if __name__ == "__main__":
    main()

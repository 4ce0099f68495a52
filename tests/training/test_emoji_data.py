"""Building the emoji set, from tiny archives by a stand-in for npm; and once, slowly, from the real ones."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from mezzotint.training import emoji_data
from mezzotint.training.emoji_data import build, on_white
from mezzotint.training.npm_archive import SourceError

DATA = [
    {"label": "red heart", "hexcode": "2764-FE0F", "order": 2, "group": 8, "subgroup": 0, "tags": ["love"]},
    {"label": "waving hand", "hexcode": "1F44B", "order": 1, "group": 1, "subgroup": 0, "tags": ["hello"], "skins": [
        {"label": "waving hand: dark skin tone", "hexcode": "1F44B-1F3FF", "tone": 5},
        {"label": "waving hand: without a picture", "hexcode": "1F44B-1F3FB", "tone": 1},
    ]},
]
MESSAGES = {"groups": [{"order": 1, "message": "people"}, {"order": 8, "message": "symbols"}],
            "subgroups": [{"order": 0, "message": "all"}]}
COLOURS = {"2764-fe0f": (255, 0, 0, 128), "1f44b": (200, 150, 0, 255), "1f44b-1f3ff": (80, 50, 0, 255),
           "ffff": (0, 0, 0, 255)}


def webp(colour: tuple[int, int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (16, 16), colour).save(buffer, format="WEBP", lossless=True)
    return buffer.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def log(tmp_path: Path, fake_npm: Callable[[str], None]) -> Path:
    """Tiny archives behind a stand-in for npm, which notes in this file what it was asked for."""
    source, log = tmp_path / "npm-source", tmp_path / "npm-log"
    source.mkdir()
    pack(source / "pictures.tgz", {f"package/assets/{name}.webp": webp(c) for name, c in COLOURS.items()})
    pack(source / "names.tgz", {"package/en/data.json": json.dumps(DATA).encode(),
                                "package/en/messages.json": json.dumps(MESSAGES).encode()})
    fake_npm(f'echo "$PACKAGE" >> {log}\ncase "$PACKAGE" in *fluent*) cp {source}/pictures.tgz "$DEST";; '
             f'*) cp {source}/names.tgz "$DEST";; esac')
    return log


def digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_each_emoji_with_a_picture_is_a_row(tmp_path: Path, log: Path) -> None:
    assert build(tmp_path / "set") == 3
    rows = datasets.load_from_disk(tmp_path / "set")
    assert rows["label"][:] == ["waving hand", "waving hand: dark skin tone", "red heart"]
    assert rows["base_label"][:] == ["waving hand", "waving hand", "red heart"]
    assert rows["tone"][:] == [0, 5, 0]
    assert rows["group"][:] == ["people", "people", "symbols"]
    assert rows["captions"][2] == ["red heart", "red heart", "red heart, love",
                                   "a 3D picture of red heart, which stands for love"]
    heart = rows[2]["image"]
    assert (heart.mode, heart.size) == ("RGB", (16, 16))
    assert heart.getpixel((3, 3)) == pytest.approx((255, 127, 127), abs=1)
    assert rows[1]["image"].getpixel((3, 3)) == (80, 50, 0)


def test_the_same_sources_give_the_same_bytes(tmp_path: Path, log: Path) -> None:
    build(tmp_path / "one" / "set")
    build(tmp_path / "two" / "set")
    first = digests(tmp_path / "one" / "set")
    assert first == digests(tmp_path / "two" / "set")
    assert len(first) == 4


def test_a_complete_set_is_left_as_it_is(tmp_path: Path, log: Path) -> None:
    build(tmp_path / "set")
    fetched, before = log.read_text(), {p.name: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()}
    assert len(fetched.split()) == 2
    assert build(tmp_path / "set") == 3
    assert log.read_text() == fetched
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "set").iterdir()} == before


def test_a_build_that_was_cut_off_goes_on_without_fetching_again(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(emoji_data, "on_white", cut)
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "set")
    assert not (tmp_path / "set").exists()
    left = tmp_path / "set.unfinished"
    left.mkdir(exist_ok=True)
    (left / "data-00000-of-00099.arrow").write_bytes(b"half")
    fetched = log.read_text()
    assert build(tmp_path / "set") == 3
    assert log.read_text() == fetched
    assert not left.exists()
    assert sorted(digests(tmp_path / "set")) == [
        "data-00000-of-00001.arrow", "dataset_info.json", "mezzotint-complete.json", "state.json",
    ]


def test_another_version_of_the_sources_is_built_anew(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "set")
    monkeypatch.setattr(emoji_data, "NAMES", "emojibase-data@99.0.0")
    assert build(tmp_path / "set") == 3
    assert log.read_text().split()[2:] == ["emojibase-data@99.0.0"]
    assert "99.0.0" in (tmp_path / "set" / "mezzotint-complete.json").read_text()


def test_a_folder_of_something_else_is_never_replaced(tmp_path: Path, log: Path) -> None:
    mine = tmp_path / "documents"
    mine.mkdir()
    (mine / "letter.txt").write_text("dear")
    with pytest.raises(SourceError, match="it holds something else, so give a new folder"):
        build(mine)
    with pytest.raises(SourceError, match="it holds something else, so give a new folder"):
        build(mine / "letter.txt")
    assert (mine / "letter.txt").read_text() == "dear"
    assert not log.exists()


def test_an_archive_without_what_is_needed_is_named(tmp_path: Path, log: Path) -> None:
    pack(tmp_path / "npm-source" / "names.tgz", {"package/readme": b"x"})
    with pytest.raises(SourceError, match=r"emojibase.*holds no package/en/data\.json; delete that archive"):
        build(tmp_path / "set")


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, log: Path) -> None:
    pack(tmp_path / "npm-source" / "pictures.tgz", {"package/assets/1f44b.webp": b"RIFF nothing"})
    with pytest.raises(SourceError, match="picture 1f44b cannot be read"):
        build(tmp_path / "set")


def test_transparency_is_laid_on_white_by_its_alpha() -> None:
    image = Image.new("RGBA", (4, 1))
    pixels = [(10, 20, 30, 0), (10, 20, 30, 255), (100, 200, 40, 51), (255, 0, 90, 200)]
    image.putdata(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    opaque = Image.open(io.BytesIO(on_white(buffer.getvalue(), "x")))
    assert opaque.format == "PNG"
    assert opaque.mode == "RGB"
    for x, (*colour, alpha) in enumerate(pixels):
        expected = [c * alpha / 255 + 255 * (1 - alpha / 255) for c in colour]
        assert opaque.getpixel((x, 0)) == pytest.approx(expected, abs=1)


def command(*arguments: object, seconds: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mezzotint.training.emoji_data", *map(str, arguments)],
        capture_output=True, text=True, check=False, timeout=seconds,
    )


def test_a_disk_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.Dataset, "save_to_disk", full)
    monkeypatch.setattr(sys, "argv", ["emoji_data", "--out", str(tmp_path / "set")])
    with pytest.raises(SystemExit) as raised:
        emoji_data.main()
    assert str(raised.value) == "emoji_data: [Errno 28] No space left on device"
    assert not (tmp_path / "set").exists()


def test_a_folder_that_cannot_be_made_is_one_sentence_and_exit_code_1(log: Path) -> None:
    done = command("--out", "/proc/nothing/set")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("emoji_data: ")
    assert "/proc/nothing" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def registry_answers() -> str:
    """Why the registry that npm is set to cannot be used; empty when it can."""
    if shutil.which("npm") is None:
        return "npm is not on PATH"
    asked = subprocess.run(["npm", "view", emoji_data.NAMES, "version", "--fetch-retries=0"], capture_output=True,
                           text=True, check=False, timeout=60)
    return "" if asked.returncode == 0 else f"npm's registry cannot be reached: {asked.stderr.strip()[:200]}"


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_the_real_set_has_its_pictures_and_names(tmp_path: Path) -> None:
    if reason := registry_answers():
        pytest.skip(reason)
    done = command("--out", tmp_path / "emoji", seconds=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"3372 pictures with captions in {tmp_path / 'emoji'}\n"
    rows = datasets.load_from_disk(tmp_path / "emoji")
    assert len(rows) == 3372
    assert len(set(rows["base_label"])) == 1852
    row: dict[str, Any] = next(r for r in rows if r["label"] == "red apple")
    assert row["captions"][:2] == ["red apple", "a red apple"]
    assert row["code_point"] == "1f34e"
    assert row["image"].size == (256, 256)
    assert row["image"].getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = row["image"].getpixel((128, 150))
    assert red > 2 * max(green, blue)

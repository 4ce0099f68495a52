"""Fetching by npm, with a stand-in for npm on PATH that does what a test tells it to."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from mezzotint.training.npm_archive import SourceError, fetch_archive, is_whole

FakeNpm = Callable[[str], None]


def archive(content: bytes = b"hello " * 5000) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        member = tarfile.TarInfo("package/file.txt")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def npm(tmp_path: Path, fake_npm: FakeNpm) -> FakeNpm:
    """npm(what it does in shell); see fake_npm."""
    (tmp_path / "whole.tgz").write_bytes(archive())
    return lambda does: fake_npm(does.replace("WHOLE", str(tmp_path / "whole.tgz")))


def test_an_archive_is_fetched_once_by_the_name_of_its_package(tmp_path: Path, npm: FakeNpm) -> None:
    npm('echo "$PACKAGE" >> LOG; cp WHOLE "$DEST/any-name.tgz"'.replace("LOG", str(tmp_path / "log")))
    folder = tmp_path / "kept"
    first = fetch_archive("@scope/set@1.2.3", folder)
    assert first == folder / "scope-set-1.2.3.tgz"
    assert first.read_bytes() == archive() or is_whole(first)
    assert [p.name for p in folder.iterdir()] == ["scope-set-1.2.3.tgz"]
    assert fetch_archive("@scope/set@1.2.3", folder) == first
    assert (tmp_path / "log").read_text() == "@scope/set@1.2.3\n"


def test_no_npm_on_path_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match=r"npm is not on PATH; install Node\.js"):
        fetch_archive("set@1.0.0", tmp_path / "kept")


@pytest.mark.parametrize(("does", "reason"), [
    ("""echo '{"error": {"code": "E404", "summary": "Not Found - GET set", "detail": "long"}}'; exit 1""",
     "Not Found - GET set"),
    ("echo first >&2; echo 'the last line' >&2; exit 7", "the last line"),
    ("exit 3", "it ended with exit code 3 and gave no reason"),
    ("exit 0", "it ended with exit code 0 and gave no reason"),
])
def test_why_npm_failed_is_told(tmp_path: Path, npm: FakeNpm, does: str, reason: str) -> None:
    npm(does)
    with pytest.raises(SourceError) as raised:
        fetch_archive("set@1.0.0", tmp_path / "kept")
    assert str(raised.value).startswith(f"npm could not fetch set@1.0.0: {reason}; check the network")
    assert not list((tmp_path / "kept").glob("*.tgz"))


def test_what_a_killed_fetch_left_is_cleared_away(tmp_path: Path, npm: FakeNpm) -> None:
    left = tmp_path / "kept" / "unfinished" / "old.tgz"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    npm('cp WHOLE "$DEST/set.tgz"')
    assert is_whole(fetch_archive("set@1.0.0", tmp_path / "kept"))
    assert not left.parent.exists()


def damaged(kind: str) -> bytes:
    import random

    whole = archive(random.Random(0).randbytes(20_000))
    middle = len(whole) // 2
    return {
        "empty": b"", "noise": b"not an archive", "cut": whole[:middle],
        "flipped": whole[:middle] + bytes(b ^ 0xFF for b in whole[middle : middle + 64]) + whole[middle + 64 :],
        "no end": whole[:-8],
    }[kind]


@pytest.mark.parametrize("kind", ["empty", "noise", "cut", "flipped", "no end"])
def test_a_broken_archive_is_noticed_and_fetched_again(tmp_path: Path, npm: FakeNpm, kind: str) -> None:
    npm('cp WHOLE "$DEST/set.tgz"')
    kept = tmp_path / "kept" / "set-1.0.0.tgz"
    kept.parent.mkdir()
    kept.write_bytes(damaged(kind))
    assert not is_whole(kept)
    assert is_whole(fetch_archive("set@1.0.0", kept.parent))


def test_an_archive_that_arrives_broken_is_not_kept(tmp_path: Path, npm: FakeNpm) -> None:
    (tmp_path / "broken.tgz").write_bytes(damaged("cut"))
    npm(f'cp {tmp_path / "broken.tgz"} "$DEST/set.tgz"')
    with pytest.raises(SourceError, match=r"set@1\.0\.0 arrived as a broken archive; run the same command again"):
        fetch_archive("set@1.0.0", tmp_path / "kept")
    assert not list((tmp_path / "kept").glob("*.tgz"))

"""The C library of norm_modulate: built once into a cache, and refused in clear words where it cannot be used."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mezzotint.kernels import native_modulation
from mezzotint.kernels.native_build import SUFFIX, BuildError

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("cc", "gcc", "clang")), reason="no C compiler on this machine"
)


@needs_compiler
def test_the_library_is_built_once(tmp_path: Path) -> None:
    first = native_modulation.build(tmp_path)
    built = first.stat().st_mtime_ns
    assert native_modulation.build(tmp_path) == first
    assert first.stat().st_mtime_ns == built
    assert list(tmp_path.iterdir()) == [first]
    assert native_modulation.load(first).modulation_level() >= 0


def test_a_compiler_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "false")
    with pytest.raises(BuildError, match="false fails on modulation"):
        native_modulation.build(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_library_is_named(tmp_path: Path) -> None:
    path = tmp_path / f"modulation{SUFFIX}"
    path.write_text("no library")
    with pytest.raises(BuildError, match=f"{path} cannot be loaded"):
        native_modulation.load(path)


@needs_compiler
def test_a_library_of_other_sources_is_refused(tmp_path: Path) -> None:
    names = ("modulation_level", "modulation_forward", "modulation_backward")
    source, path = tmp_path / "other.c", tmp_path / f"modulation{SUFFIX}"
    source.write_text("long long modulation_abi(void) { return 999; }\n" + "".join(f"int {n};\n" for n in names))
    subprocess.run([shutil.which("cc") or "gcc", "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    with pytest.raises(BuildError, match="has the interface 999, expected 1; delete it"):
        native_modulation.load(path)


def test_a_machine_without_a_compiler_still_works_and_says_so_once(tmp_path: Path) -> None:
    """In a process of its own, since the library is looked for once."""
    script = (
        "import warnings, torch\n"
        "from mezzotint.kernels import native_modulation\n"
        "from mezzotint.kernels.modulation import chosen_backend, norm_modulate\n"
        f"native_modulation.PREBUILT = native_modulation.Path({str(tmp_path / 'none')!r})\n"
        "x, s = torch.ones(1, 2, 8), torch.ones(1, 8)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    assert norm_modulate(x, s, s).equal(norm_modulate(x, s, s, backend='reference'))\n"
        "    assert chosen_backend(x, s, s) == 'reference'\n"
        "said = [str(w.message) for w in caught if 'norm_modulate' in str(w.message)]\n"
        "assert len(said) == 1 and 'no-such-compiler' in said[0], said\n"
    )
    environment = {"PATH": "/nowhere", "CC": "no-such-compiler", "MEZZOTINT_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120, env=environment)

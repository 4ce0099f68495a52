"""Building the C kernels: once, whole, by any number of processes, and honestly where it cannot be done."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from mezzotint.kernels import native_build
from mezzotint.kernels.native_build import BuildError

LIMIT_S = 200

LOAD = """
from mezzotint.kernels import native_build
library = native_build.native_library()
assert library is not None and library.kernels_abi() == native_build.ABI
"""

FORK = """
import os, signal, torch
from mezzotint.kernels import cpu_attention
torch.set_num_threads(2)
q = torch.randn(1, 4, 256, 64)
before = cpu_attention.dense_forward(q, q, q, 0.1)[0]
assert (q @ q.transpose(2, 3)).isfinite().all()  # torch's own team is awake, too
child = os.fork()
if child == 0:
    signal.alarm(60)
    after = cpu_attention.dense_forward(q, q, q, 0.1)[0]
    torch.set_num_threads(1)  # torch's own operators do hang in a forked child with more
    os._exit(0 if torch.equal(before, after) else 3)
assert os.waitpid(child, 0)[1] == 0
"""


NO_COMPILER = """
import warnings, torch
from mezzotint.kernels import BlockLayout, block_sparse, block_sparse_attention, modulation, native_build
native_build.PREBUILT = native_build.Path({absent!r})
x, s = torch.ones(1, 2, 8), torch.ones(1, 8)
q, half = torch.randn(1, 2, 64, 8), torch.tensor([[[[True, False], [True, True]]]])
layout = BlockLayout.from_dense(half, block_q=32, block_k=32, num_q=64, num_k=64)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    assert modulation.norm_modulate(x, s, s).equal(modulation.norm_modulate(x, s, s, backend="reference"))
    assert modulation.chosen_backend(x, s, s) == "torch"
    out = block_sparse_attention(q, q, q, layout)
    assert block_sparse.last_backend() == "cpu-torch"
    torch.testing.assert_close(out, block_sparse_attention(q, q, q, layout, backend="reference"))
said = [str(w.message) for w in caught if "no-such-compiler" in str(w.message)]
assert len(said) == 1, said
"""


@pytest.fixture
def _compiler() -> None:
    try:
        native_build.find_compiler()
    except BuildError as error:
        pytest.skip(f"this machine has no C compiler: {error}")


@pytest.fixture
def _fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process that has not asked for the kernels yet, with nothing built beforehand and an empty cache."""
    monkeypatch.setattr(native_build, "_result", [])
    monkeypatch.setattr(native_build, "PREBUILT", tmp_path / "none.so")
    monkeypatch.setenv("MEZZOTINT_CACHE_DIR", str(tmp_path / "cache"))


def start(script: str, cache: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"MEZZOTINT_CACHE_DIR": str(cache)}
    return subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
@pytest.mark.usefixtures("_compiler")
def test_two_processes_build_at_once_and_leave_one_library(tmp_path: Path) -> None:
    if native_build.PREBUILT.exists():
        pytest.skip("a library built beforehand is beside the package, so nothing is built")
    processes = [start(LOAD, tmp_path) for _ in range(2)]
    errors = [process.communicate(timeout=LIMIT_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert [path.name for path in tmp_path.iterdir()] == [native_build.build(tmp_path).name]


@pytest.mark.slow
@pytest.mark.usefixtures("_compiler", "_fresh")
def test_the_cache_spares_the_compiler_and_a_library_beside_the_package_spares_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = native_build.build()
    assert built.parent == tmp_path / "cache"
    monkeypatch.setattr(native_build, "_compile", lambda *_: pytest.fail("compiled again"))
    assert native_build.build() == built
    assert native_build.native_library() is not None
    monkeypatch.setattr(native_build, "_result", [])
    monkeypatch.setattr(native_build, "PREBUILT", shutil.copy(built, tmp_path / "prebuilt.so"))
    monkeypatch.setattr(native_build, "build", lambda *_: pytest.fail("asked for the cache"))
    assert native_build.why_not_native() is None
    monkeypatch.setattr(native_build, "ABI", 0)
    with pytest.raises(BuildError, match=r"has the interface \d+, expected 0; delete it"):
        native_build.load(built)


@pytest.mark.usefixtures("_fresh")
def test_a_machine_without_a_compiler_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.warns(RuntimeWarning, match="no C compiler"):
        assert native_build.native_library() is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native_build.native_library() is None
    assert "no C compiler" in str(native_build.why_not_native())


@pytest.mark.usefixtures("_fresh")
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "badcc"
    compiler.write_text("#!/bin/sh\necho 'x.c:1: error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", f"{compiler} -m64")
    with pytest.raises(BuildError, match="error: no such thing"):
        native_build.build()
    assert not list((tmp_path / "cache").iterdir())
    monkeypatch.setenv("CC", "nowhere-cc")
    with pytest.raises(BuildError, match="CC is 'nowhere-cc'"):
        native_build.build()


def test_what_is_no_library_is_named(tmp_path: Path) -> None:
    path = tmp_path / f"kernels{native_build.SUFFIX}"
    path.write_text("no library")
    with pytest.raises(BuildError, match=f"{path} cannot be loaded"):
        native_build.load(path)


def test_without_a_compiler_the_operations_still_work_and_it_is_said_once(tmp_path: Path) -> None:
    """In a process of its own, since the library is looked for once."""
    script = NO_COMPILER.format(absent=str(tmp_path / "none.so"))
    environment = {"PATH": "/nowhere", "CC": "no-such-compiler", "MEZZOTINT_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, timeout=LIMIT_S, env=environment)


def test_another_compiler_or_flag_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("one", "two")
    for name in names:
        (tmp_path / name).write_text("")
    keys = {native_build._key([str(tmp_path / name), *extra]) for name in names for extra in ([], ["-g"])}
    assert len(keys) == 4
    monkeypatch.setattr(native_build, "FLAGS", ("-O1",))
    assert native_build._key([str(tmp_path / "one")]) not in keys


def test_a_cache_that_cannot_be_made_is_replaced_by_a_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEZZOTINT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    directory = native_build.cache_directory()
    assert directory.is_dir()
    assert tmp_path not in directory.parents
    directory.rmdir()
    monkeypatch.delenv("MEZZOTINT_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native_build.cache_directory() == tmp_path / "mezzotint"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.usefixtures("_compiler")
def test_a_forked_child_computes_and_does_not_hang() -> None:
    process = start(FORK, native_build.cache_directory())
    error = process.communicate(timeout=LIMIT_S)[1]
    assert process.returncode == 0, error

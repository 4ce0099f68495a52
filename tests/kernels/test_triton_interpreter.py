"""The Triton kernels without a GPU: the cases of gpu/ that are small enough, in Triton's interpreter."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only")
@pytest.mark.parametrize(("name", "least"), [("test_attention.py", 50), ("test_operations.py", 55)])
def test_the_kernels_are_right_in_the_interpreter(name: str, least: int) -> None:
    """A process of its own: TRITON_INTERPRET counts when Triton is imported."""
    folder = Path(__file__).with_name("gpu")
    command = [sys.executable, "-m", "pytest", str(folder / name), "-q", "--confcutdir", str(folder)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= least, done.stdout[-2000:]

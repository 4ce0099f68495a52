"""The Triton kernels of norm_modulate and expert dispatch without a GPU: their cases in the interpreter, and that
nothing but them needs Triton."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton exists for Linux only")


@pytest.mark.slow
@needs_triton
def test_the_kernels_are_right_in_the_interpreter() -> None:
    """A process of its own: TRITON_INTERPRET counts when Triton is imported."""
    cases = Path(__file__).with_name("test_gpu_operations.py")
    command = [sys.executable, "-m", "pytest", str(cases), "-q", "--noconftest", "-p", "no:cacheprovider"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= 55, done.stdout[-2000:]


def test_the_operations_run_where_triton_is_not_installed() -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from mezzotint.kernels.modulation import norm_modulate\n"
        "from mezzotint.kernels.expert_dispatch import gather_tokens\n"
        "x = torch.ones(1, 2, 8, dtype=torch.float64)\n"
        "assert norm_modulate(x, x[:, 0], x[:, 0]).shape == (1, 2, 8)\n"
        "assert gather_tokens(x[0], torch.tensor([1])).shape == (1, 8)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)

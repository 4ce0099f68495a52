"""norm_modulate and expert dispatch need Triton for nothing but its own backend."""

import subprocess
import sys


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

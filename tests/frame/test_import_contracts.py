"""The arrows of the design: import-linter holds them, and notices when one is turned round."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("dit", "kernels", "sampling", "training", "ui", "worker")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the package's code that a test may spoil."""
    copy = tmp_path / "mezzotint"
    ignore = shutil.ignore_patterns("__pycache__", "models")
    shutil.copytree(ROOT / "mezzotint", copy, ignore=ignore)
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    return copy


def lint_imports(package: Path) -> subprocess.CompletedProcess[str]:
    linter = Path(sys.executable).parent / "lint-imports"
    command = [str(linter), str(ROOT / "pyproject.toml"), "--no-cache"]
    return subprocess.run(command, cwd=package.parent, capture_output=True, text=True, timeout=120)


def test_the_code_keeps_every_contract(package: Path) -> None:
    result = lint_imports(package)
    assert result.returncode == 0, result.stdout
    assert "0 broken" in result.stdout


@pytest.mark.parametrize(
    ("folder", "line", "contract"),
    [
        ("kernels", "import mezzotint.dit.config", "kernels stand alone"),
        ("dit", "import mezzotint.sampling.request", "networks know only kernels"),
        ("sampling", "import mezzotint.training", "sampling stands on the networks"),
        ("training", "import mezzotint.worker", "training stands on sampling and the networks"),
        ("worker/api", "import mezzotint.worker.runner", "the gateway draws nothing itself"),
        ("worker/api", "def f():\n    import torch", "the gateway draws nothing itself"),
        ("worker", "import mezzotint.training.picture_grid", "workers run sampling and nothing above"),
        ("ui", "import mezzotint.sampling.media", "pages talk to the client, the request and its plan"),
        ("ui", "def f():\n    import torch", "pages talk to the client, the request and its plan"),
        ("ui", "import mezzotint.worker.settings", "pages talk to the client, the request and its plan"),
    ],
)
def test_an_arrow_turned_round_is_noticed(package: Path, folder: str, line: str, contract: str) -> None:
    (package / "worker" / "settings.py").touch()
    (package / folder / "turned_round.py").write_text(line + "\n", encoding="utf-8")
    result = lint_imports(package)
    assert result.returncode == 1
    assert f"{contract} BROKEN" in result.stdout


def test_a_page_may_use_the_client_and_the_request(package: Path) -> None:
    (package / "worker" / "client.py").touch()
    allowed = ("worker.client", "sampling.request", "sampling.plan", "sampling.intake", "sampling.catalog")
    lines = [f"import mezzotint.{name}\n" for name in allowed]
    (package / "ui" / "allowed.py").write_text("".join(lines), encoding="utf-8")
    assert lint_imports(package).returncode == 0

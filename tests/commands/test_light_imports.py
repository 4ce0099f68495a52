"""The page and the command line answer at once: they never import torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from mezzotint.__main__ import app

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "diffusers", "transformers", "datasets")


def module_names(folder: Path, package: str) -> list[str]:
    """Every module of a folder: ui/pages/create.py is mezzotint.ui.pages.create."""
    paths = sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)
    names = [".".join([package, *p.relative_to(folder).with_suffix("").parts]) for p in paths]
    return [name.removesuffix(".__init__") for name in names]


LIGHT = [
    "mezzotint",
    "mezzotint.sampling.request",
    "mezzotint.sampling.plan",
    "mezzotint.sampling.intake",
    "mezzotint.sampling.catalog",
    "mezzotint.sampling.density_presets",
    "mezzotint.sampling.cache_presets",
    "mezzotint.sampling.branches",
    "mezzotint.sampling.pass_cost",
    "mezzotint.sampling.class_labels",
    "mezzotint.sampling.model_folder",
    "mezzotint.sampling.subject",
    "mezzotint.sampling.panels",
    "mezzotint.sampling.panel_captions",
    "mezzotint.sampling.adapter_card",
    "mezzotint.sampling.adapter_files",
    "mezzotint.sampling.published_adapters",
    "mezzotint.sampling.safetensors_header",
    "mezzotint.dit.config",
    "mezzotint.dit.flops",
    "mezzotint.dit.density",
    "mezzotint.dit.segment_layout",
    "mezzotint.dit.latent_config",
    "mezzotint.dit.diffusers_settings",
    "mezzotint.dit.latent_flops",
    "mezzotint.worker.client",
    *module_names(ROOT / "worker" / "api", "mezzotint.worker.api"),
    *module_names(ROOT / "mezzotint" / "commands", "mezzotint.commands"),
    *module_names(ROOT / "ui", "mezzotint.ui"),
]

IMPORT_AND_TELL = """
import importlib, json, sys
heavy, culprits = set(sys.argv[1].split(",")), {}
for name in sys.argv[2:]:
    importlib.import_module(name)
    found = heavy & set(sys.modules)
    heavy -= found
    if found:
        culprits[name] = sorted(found)
print(json.dumps(culprits))
"""


def heavy_imports(modules: list[str]) -> dict[str, list[str]]:
    """Import modules one after the other in a new process: which one first brought which heavy package."""
    command = [sys.executable, "-c", IMPORT_AND_TELL, ",".join(HEAVY), *modules]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def test_the_list_holds_pages_and_commands() -> None:
    assert {"mezzotint.commands.evaluate", "mezzotint.ui.app"} < set(LIGHT)


def test_the_check_sees_torch_where_it_is_imported() -> None:
    found = heavy_imports(["mezzotint", "mezzotint.training.retrieval"])
    assert found == {"mezzotint.training.retrieval": ["torch"]}


def test_pages_commands_and_the_client_import_without_torch() -> None:
    assert heavy_imports(LIGHT) == {}


def mezzotint(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mezzotint", *arguments]
    environment = os.environ | {"COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_help_lists_every_command() -> None:
    result = mezzotint("--help")
    assert result.returncode == 0, result.stderr
    listed = {line.strip("│ ").split(" ")[0] for line in result.stdout.splitlines()}
    assert {"up", "generate", "worker", "models", "evaluate", "export"} <= set(COMMANDS) <= listed


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_says_what_it_does(command: str) -> None:
    result = mezzotint(command, "--help")
    assert result.returncode == 0, result.stderr
    assert f"mezzotint {command} [OPTIONS]" in result.stdout
    assert "being written" not in result.stdout


def test_help_leaves_torch_alone() -> None:
    code = "import sys; sys.argv = ['mezzotint', '--help']\nimport mezzotint.__main__ as m\ntry: m.main()\n"
    code += "finally: print('torch' in sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stderr.splitlines()[-1] == "False"


def test_an_unknown_command_is_a_usage_error() -> None:
    result = mezzotint("paint")
    assert result.returncode == 2
    assert "paint" in result.stderr
    assert not result.stdout

"""`mezzotint convert` for the public files of MicroDiT: a folder that loads again, and no segments."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from mezzotint.__main__ import app
from mezzotint.dit.microdit import MicroDiT

FILE = Path(__file__).resolve().parents[1] / "data" / "reference" / "microdit.safetensors"


def convert(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@torch.no_grad()
def test_a_pt_file_becomes_a_folder_that_loads(tmp_path: Path) -> None:
    tensors = load_file(FILE)
    torch.save({k.removeprefix("param."): t for k, t in tensors.items() if k.startswith("param.")}, tmp_path / "a.pt")
    done = convert(tmp_path / "a.pt", "--heads", 4, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    network = MicroDiT.from_pretrained(tmp_path / "out")
    count = sum(p.numel() for p in network.parameters())
    assert json.loads(done.stdout) == {
        "folder": str(tmp_path / "out"), "network": "MicroDiT", "layout": None,
        "parameters": {"dense": count, "cut": count},
    }
    out = network(tensors["in.x"], tensors["in.t"], tensors["in.y"])
    assert (out - tensors["out.full"]).abs().max() < 1e-5 * tensors["out.full"].abs().max()
    again = convert(tmp_path / "out", "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert "MicroDiT in one segment" in again.stdout


def test_it_cannot_be_cut(tmp_path: Path) -> None:
    tensors = load_file(FILE)
    torch.save({k.removeprefix("param."): t for k, t in tensors.items() if k.startswith("param.")}, tmp_path / "a.pt")
    done = convert(tmp_path / "a.pt", "--heads", 4, "--density", "1 + 1x[1,0,1,0] + 1", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "the network is a MicroDiT, which has no segments" in done.stderr
    assert not (tmp_path / "out").exists()

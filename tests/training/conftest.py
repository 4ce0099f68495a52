"""Small data, and settings of a network that trains in milliseconds."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

TINY: dict[str, Any] = {
    "name": "tiny", "dtype": "fp32", "batch_size": 4, "max_steps": 5, "checkpoint_minutes": 60,
    "model": {
        "sample_size": 32, "patch_size": 8, "patch_bottleneck": 16, "hidden_size": 32, "num_layers": 2,
        "num_heads": 2, "max_text_tokens": 6, "noise_scale": 2.0,
    },
    "optim": {"warmup_steps": 3},
    "samples": {"every_steps": 0, "num_inference_steps": 2},
}
"""Settings of a run without its data."""

Picture = tuple[Image.Image, dict[str, Any]]


def write_imagefolder(folder: Path, pictures: list[Picture]) -> Path:
    """An imagefolder with metadata.jsonl from pictures and their columns."""
    folder.mkdir(parents=True)
    lines = []
    for i, (image, columns) in enumerate(pictures):
        image.save(folder / f"{i:03d}.png")
        lines.append(json.dumps({"file_name": f"{i:03d}.png", **columns}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def make_imagefolder() -> Callable[[Path, list[Picture]], Path]:
    """`write_imagefolder`, for tests."""
    return write_imagefolder


@pytest.fixture(autouse=True, scope="session")
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of their own for unpacked data, no network and a CPU: here and in what is started from here."""
    with pytest.MonkeyPatch.context() as patch:
        cache = tmp_path_factory.mktemp("datasets-cache")
        patch.setenv("HF_DATASETS_CACHE", str(cache))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("ACCELERATE_USE_CPU", "true")  # exact equality is asked for, on whatever machine
        import datasets

        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures of noise in their own colour, with captions."""
    random = np.random.default_rng(0)
    names = ["red apple", "taxi", "cat face", "snowman", "rocket", "guitar", "crab", "pizza", "crown", "tent"]
    pictures: list[Picture] = [
        (Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)), {"text": name}) for name in names
    ]
    return write_imagefolder(tmp_path_factory.mktemp("tiny") / "data", pictures)


@pytest.fixture(scope="session")
def tiny_settings(tiny_data: Path) -> Callable[..., dict[str, Any]]:
    """Settings of a tiny run: tiny_settings(max_steps=3, optim={...}) changes some of them."""

    def settings(**changes: Any) -> dict[str, Any]:
        given = TINY | {"data": {"path": str(tiny_data)}}
        for key, value in changes.items():
            given[key] = given.get(key, {}) | value if isinstance(value, dict) else value
        return given

    return settings


@pytest.fixture
def fake_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a stand-in for npm first on PATH: fake_npm(shell), in which $PACKAGE is what is asked for and $DEST the
    folder for the archive."""

    def install(shell: str) -> None:
        script = tmp_path / "fake-bin" / "npm"
        script.parent.mkdir(exist_ok=True)
        script.write_text(
            "#!/bin/sh\n[ \"$1\" = pack ] || exit 99\nPACKAGE=$2\n"
            "while [ $# -gt 0 ]; do [ \"$1\" = --pack-destination ] && DEST=$2; shift; done\n" + shell + "\n"
        )
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")

    return install


@pytest.fixture(scope="module")
def one_thread() -> Any:
    """Networks so small gain nothing from threads, and on a busy machine the threads wait for each other."""
    import torch

    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mezzotint.training.hardware.num_cores", lambda: 1)
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(before)

"""Fixtures of more than one folder: a service made of real processes, which draws with the null engine."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from mezzotint.worker import broker
from mezzotint.worker.child import Child
from mezzotint.worker.client import Client
from mezzotint.worker.settings import Settings

# No test fails for the speed of its machine: in a fresh clone Hypothesis first makes its tables of characters, and a
# busy machine takes seconds for that.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def make_model_folder(folder: Path) -> Path:
    """A model that the catalogue can describe and the null engine can draw: 64 x 64 pixels, patch 32."""
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"guidance_scale": 3.0}))
    config = {"sample_size": 64, "patch_size": 32}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return folder


class Service:
    """A data folder, and whatever was started on it. All of it goes at the end of the test."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        self.model = str(make_model_folder(folder / "model"))
        given: dict[str, Any] = {"data_dir": folder / "data", "engine": "null", "null_step_s": 0.02}
        self.settings = Settings.load(**(given | settings))
        self.client = Client(self.settings)
        self.broker: Child | None = None
        self._processes: list[subprocess.Popen[bytes]] = []

    def request(self, **fields: Any) -> dict[str, Any]:
        """A small request for the null engine."""
        return {"prompt": "a red apple", "model": self.model, "num_inference_steps": 3} | fields

    def start_broker(self) -> Child:
        """Start the embedded broker, or start it again."""
        self.broker = broker.start(self.settings)
        return self.broker

    def kill_broker(self) -> None:
        """As a crash does it."""
        assert self.broker is not None
        os.kill(self.broker.pid, signal.SIGKILL)
        self.broker.stop(1)

    def start(self, *command: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start `mezzotint COMMAND ...` in a session of its own; its output is in `log()`."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mezzotint", *command],
                env=os.environ | self.settings.environment() | environment,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )
        self._processes.append(process)
        return process

    def start_worker(self, queues: str = "image", **environment: str) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it is ready."""
        process = self.start("worker", "--queues", queues, **environment)
        mark = f"-{process.pid}-"
        wait_until(lambda: any(mark in name for name in self.client.workers()), 60, self.log)
        return process

    def children(self, process: subprocess.Popen[bytes]) -> list[int]:
        """Processes that a process started, read from the kernel."""
        found = []
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # After the name in brackets: the state, then the parent.
                if int(file.read_text().rpartition(")")[2].split()[1]) == process.pid:
                    found.append(int(file.parent.name))
        return found

    def drawing_child(self, process: subprocess.Popen[bytes]) -> int:
        """The process of a worker that draws."""
        named = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in self.children(process)}
        return next(pid for pid, command in named.items() if "spawn_main" in command)

    def log(self) -> str:
        """What the started processes printed."""
        file = self.folder / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    def end(self) -> None:
        """Kill what is left, whole sessions at a time."""
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if self.broker is not None:
            self.broker.stop(5)


def wait_until(met: Callable[[], object], seconds: float, tell: Callable[[], str] = lambda: "") -> None:
    """Wait until something is true, or fail and tell why it may not be."""
    until = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < until, f"not within {seconds} s\n{tell()}"
        time.sleep(0.05)


def services() -> Iterator[Callable[..., Service]]:
    """Make services by settings; each has a folder short enough for a unix socket."""
    made: list[Service] = []

    def make(**settings: Any) -> Service:
        service = Service(Path(tempfile.mkdtemp(prefix="mzt-")), **settings)
        made.append(service)
        return service

    yield make
    for service in made:
        service.end()
        shutil.rmtree(service.folder)


make_service = pytest.fixture(services)
make_lasting_service = pytest.fixture(services, scope="module")
"""The same for a whole module, whose tests leave the service as they found it."""


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """A service with nothing started yet."""
    return make_service()


@pytest.fixture
def until() -> Callable[..., None]:
    """`wait_until`, for tests: until(met, seconds, tell)."""
    return wait_until


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with random weights, 32 x 32 pixels and patches of 8, that draws in milliseconds."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler

    from mezzotint.dit.model import DiT
    from mezzotint.sampling.pipeline import Pipeline

    torch.manual_seed(0)
    network = DiT(sample_size=32, patch_size=8, patch_bottleneck=12, hidden_size=32, num_layers=2, num_heads=2)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    Pipeline(network, FlowMatchEulerDiscreteScheduler(), guidance_scale=2.0).save_pretrained(folder)
    return folder


CLASS_NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 134: "crane", 207: "golden retriever", 517: "crane"}


@pytest.fixture(scope="session")
def class_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense class-conditional model as diffusers' DiTPipeline saves it, with random weights: 16 x 16 pixels, latents
    of 8 x 8, patches of 4 pixels, 1,000 classes, five of them named."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=5, sample_size=8,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    scheduler = DDIMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    folder = tmp_path_factory.mktemp("class-models") / "classes"
    DiTPipeline(network, vae, scheduler).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": CLASS_NAMES}))
    return folder


@pytest.fixture(scope="session")
def cut_class_model(class_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in segments, as `mezzotint convert` makes it, with weights that are nowhere zero."""
    import torch
    from typer.testing import CliRunner

    from mezzotint.__main__ import app
    from mezzotint.dit.class_dit import ClassDiT

    folder = tmp_path_factory.mktemp("class-models") / "cut"
    layout = "1 + 1x[1,1,1,0] + 1"
    done = CliRunner().invoke(app, ["convert", str(class_model), "--density", layout, "-o", str(folder)])
    assert done.exit_code == 0, done.output
    torch.manual_seed(1)
    network = ClassDiT.from_pretrained(folder / "transformer")
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    network.save_pretrained(folder / "transformer")
    return folder

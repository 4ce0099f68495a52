"""Draw a request in this process and write its files; progress goes to stderr."""

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mezzotint.sampling.engine import Drawn, Progress
from mezzotint.sampling.media import encode_png, provenance, sha256_hex
from mezzotint.sampling.request import GenerateRequest


def draw_to_files(
    request: GenerateRequest, output: Path, *, device: str | None, dtype: str | None, start: float
) -> dict[str, Any]:
    """Draw a complete request and write one PNG a picture.

    start: `time.perf_counter()` when the command began, so that seconds.total counts imports too, and
    seconds.load everything before the first step.
    """
    from mezzotint.sampling.torch_engine import TorchEngine

    engine = TorchEngine(device, dtype)
    with tqdm(total=request.num_inference_steps, unit="step", disable=not sys.stderr.isatty()) as bar:
        drawn = engine.draw(request, on_progress=lambda p: _show(bar, p))
    before_save = time.perf_counter()
    outputs = [_write(request, drawn, i, _path(output, i, request.num_images)) for i in range(request.num_images)]
    for warning in drawn.warnings:
        print(f"note: {warning}", file=sys.stderr)
    now = time.perf_counter()
    return {
        "outputs": outputs,
        "seconds": {
            "load": round(before_save - start - drawn.seconds["sample"], 3),
            "sample": round(drawn.seconds["sample"], 3),
            "save": round(now - before_save, 3),
            "total": round(now - start, 3),
        },
        "flops": drawn.flops,
        "module_passes": drawn.module_passes,
        "model": {"name": drawn.model, "fingerprint": drawn.fingerprint},
        "device": drawn.device,
        "dtype": drawn.dtype,
        "warnings": drawn.warnings,
    }


def _show(bar: "tqdm[Any]", progress: Progress) -> None:
    bar.update(progress.step - bar.n)


def _path(output: Path, index: int, count: int) -> Path:
    return output if count == 1 else output.with_stem(f"{output.stem}-{index + 1}")


def _write(request: GenerateRequest, drawn: Drawn, index: int, path: Path) -> dict[str, Any]:
    image = drawn.images[index]
    data = encode_png(image, provenance(request, drawn, index))
    path.write_bytes(data)
    return {
        "path": str(path), "sha256": sha256_hex(data), "width": image.width, "height": image.height,
        "seed": drawn.seeds[index],
    }

"""Mezzotint: diffusion transformers that spend tokens only where and when they matter.

The public names are imported when they are first used, so that `import mezzotint` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC_NAMES = {
    "DiT": "mezzotint.dit.model",
    "Pipeline": "mezzotint.sampling.pipeline",
    "ClassPipeline": "mezzotint.sampling.class_pipeline",
    "GenerateRequest": "mezzotint.sampling.request",
    "Client": "mezzotint.worker.client",
}
__all__ = ["ClassPipeline", "Client", "DiT", "GenerateRequest", "Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module 'mezzotint' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

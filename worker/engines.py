"""Settings to the engine that draws. One instance a process, so that a loaded model stays loaded."""

import importlib
import logging
import os
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from mezzotint.sampling.engine import Engine
from mezzotint.sampling.request import GenerateRequest
from mezzotint.worker.errors import SettingsError
from mezzotint.worker.settings import Settings

if TYPE_CHECKING:
    from mezzotint.sampling.torch_engine import TorchEngine

logger = logging.getLogger(__name__)
_making = threading.Lock()


def engine_for(settings: Settings) -> Engine:
    """The engine that MEZZOTINT_ENGINE names: "torch", "null", or the import path "package.module:Class"
    of a class of your own, which is made with the settings as its only argument.

    Raises SettingsError for another name. Imports torch for "torch": call it in a worker's child only.
    """
    with _making:
        return _made(settings)


def prepare_engine(settings: Settings, when_ready: Callable[[], None] = lambda: None) -> None:
    """Make the engine in a thread, so that the first job does not wait for torch or its model; `when_ready` is
    called in that thread once it could draw."""

    def make() -> None:
        try:
            engine_for(settings)
        except Exception:
            # The first job meets it again, and fails with its sentence.
            logger.exception("the engine %s could not be made", settings.engine)
        else:
            when_ready()

    threading.Thread(target=make, name="prepare-engine", daemon=True).start()


@lru_cache(maxsize=1)
def _made(settings: Settings) -> Engine:
    if settings.engine == "torch":
        from mezzotint.sampling.torch_engine import TorchEngine

        engine = TorchEngine(device=_chosen(settings.device), dtype=_chosen(settings.dtype))
        _load_first(engine)
        return engine
    if settings.engine == "null":
        from mezzotint.sampling.null_engine import NullEngine

        return NullEngine(settings.null_step_s)
    return cast(Engine, _imported(settings.engine)(settings))


def _load_first(engine: "TorchEngine") -> None:
    """Load the model that most requests name; any other is loaded by its first job."""
    name = os.environ.get("MEZZOTINT_MODEL", "").strip() or GenerateRequest.model_fields["model"].default
    try:
        engine.hub.get(name)
    except Exception:
        # A job that names this model meets it again and fails with its sentence; jobs of other models need not.
        logger.exception("%s was not loaded ahead", name)


def _chosen(value: str) -> str | None:
    """The engine's None is the settings' "auto": it chooses itself."""
    return None if value == "auto" else value


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(
            f"MEZZOTINT_ENGINE is {path!r}; it must be torch, null or package.module:Class ({error})."
        ) from error

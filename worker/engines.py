"""Settings to the engine that draws. One instance a process, so that a loaded model stays loaded."""

import importlib
import logging
import threading
from functools import lru_cache
from typing import Any, cast

from mezzotint.sampling.engine import Engine
from mezzotint.worker.errors import SettingsError
from mezzotint.worker.settings import Settings

logger = logging.getLogger(__name__)
_making = threading.Lock()


def engine_for(settings: Settings) -> Engine:
    """The engine that MEZZOTINT_ENGINE names: "torch", "null", or the import path "package.module:Class"
    of a class of your own, which is made with the settings as its only argument.

    Raises SettingsError for another name. Imports torch for "torch": call it in a worker's child only.
    """
    with _making:
        return _made(settings)


def prepare_engine(settings: Settings) -> None:
    """Make the engine in a thread, so that the first job does not wait for torch to be imported."""

    def make() -> None:
        try:
            engine_for(settings)
        except Exception:
            # The first job meets it again, and fails with its sentence.
            logger.exception("the engine %s could not be made", settings.engine)

    threading.Thread(target=make, name="prepare-engine", daemon=True).start()


@lru_cache(maxsize=1)
def _made(settings: Settings) -> Engine:
    if settings.engine == "torch":
        from mezzotint.sampling.torch_engine import TorchEngine

        return TorchEngine(device=_chosen(settings.device), dtype=_chosen(settings.dtype))
    if settings.engine == "null":
        from mezzotint.sampling.null_engine import NullEngine

        return NullEngine(settings.null_step_s)
    return cast(Engine, _imported(settings.engine)(settings))


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

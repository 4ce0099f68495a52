"""Loading takes under two seconds here; the libraries' own progress bars would only hide what matters."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Switch the loading bars of diffusers and transformers off, and back to how they were."""
    switched_off = [lib for lib in (diffusers_logging, transformers_logging) if lib.is_progress_bar_enabled()]
    for library in switched_off:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in switched_off:
            library.enable_progress_bar()

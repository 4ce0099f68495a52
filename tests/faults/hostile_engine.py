"""An engine for the fault tests, named by MEZZOTINT_ENGINE=hostile_engine:HostileEngine: the prompt says
what it does to its process. It is on the workers' PYTHONPATH in these tests only."""

import os
import signal
import time
from typing import Any

from mezzotint.sampling.engine import Drawn
from mezzotint.sampling.null_engine import NullEngine
from mezzotint.sampling.request import GenerateRequest


class HostileEngine(NullEngine):
    """Made with the worker's settings, as any engine of one's own is."""

    def __init__(self, settings: Any) -> None:
        super().__init__(settings.null_step_s)

    def draw(self, request: GenerateRequest, **hooks: Any) -> Drawn:
        """Draw, unless the prompt asks for something worse."""
        if request.prompt == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        if request.prompt == "hang":
            time.sleep(3600)
        return super().draw(request, **hooks)

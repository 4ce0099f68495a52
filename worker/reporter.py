"""An engine's progress on its way to the event stream: with the time left, and previews not too often."""

import io
import time

from PIL import Image

from mezzotint.sampling.engine import Progress
from mezzotint.worker.events import Event, Events

PREVIEW_EVERY_S = 0.5
PREVIEW_SIDE = 256


class Reporter:
    """Called by the engine after every step of one attempt."""

    def __init__(self, events: Events, job_id: str, attempt: int) -> None:
        self._events, self._job_id, self._attempt = events, job_id, attempt
        self._first: tuple[float, int] | None = None
        self._next_preview = 0.0

    def __call__(self, progress: Progress) -> None:
        """Send one step on."""
        event = Event(
            attempt=self._attempt,
            phase=progress.phase,
            step=progress.step,
            num_steps=progress.num_steps,
            eta_s=self._eta_s(progress),
        )
        self._events.report(self._job_id, event, self._preview(progress.preview))

    def _eta_s(self, progress: Progress) -> float | None:
        """Seconds left at the pace of the steps seen so far; the first step often carries a warm-up."""
        if progress.phase != "sample":
            return None
        now = time.monotonic()
        if self._first is None or progress.step <= self._first[1]:
            self._first = (now, progress.step)
            return None
        began, first_step = self._first
        pace_s = (now - began) / (progress.step - first_step)
        return round(pace_s * (progress.num_steps - progress.step), 2)

    def _preview(self, image: Image.Image | None) -> bytes | None:
        now = time.monotonic()
        if image is None or now < self._next_preview:
            return None
        self._next_preview = now + PREVIEW_EVERY_S
        small = image.convert("RGB")
        small.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=80)
        return buffer.getvalue()

"""The one way to the jobs from Python: the page and the command line use it. No torch here."""

from collections.abc import Mapping
from typing import Any

from mezzotint.sampling.request import GenerateRequest
from mezzotint.worker.settings import Settings
from mezzotint.worker.views import JobPage, JobView


class Client:
    """Submits jobs and reads them back. Safe to share between threads.

    Every read is of the job table, which is the truth; progress is added from the broker when it answers.
    A job of another owner is a JobNotFound.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        """Connect on first use. Raises SettingsError when a MEZZOTINT_* variable cannot be used."""
        self.settings = settings or Settings.load()

    def submit(
        self,
        request: GenerateRequest | Mapping[str, Any],
        *,
        owner: str = "local",
        idempotency_key: str | None = None,
    ) -> JobView:
        """Check a request, write its job and tell a worker; answers in under a second, broker or not.

        Raises RequestError (nothing is queued), and IdempotencyConflict when the owner used the key before
        for another request.
        """
        raise NotImplementedError

    def get(self, job_id: str, *, owner: str = "local") -> JobView:
        """The job as it stands. Raises JobNotFound."""
        raise NotImplementedError

    def wait(self, job_id: str, *, owner: str = "local", timeout_s: float | None = None) -> JobView:
        """The job once its state is final. Raises JobNotFound, and TimeoutError after `timeout_s` seconds."""
        raise NotImplementedError

    def cancel(self, job_id: str, *, owner: str = "local") -> JobView:
        """Ask for a stop: at once when the job waits, within one denoising step when it runs, and without
        effect when it has ended. Raises JobNotFound."""
        raise NotImplementedError

    def list(self, *, owner: str = "local", limit: int = 50, cursor: str | None = None) -> JobPage:
        """A page of the owner's jobs, newest first; `limit` is from 1 to 200."""
        raise NotImplementedError

    def preview(self, job_id: str, *, owner: str = "local") -> bytes | None:
        """The last preview as JPEG bytes, or None while or when there is none. Raises JobNotFound."""
        raise NotImplementedError

    def media(self, media_id: str, *, owner: str = "local") -> bytes:
        """The bytes of a finished picture (PNG). Raises MediaNotFound."""
        raise NotImplementedError

"""One attempt at one job, from claim to commit."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mezzotint.sampling.engine import Cancelled, Drawn, Engine
from mezzotint.sampling.media import encode_png, provenance, sha256_hex
from mezzotint.sampling.request import GenerateRequest, RequestError
from mezzotint.worker import attempts, gallery, logs
from mezzotint.worker.attempts import Claim
from mezzotint.worker.database import Database
from mezzotint.worker.events import Events
from mezzotint.worker.gallery import Picture
from mezzotint.worker.lease import Lease
from mezzotint.worker.reporter import Reporter
from mezzotint.worker.storage import Storage, StorageError

logger = logging.getLogger(__name__)


class Failure(Exception):
    """The job cannot be done; another attempt would end the same way."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Runner:
    """What an attempt needs of its process; `worker` is the name that claims bear, and `engine` is asked
    for its one instance within the first attempt, so that its failure to start is a job's failure."""

    database: Database
    storage: Storage
    events: Events
    engine: Callable[[], Engine]
    worker: str
    lease_s: float

    def run(self, job_id: str, attempt: int) -> str:
        """Try to make one attempt; what became of it, in a few words for the log.

        A job's own failure ends in its row. What is raised is the service's (no database, say): then the
        lease runs out and the reconciler has the job tried again.
        """
        claim = attempts.claim(self.database, job_id, attempt, worker=self.worker, lease_s=self.lease_s)
        if claim is None:
            return "not wanted"
        with logs.about(job_id), Lease(self.database, claim, self.lease_s):
            try:
                return self._finish(claim)
            except Cancelled:
                return self._stop(claim)
            except Failure as failure:
                if attempts.fail(self.database, claim, failure.code, str(failure)):
                    self._count({"ended:failed": 1, f"failed:{failure.code}": 1})
                return f"failed ({failure.code})"

    def _count(self, amounts: dict[str, float]) -> None:
        self.events.count({"attempts": 1} | amounts)

    def _finish(self, claim: Claim) -> str:
        began = time.monotonic()
        drawn, pictures = self._draw(claim)
        drew_s = time.monotonic() - began
        if self._order(claim) != "draw":
            raise Cancelled
        try:
            gallery.keep(self.database, self.storage, claim, pictures)
            result = _result(claim, drawn, drew_s=drew_s, total_s=time.monotonic() - began)
            if attempts.commit(self.database, claim, result):
                spent = {f"seconds:{phase}": seconds for phase, seconds in result["seconds"].items()}
                self._count({"ended:succeeded": 1, "steps": claim.request["num_inference_steps"], **spent})
                return "succeeded"
        except StorageError as error:
            gallery.drop(self.database, self.storage, claim, pictures)
            raise Failure("storage", str(error)) from error
        gallery.drop(self.database, self.storage, claim, pictures)
        raise Cancelled

    def _draw(self, claim: Claim) -> tuple[Drawn, list[Picture]]:
        """Draw and encode. A fault that nobody foresaw becomes the job's, with its trace in the log."""
        try:
            request = GenerateRequest.model_validate(claim.request)
            drawn = self.engine().draw(
                request,
                on_progress=Reporter(self.events, claim.job_id, claim.attempt),
                cancelled=lambda: self._order(claim) != "draw",
            )
            return drawn, [_picture(request, drawn, index) for index in range(len(drawn.images))]
        except Cancelled:
            raise
        except RequestError as error:
            raise Failure("request", str(error)) from error
        except MemoryError as error:
            raise Failure("memory", str(error) or "out of memory; lower the size or num_images.") from error
        except Exception as error:
            logger.exception("job %s failed unexpectedly", claim.job_id)
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            raise Failure("internal", f"the engine failed ({reason}); the worker's log has more.") from error

    def _order(self, claim: Claim) -> attempts.Order:
        return attempts.order(self.database, claim)

    def _stop(self, claim: Claim) -> str:
        """The attempt is over without a result; leave the job as whoever stopped it wants it."""
        if self._order(claim) == "hand_back" and attempts.hand_back(self.database, claim):
            self._count({})
            return "handed back"
        if attempts.end_cancelled(self.database, claim):
            self._count({"ended:cancelled": 1})
            return "cancelled"
        if self._order(claim) == "lost":
            return "lost its lease"
        raise Failure("internal", "the engine stopped without being asked to.")


def _picture(request: GenerateRequest, drawn: Drawn, index: int) -> Picture:
    image = drawn.images[index]
    data = encode_png(image, provenance(request, drawn, index))
    return Picture(
        data=data, sha256=sha256_hex(data), width=image.width, height=image.height, seed=drawn.seeds[index]
    )


def _result(claim: Claim, drawn: Drawn, *, drew_s: float, total_s: float) -> dict[str, Any]:
    seconds = drawn.seconds | {"queue": claim.queued_s, "save": total_s - drew_s, "total": total_s}
    return {
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "flops": drawn.flops,
        "fingerprint": drawn.fingerprint,
        "device": drawn.device,
        "dtype": drawn.dtype,
        "warnings": drawn.warnings,
    }

"""The Celery application, `celery -A mezzotint.worker.app`. `mezzotint worker` runs it with good options."""

import mezzotint.worker.celery_logs
import mezzotint.worker.housekeeping  # noqa: F401 - both connect themselves to Celery's signals
from mezzotint.worker.celery_setup import make_celery
from mezzotint.worker.settings import Settings

app = make_celery(Settings.load())

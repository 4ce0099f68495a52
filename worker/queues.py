"""Names of the queues."""

DRAWING_QUEUE = "image"
INTAKE_QUEUE = "celery"
"""Celery's own default, under our key prefix, so that people who send by task name need not know it."""

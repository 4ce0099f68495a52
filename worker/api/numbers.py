"""Prometheus metrics: of the requests that this process saw, and of jobs and workers as the tables tell them."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mezzotint.worker.tally import Tally

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS_S = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 60.0)


class HttpNumbers:
    """Counts requests. Routes are named by their pattern, so that no caller can make new names."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = ("method", "route", "status")
        self._requests = Counter("mezzotint_http_requests", "Requests answered.", names, registry=self.registry)
        self._seconds = Histogram(
            "mezzotint_http_request_seconds", "Time to the end of the answer.", ("route",), buckets=_BOUNDS_S,
            registry=self.registry,
        )

    def seen(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request; status 0 is one whose caller left before the answer."""
        known = method if method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)


class ServiceNumbers(Collector):
    """Jobs, queues and workers, read when they are asked for."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterable[Metric]:
        """The metrics as they stand."""
        yield from self._of_jobs()
        yield from self._of_workers()
        yield from self._of_totals()

    def _of_jobs(self) -> Iterable[Metric]:
        jobs = GaugeMetricFamily("mezzotint_jobs", "Jobs in the table.", labels=["state"])
        for state, count in self._tally.states().items():
            jobs.add_metric([state], count)
        depth = GaugeMetricFamily("mezzotint_queue_depth", "Jobs that wait.", labels=["queue"])
        age = GaugeMetricFamily("mezzotint_queue_oldest_seconds", "Age of the oldest that waits.", labels=["queue"])
        for queue, count, seconds in self._tally.queues():
            depth.add_metric([queue], count)
            age.add_metric([queue], seconds)
        return jobs, depth, age

    def _of_workers(self) -> Iterable[Metric]:
        workers = GaugeMetricFamily("mezzotint_workers", "Workers that are there.", labels=["queue"])
        for queue, count in self._tally.workers().items():
            workers.add_metric([queue], count)
        engines = GaugeMetricFamily("mezzotint_engines_ready", "Processes with a model in memory.")
        ready = self._tally.num_engines()
        if ready is not None:
            engines.add_metric([], ready)
        return workers, engines

    def _of_totals(self) -> Iterable[Metric]:
        """What the workers counted; nothing while the broker does not answer."""
        families = {
            "attempts": CounterMetricFamily("mezzotint_attempts", "Attempts made, lost ones too."),
            "attempts_lost": CounterMetricFamily("mezzotint_attempts_lost", "Attempts whose worker vanished."),
            "steps": CounterMetricFamily("mezzotint_steps", "Denoising steps of finished jobs."),
            "ended": CounterMetricFamily("mezzotint_jobs_ended", "Jobs that ran to an end.", labels=["state"]),
            "failed": CounterMetricFamily("mezzotint_jobs_failed", "Failures by code.", labels=["code"]),
            "seconds": CounterMetricFamily("mezzotint_phase_seconds", "Time of finished jobs.", labels=["phase"]),
        }
        for name, amount in sorted((self._tally.totals() or {}).items()):
            family, _, label = name.partition(":")
            if family in families:
                families[family].add_metric([label] if label else [], amount)
        return families.values()


def exposition(http: HttpNumbers, service: ServiceNumbers) -> bytes:
    """All of them in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(service)
    return generate_latest(registry) + generate_latest(http.registry)

"""States, costs, times and errors of jobs in words. Pure functions; no Streamlit here."""

import re
import statistics
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from mezzotint.worker.views import JobView

LABELS = {
    "prompt": "Prompt",
    "class_label": "Class",
    "width": "Width",
    "height": "Height",
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "density": "Density",
    "seed": "Seed",
    "num_images": "Pictures",
    "model": "Model",
}
"""What the page calls each field of a request."""

FLOP_UNITS = ((1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))
ESTIMATE_JOBS = 20
LABEL_CHARACTERS = 48


def spoken(sentence: str) -> str:
    """A sentence about a request with the page's names of the fields in it: "Steps is 0; ..."."""
    for field, label in LABELS.items():
        if "_" in field:
            sentence = re.sub(rf"\b{field}\b", label.lower(), sentence)
    return sentence[:1].upper() + sentence[1:]


def state(job: JobView) -> str:
    """What a job is doing or how it ended, in a few words."""
    if job.cancel_requested and not job.is_final:
        return "Stopping"
    if job.state == "queued":
        return _waiting(job)
    if job.state == "running":
        return _running(job)
    if job.state == "succeeded":
        return f"Done in {duration(total_seconds(job))}"
    return {
        "failed": "Failed",
        "cancelled": "Cancelled",
        "dead": f"Given up after {count(job.attempt, 'attempt')}",
    }[job.state]


def _waiting(job: JobView) -> str:
    again = f", attempt {job.attempt + 1}" if job.attempt else ""
    if job.place is None:
        return f"Waiting for a worker{again}"
    return f"Next in line{again}" if job.place == 1 else f"In line, {job.place - 1} ahead{again}"


def _running(job: JobView) -> str:
    if job.phase == "decode":
        return "Saving the picture"
    if job.phase != "sample" and not job.step:
        return "Loading the model"
    left = "" if job.eta_s is None else f", about {duration(job.eta_s)} left"
    return f"Step {job.step} of {job.num_steps}{left}"


def brief(job: JobView, now: datetime) -> str:
    """A job's state for the narrow space under a thumbnail; its age once it has succeeded."""
    if job.state == "succeeded":
        return ago(job.created_at, now)
    if job.state == "running" and not job.cancel_requested and job.step:
        return f"Step {job.step} of {job.num_steps}"
    if job.state == "dead":
        return "Given up"
    return state(job)


def fraction(job: JobView) -> float:
    """Denoising steps done, from 0 to 1."""
    return min(1.0, job.step / max(1, job.num_steps))


def total_seconds(job: JobView) -> float:
    """Seconds of work that a finished job took."""
    return job.seconds.get("total", sum(job.seconds.values()))


def expected_seconds(jobs: Iterable[JobView], model: str, flops: int) -> float | None:
    """Seconds of sampling to expect for `flops`, from the speed of past jobs of the same model; None while
    there are none. The median, so that one slow job does not spoil it."""
    done = [job for job in jobs if job.model == model and job.flops and job.seconds.get("sample")]
    paces = [job.seconds["sample"] / job.flops for job in done[:ESTIMATE_JOBS] if job.flops]
    return statistics.median(paces) * flops if paces else None


def work(flops: float) -> str:
    """An amount of arithmetic: 412 GFLOP."""
    for size, unit in FLOP_UNITS:
        if flops >= size:
            return f"{_three_digits(flops / size)} {unit}"
    return f"{flops:,.0f} FLOP"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def duration(seconds: float) -> str:
    """A length of time as people say it: 0.8 s, 42 s, 3 min 20 s, 1 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def ago(then: datetime, now: datetime) -> str:
    """How long ago something was: just now, 5 min ago, 3 h ago, 24 Nov 2026."""
    minutes = int((now - then).total_seconds() // 60)
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes} min ago"
    if minutes < 24 * 60:
        return f"{minutes // 60} h ago"
    return f"{then.day} {then:%b %Y}"


def count(number: int, thing: str) -> str:
    """1 attempt, 3 attempts."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def subject(request: Mapping[str, Any]) -> str:
    """What a request asks for: its prompt, or its class."""
    asked = request.get("class_label")
    if asked is None:
        return str(request["prompt"])
    return class_name(asked)


def class_name(asked: int | str) -> str:
    """A class by the name that was asked for, or by its number."""
    return asked if isinstance(asked, str) else f"class {asked}"


def label(prompt: str) -> str:
    """A prompt as part of a widget's label, which Streamlit reads as markdown: letters, digits and spaces
    only, cut to a short length, so nothing in it can be markup."""
    plain = " ".join(re.sub(r"[^\w\s]|_", " ", prompt).split())
    return plain if len(plain) <= LABEL_CHARACTERS else plain[:LABEL_CHARACTERS].rsplit(" ", 1)[0]

"""One job in full: picture, state in words, progress, settings and what can be done with it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from mezzotint.sampling.density_presets import FULL
from mezzotint.sampling.intake import accept
from mezzotint.sampling.request import RequestError
from mezzotint.ui import composer, markup, plate, words
from mezzotint.ui.connection import client
from mezzotint.worker.queues import DRAWING_QUEUE
from mezzotint.worker.views import JobView, Output

REFRESH = "refresh"
"""Session key set by what is done on a card: the whole page is drawn again, not only the fragment."""


def show(job: JobView) -> None:
    """Draw a job."""
    picture, details = _frame()
    with picture:
        plate.large(job)
    with details:
        markup.text("mz-words", words.subject(job.request))
        _state(job)
        _actions(job)
        markup.facts(_facts(job))


def welcome() -> None:
    """Draw the card of someone who has no job yet."""
    picture, details = _frame()
    with picture:
        plate.empty()
    with details:
        markup.text("mz-words", "Nothing drawn yet")
        markup.text("mz-note", "Write what you would like to see, or click one of the examples. The picture "
                               "appears here as it is drawn, and stays in the history.")


def _frame() -> tuple[DeltaGenerator, DeltaGenerator]:
    """Room for the picture and for the words beside it. It is the same for every card, so that one takes the
    place of another without both being seen for a moment."""
    with st.container(key="mz-card"):
        picture, details = st.columns([5, 4], gap="medium")
        return picture, details.container(key="mz-details", gap="xsmall")


def _state(job: JobView) -> None:
    markup.text(f"mz-state mz-{job.state}", words.state(job), role="status")
    if not job.is_final:
        st.progress(words.fraction(job))
    if job.error:
        markup.complaint(job.error.message)
    if job.state == "queued" and not _is_drawn_for():
        markup.text("mz-note", "No worker answers; start one with `mezzotint worker`. The job waits for it.")
    for warning in job.warnings:
        markup.text("mz-note", warning)


def _is_drawn_for() -> bool:
    return any(DRAWING_QUEUE in queues for queues in client().workers().values())


def _actions(job: JobView) -> None:
    with st.container(key="mz-actions", horizontal=True, gap="xsmall"):
        if not job.is_final:
            _act(job, "Cancel", _cancel, job.id, disabled=job.cancel_requested)
        elif job.state == "succeeded":
            _downloads(job)
            _act(job, "New seed", _again, {**job.request, "seed": None})
        else:
            _act(job, "Try again", _again, job.request)
        _act(job, "Use these settings", _use, job.request)


def _act(job: JobView, label: str, action: Callable[..., None], *args: Any, disabled: bool = False) -> None:
    st.button(label, key=f"{label}-{job.id}", on_click=action, args=args, disabled=disabled)


def _cancel(job_id: str) -> None:
    client().cancel(job_id)


def _again(request: Mapping[str, Any]) -> None:
    composer.submit(request)
    st.session_state[REFRESH] = True


def _use(request: Mapping[str, Any]) -> None:
    composer.use(request)
    st.session_state[REFRESH] = True


def _downloads(job: JobView) -> None:
    if len(job.outputs) == 1:
        _download("Download PNG", job.outputs[0])
        return
    with st.popover("Download PNG"):
        for number, output in enumerate(job.outputs, start=1):
            _download(f"Picture {number}, seed {output.seed}", output)


def _download(label: str, output: Output) -> None:
    mine = client()  # no script runs any more when the file is asked for
    st.download_button(
        label,
        data=lambda: mine.media(output.media_id),
        file_name=f"mezzotint-{output.seed}-{output.sha256[:8]}.png",
        mime="image/png",
        key=f"download-{label}-{output.media_id}",
        on_click="ignore",
    )


def _facts(job: JobView) -> dict[str, str]:
    request = job.request
    seeds = request["num_images"] - 1
    shown = {
        "Seed": f"{request['seed']}" + (f" to {request['seed'] + seeds}" if seeds else ""),
        "Size": f"{request['width']} × {request['height']}",
        "Steps": f"{request['num_inference_steps']}",
        "Guidance": f"{request['guidance_scale']:g}",
        "Model": Path(job.model).name,
        "Work": _work(job),
    }
    if (density := request.get("density") or FULL) != FULL:
        shown["Density"] = density
    if job.state == "succeeded":
        shown["Time"] = words.duration(words.total_seconds(job))
    return shown


def _work(job: JobView) -> str:
    if job.flops:
        return words.work(job.flops)
    try:
        return words.work(accept(job.request)[1].flops)
    except RequestError:  # its model has gone since
        return "not known"

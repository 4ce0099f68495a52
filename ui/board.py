"""The right side of Create: the job in view and the ones before it, drawn from the job table alone."""

from datetime import UTC, datetime

import streamlit as st

from mezzotint.ui import address, card, markup, navigation, plate, words
from mezzotint.ui.connection import client
from mezzotint.worker.errors import JobNotFound
from mezzotint.worker.views import JobView

POLL_S = 0.5
RECENT = 12


def show() -> None:
    """Draw the board in a fragment that runs again by itself only while a job is active."""
    _, _, active = _read()
    st.fragment(_board, run_every=POLL_S if active else None)(active)


def _read() -> tuple[JobView | None, list[JobView], bool]:
    """The job in view, the recent ones, and whether any of them has still to end."""
    jobs = client().list(limit=RECENT).jobs
    job = _in_view(jobs)
    return job, jobs, any(not each.is_final for each in [*jobs, *([job] if job else [])])


def _in_view(jobs: list[JobView]) -> JobView | None:
    wanted = address.get("job")
    if not wanted:
        return jobs[0] if jobs else None
    known = next((job for job in jobs if job.id == wanted), None)
    if known:
        return known
    try:
        return client().get(wanted)
    except JobNotFound as error:
        markup.complaint(str(error))
        return jobs[0] if jobs else None


def _board(polling: bool) -> None:
    with markup.service_errors():
        job, jobs, active = _read()
        if st.session_state.pop(card.REFRESH, False) or active != polling:
            st.rerun()
        if job is None:
            card.welcome()
            return
        card.show(job)
        _strip(jobs, job)


def _strip(jobs: list[JobView], in_view: JobView) -> None:
    with st.grid(columns="auto", min_column_width=96, gap="xsmall", key="mz-strip"):
        for job in jobs:
            with st.container(key=f"pick-{job.id}" + ("-chosen" if job.id == in_view.id else "")):
                plate.small(job)
                caption(job)
                open_label = f"Open {words.label(words.subject(job.request))}"
                st.button(open_label, key=f"open-{job.id}", on_click=address.put, args=("job", job.id))
    st.page_link(navigation.history_page(), label="All pictures")


def caption(job: JobView) -> None:
    """State or age of a job under its thumbnail, with a thin line of progress while it runs."""
    markup.text(f"mz-caption mz-{job.state}", words.brief(job, datetime.now(UTC)))
    if not job.is_final:
        st.html(f'<div class="mz-line"><i style="width:{words.fraction(job):.0%}"></i></div>')

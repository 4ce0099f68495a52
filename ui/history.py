"""History: everything drawn so far, a page at a time."""

import streamlit as st

from mezzotint.ui import board, markup, navigation, plate, words
from mezzotint.ui.connection import client
from mezzotint.worker.views import JobPage, JobView

PAGE = 24
CURSOR = "before"
"""Query parameter with the cursor of the page in view, so that a reload shows the same."""


def show() -> None:
    """Draw the page."""
    st.title("History", anchor=False)
    with markup.service_errors():
        active = _active(_read())
        st.fragment(_gallery, run_every=board.POLL_S if active else None)(active)


def _read() -> JobPage:
    """The page in view; the newest when the address holds a cursor that never was one."""
    try:
        return client().list(limit=PAGE, cursor=st.query_params.get(CURSOR))
    except ValueError:
        st.query_params.pop(CURSOR, None)
        return client().list(limit=PAGE)


def _active(page: JobPage) -> bool:
    return any(not job.is_final for job in page.jobs)


def _gallery(polling: bool) -> None:
    with markup.service_errors():
        page = _read()
        if _active(page) != polling:
            st.rerun()
        if not page.jobs:
            _nothing()
            return
        with st.grid(columns="auto", min_column_width=150, key="mz-gallery"):
            for job in page.jobs:
                _item(job)
        _turn(page)


def _item(job: JobView) -> None:
    with st.container(key=f"pick-{job.id}"):
        plate.small(job)
        markup.text("mz-caption mz-title", job.request["prompt"])
        board.caption(job)
        if st.button(f"Open {words.label(job.request['prompt'])}", key=f"open-{job.id}"):
            st.switch_page(navigation.create_page(), query_params={"job": job.id})


def _nothing() -> None:
    markup.text("mz-note", "Nothing has been drawn yet.")
    st.page_link(navigation.create_page(), label="Draw the first picture")


def _turn(page: JobPage) -> None:
    with st.container(key="mz-turn", horizontal=True, gap="small"):
        if CURSOR in st.query_params:
            st.button("Newest", on_click=_go_to, args=(None,))
        if page.next_cursor:
            st.button("Older", on_click=_go_to, args=(page.next_cursor,))


def _go_to(cursor: str | None) -> None:
    if cursor is None:
        st.query_params.pop(CURSOR, None)
    else:
        st.query_params[CURSOR] = cursor

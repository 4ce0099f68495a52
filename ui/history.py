"""History: everything drawn so far, a page at a time."""

import streamlit as st

from mezzotint.ui import address, board, markup, navigation, plate, words
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
        return client().list(limit=PAGE, cursor=address.get(CURSOR))
    except ValueError:
        address.put(CURSOR, None)
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
        markup.text("mz-caption mz-title", words.subject(job.request))
        board.caption(job)
        if st.button(f"Open {words.label(words.subject(job.request))}", key=f"open-{job.id}"):
            address.remember("job", job.id)
            st.switch_page(navigation.create_page(), query_params={"job": job.id})


def _nothing() -> None:
    markup.text("mz-note", "Nothing has been drawn yet.")
    st.page_link(navigation.create_page(), label="Draw the first picture")


def _turn(page: JobPage) -> None:
    with st.container(key="mz-turn", horizontal=True, gap="small"):
        if address.get(CURSOR) is not None:
            st.button("Newest", on_click=address.put, args=(CURSOR, None))
        if page.next_cursor:
            st.button("Older", on_click=address.put, args=(CURSOR, page.next_cursor))

"""The picture of a job, or the place where it will be. Its size is fixed by the request: nothing jumps."""

import math
from base64 import b64encode
from html import escape

import streamlit as st

from mezzotint.ui import markup, words
from mezzotint.ui.connection import client, original, thumbnail
from mezzotint.worker.errors import MediaNotFound
from mezzotint.worker.views import JobView


def large(job: JobView) -> None:
    """All pictures of a job in full; while it works, the preview of the first."""
    many, ratio = job.request["num_images"], f"{job.request['width']:d}/{job.request['height']:d}"
    columns = math.ceil(math.sqrt(many))
    with st.grid(columns=columns, min_column_width=72, gap="xsmall", key=f"sheet-{job.id}"):
        for index in range(many):
            with st.container(key=f"plate-{job.id}-{index}"):
                st.html(f"<style>.st-key-plate-{job.id}-{index} {{ --ratio: {ratio}; }}</style>")
                _picture(job, index, is_large=True)


def small(job: JobView) -> None:
    """The first picture of a job as a square thumbnail."""
    with st.container(key=f"thumb-{job.id}"):
        _picture(job, 0, is_large=False)


def empty() -> None:
    """The place of a picture that nobody has asked for yet."""
    with st.grid(columns=1, gap="xsmall", key="sheet-empty"), st.container(key="plate-empty"):
        _grain()


def _picture(job: JobView, index: int, *, is_large: bool) -> None:
    if index < len(job.outputs):
        _finished(job, index, is_large)
    elif job.state == "running" and index == 0 and (preview := client().preview(job.id)):
        _preview(preview, f"Preview: {words.subject(job.request)}")
    else:
        _grain()


def _finished(job: JobView, index: int, is_large: bool) -> None:
    """Without its format Streamlit would encode a picture anew each time that it is shown."""
    media_id, alt = job.outputs[index].media_id, f"Picture {index + 1}: {words.subject(job.request)}"
    try:
        if is_large:
            st.image(original(media_id), width="stretch", output_format="PNG", alt=alt)
        else:
            st.image(thumbnail(media_id), width="stretch", output_format="JPEG", alt=alt)
    except MediaNotFound as error:
        markup.complaint(str(error))


def _preview(jpeg: bytes, alt: str) -> None:
    """A preview travels within the page: as a file of its own it may be gone before the browser asks for it."""
    source = f"data:image/jpeg;base64,{b64encode(jpeg).decode()}"
    st.html(f'<img class="mz-preview" src="{source}" alt="{escape(alt)}" decoding="sync">')


def _grain() -> None:
    st.html('<div class="mz-grain"></div>')

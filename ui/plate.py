"""The picture of a job, or the place where it will be. Its size is fixed by the request: nothing jumps."""

import math
from collections.abc import Callable
from typing import Literal

import streamlit as st

from mezzotint.ui import connection, markup
from mezzotint.worker.errors import MediaNotFound
from mezzotint.worker.views import JobView

PNG_SIGNATURE = b"\x89PNG"


def large(job: JobView) -> None:
    """All pictures of a job in full; while it works, the preview of the first."""
    many, ratio = job.request["num_images"], f"{job.request['width']:d}/{job.request['height']:d}"
    columns = math.ceil(math.sqrt(many))
    with st.grid(columns=columns, min_column_width=72, gap="xsmall", key=f"sheet-{job.id}"):
        for index in range(many):
            with st.container(key=f"plate-{job.id}-{index}"):
                st.html(f"<style>.st-key-plate-{job.id}-{index} {{ --ratio: {ratio}; }}</style>")
                _show(job, index, connection.original)


def empty() -> None:
    """The place of a picture that nobody has asked for yet."""
    with st.grid(columns=1, gap="xsmall", key="sheet-empty"), st.container(key="plate-empty"):
        st.html('<div class="mz-grain"></div>')


def small(job: JobView) -> None:
    """The first picture of a job as a square thumbnail."""
    with st.container(key=f"thumb-{job.id}"):
        _show(job, 0, connection.thumbnail)


def _show(job: JobView, index: int, read: Callable[[str], bytes]) -> None:
    picture = _picture(job, index, read)
    if picture is None:
        st.html('<div class="mz-grain"></div>')
    else:
        # Without its format Streamlit would encode every picture anew, each time it is shown.
        kind: Literal["PNG", "JPEG"] = "PNG" if picture.startswith(PNG_SIGNATURE) else "JPEG"
        st.image(picture, width="stretch", output_format=kind, alt=_alt(job, index))


def _picture(job: JobView, index: int, read: Callable[[str], bytes]) -> bytes | None:
    if index < len(job.outputs):
        try:
            return read(job.outputs[index].media_id)
        except MediaNotFound as error:
            markup.complaint(str(error))
            return None
    return connection.client().preview(job.id) if job.state == "running" and index == 0 else None


def _alt(job: JobView, index: int) -> str:
    kind = f"Picture {index + 1}" if job.outputs else "Preview"
    return f"{kind}: {job.request['prompt']}"

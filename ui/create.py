"""Create: ask for a picture on the left, see it on the right."""

import streamlit as st

from mezzotint.sampling.request import RequestError
from mezzotint.ui import address, board, composer, markup
from mezzotint.ui.connection import client
from mezzotint.worker.errors import JobNotFound

RESTORED = "restored"


def show() -> None:
    """Draw the page."""
    with markup.service_errors():
        _restore()
        left, right = st.columns([3, 7], gap="large")
        with left:
            try:
                composer.show()
            except RequestError as error:
                markup.complaint(str(error))
        with right:
            board.show()


def _restore() -> None:
    """After a reload the composer holds the settings of the job in view; a random seed stays random."""
    if RESTORED in st.session_state:
        return
    st.session_state[RESTORED] = True
    wanted = address.get("job")
    if wanted:
        try:
            composer.use({**client().get(wanted).request, "seed": None})
        except JobNotFound:
            return  # the board says so

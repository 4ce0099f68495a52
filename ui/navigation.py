"""The pages and how to go from one to another."""

import streamlit as st


def create_page() -> st.Page:
    """Where pictures are asked for and a job is looked at (?job=ID)."""
    from mezzotint.ui import create

    return st.Page(create.show, title="Create", url_path="create", default=True)


def history_page() -> st.Page:
    """Everything drawn so far."""
    from mezzotint.ui import history

    return st.Page(history.show, title="History", url_path="history")

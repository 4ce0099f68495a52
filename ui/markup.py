"""People's text on the page, as text: everything that is not ours is escaped before it is shown."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from html import escape

import streamlit as st

from mezzotint.ui import words
from mezzotint.worker.errors import ServiceError


def text(css_class: str, value: str, *, role: str | None = None) -> None:
    """Show `value` as plain text, whatever it holds."""
    spoken = f' role="{role}"' if role else ""
    st.html(f'<p class="{css_class}"{spoken}>{escape(value)}</p>')


def complaint(sentence: str | None) -> None:
    """A sentence beside the field that it is about, with the page's names of fields; nothing for None."""
    if sentence:
        text("mz-complaint", words.spoken(sentence), role="alert")


def facts(pairs: Mapping[str, str]) -> None:
    """Names and values as a definition list."""
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in pairs.items())
    st.html(f'<dl class="mz-facts">{rows}</dl>')


@contextmanager
def service_errors() -> Iterator[None]:
    """Show a known failure of the service as its sentence instead of ending the script."""
    try:
        yield
    except ServiceError as error:
        complaint(str(error))

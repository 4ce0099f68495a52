"""What the page's address remembers, such as the job in view: ?job=ID.

The address lags behind: a browser that follows a running job may ask with an address that a click has just
changed. So the session's own memory counts, and the address only where the session knows nothing yet.
"""

import streamlit as st


def get(name: str) -> str | None:
    """A value of the address, or None. The address is mended when it differs from what the session knows."""
    known = st.session_state.get(_key(name))
    if known is None:
        known = st.query_params.get(name)
        remember(name, known)
    elif st.query_params.get(name, "") != known:
        put(name, known or None)
    return known or None


def put(name: str, value: str | None) -> None:
    """Set a value, or with None take it out."""
    remember(name, value or "")
    if value is None:
        st.query_params.pop(name, None)
    else:
        st.query_params[name] = value


def remember(name: str, value: str | None) -> None:
    """Set a value for the page that is about to be opened, without touching the address of this one."""
    st.session_state[_key(name)] = value


def _key(name: str) -> str:
    return f"address-{name}"

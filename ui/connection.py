"""The page's one client, and pictures kept in memory between reruns."""

import io
from collections.abc import Mapping

import streamlit as st
from PIL import Image

from mezzotint.worker.client import Client

THUMBNAIL_SIDE = 320
"""Pixels; twice the side at which a thumbnail is shown, for dense screens."""


COOKIE = "mezzotint_token"


@st.cache_resource(show_spinner=False)
def shared() -> Client:
    """The connections that all sessions of this server share."""
    return Client()


def cookies() -> Mapping[str, str]:
    """What the browser sent when its session began."""
    return st.context.cookies


def client() -> Client:
    """The client of whoever looks at the page: behind the gate that of the token in their cookie. Once that is
    revoked the script stops here. Call it while a script runs, and keep it for what runs later."""
    if not shared().settings.require_token:
        return shared()
    mine = shared().sign_in(cookies().get(COOKIE, ""))
    if mine is None:
        st.error("Your token was revoked. Load the page again to sign in with another.")
        st.stop()
    return mine


def original(media_id: str) -> bytes:
    """A picture's file as it was written, metadata and all. Raises MediaNotFound."""
    mine = client()
    return _original(mine.owner, media_id, mine)


def thumbnail(media_id: str) -> bytes:
    """A picture at most THUMBNAIL_SIDE pixels a side, as JPEG. Raises MediaNotFound."""
    mine = client()
    return _thumbnail(mine.owner, media_id, mine)


# Kept by owner, too: what one may see is not there for another. A name that begins with _ is no part of the key.


@st.cache_data(max_entries=64, show_spinner=False)
def _original(owner: str, media_id: str, _client: Client) -> bytes:
    return _client.media(media_id)


@st.cache_data(max_entries=512, show_spinner=False)
def _thumbnail(owner: str, media_id: str, _client: Client) -> bytes:
    with Image.open(io.BytesIO(_client.media(media_id))) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()

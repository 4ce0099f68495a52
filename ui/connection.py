"""The page's one client, and pictures kept in memory between reruns."""

import io

import streamlit as st
from PIL import Image

from mezzotint.worker.client import Client

THUMBNAIL_SIDE = 320
"""Pixels; twice the side at which a thumbnail is shown, for dense screens."""


@st.cache_resource(show_spinner=False)
def client() -> Client:
    """The client that all sessions of this server share."""
    return Client()


@st.cache_data(max_entries=64, show_spinner=False)
def original(media_id: str) -> bytes:
    """A picture's file as it was written, metadata and all. Raises MediaNotFound."""
    return client().media(media_id)


@st.cache_data(max_entries=512, show_spinner=False)
def thumbnail(media_id: str) -> bytes:
    """A picture at most THUMBNAIL_SIDE pixels a side, as JPEG. Raises MediaNotFound."""
    with Image.open(io.BytesIO(client().media(media_id))) as picture:
        small = picture.convert("RGB")
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=88)
    return buffer.getvalue()

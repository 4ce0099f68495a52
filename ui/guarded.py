"""The page behind its gate, as `streamlit run guarded.py` starts it for others than this machine (see launch.py)."""

import streamlit as st
from starlette.middleware import Middleware

from mezzotint.ui.gate import Gate

app = st.App("app.py", middleware=[Middleware(Gate)])

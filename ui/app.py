"""The page, as a script: `streamlit run app.py` (see launch.py for the options)."""

from pathlib import Path

import streamlit as st

from mezzotint.ui import navigation

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Draw the frame of the page and run the page in view."""
    st.set_page_config(page_title="Mezzotint", page_icon=str(HERE / "mark.svg"), layout="wide")
    st.logo(str(HERE / "logo.svg"), size="large")
    st.html(HERE / "style.css")
    st.navigation([navigation.create_page(), navigation.history_page()], position="top").run()


if __name__ == "__main__":
    main()

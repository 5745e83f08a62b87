"""The app: a table of pages. `chaffinch app` or `make run` starts it."""

import streamlit as st

from chaffinch.ui import shell

shell.frame()
page = st.navigation(
    [
        st.Page("pages/explore.py", title="Explore", icon=":material/scatter_plot:", default=True),
        st.Page("pages/compare.py", title="Compare", icon=":material/compare_arrows:"),
        st.Page("pages/methods.py", title="Methods", icon=":material/menu_book:"),
    ]
)
if st.session_state.get("_page") != page.url_path:  # widgets of another page are other widgets, whatever their keys
    st.session_state["_page"], st.session_state["_drawn"] = page.url_path, set()
shell.resume()
page.run()

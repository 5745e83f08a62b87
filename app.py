"""The app: a table of pages. `chaffinch app` or `make run` starts it."""

import streamlit as st

from chaffinch.ui import shell

shell.frame()
page = st.navigation([st.Page("pages/explore.py", title="Explore", icon=":material/scatter_plot:", default=True)])
shell.resume()
page.run()

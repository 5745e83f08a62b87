"""The app: a table of pages. `chaffinch app` or `make run` starts it."""

import streamlit as st

from chaffinch.ui import shell

st.set_page_config(page_title="chaffinch", page_icon=":material/grain:", layout="wide")
page = st.navigation([st.Page("pages/explore.py", title="Explore", icon=":material/scatter_plot:", default=True)])
shell.resume()
shell.frame()
page.run()

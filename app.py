"""The app: a table of pages. `chaffinch app` or `make run` starts it."""

import streamlit as st

from chaffinch.ui import shell

shell.frame()
page = st.navigation(
    [
        st.Page("pages/explore.py", title="Explore", icon=":material/scatter_plot:", default=True),
        st.Page("pages/compare.py", title="Compare", icon=":material/compare_arrows:"),
        st.Page("pages/losses.py", title="Losses", icon=":material/function:"),
        st.Page("pages/lesson.py", title="Lesson", icon=":material/school:"),
        st.Page("pages/review.py", title="Review", icon=":material/fact_check:"),
        st.Page("pages/methods.py", title="Methods", icon=":material/menu_book:"),
    ]
)
shell.resume()
page.run()

"""What is each method, and where does it come from?"""

import streamlit as st

from chaffinch.ui import methods, shell

shell.enter("pages/methods.py")

with shell.explained():
    spec = shell.current_spec()
    st.markdown("#### What is each method, and where does it come from?")
    with st.spinner("Reading the methods …"):
        known = methods.catalogue()
    spec = methods.controls(methods.clicked(spec))
    found = methods.matching(spec.search, spec.filters)
    st.caption(f"{len(found)} of {len(known)} methods")
    shell.keep(spec)
    method = methods.opened(spec)
    methods.style(method)
    if method is None:
        methods.cards(found, None)
    else:
        left, right = st.columns([2, 5], gap="medium")
        with left:
            methods.cards(found, method)
        with right:
            methods.opened_card(spec, method)

"""What every page shares: the deep-link guard, the settings, the view in the URL, and how errors are shown."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import streamlit as st

from ..base.errors import InputError
from ..base.files import assets_dir
from ..spec import Spec
from .serve import LOCAL


def enter(page: str) -> None:
    """First call of every page: a page file that was opened without ``app.py`` goes there first.

    Streamlit runs a file of a folder named ``pages`` on its own when it is the first thing asked of a fresh server.
    """
    if st.session_state.get("_page") != page:  # widgets of another page are other widgets, whatever their keys
        st.session_state["_page"], st.session_state["_drawn"] = page, set()
    if not st.session_state.get("_shell"):
        st.session_state["_goto"] = (page, st.query_params.to_dict())
        st.switch_page("app.py")


def resume() -> None:
    """In ``app.py``, before the page runs: go where a guarded page wanted to go."""
    st.session_state["_shell"] = True
    if goto := st.session_state.pop("_goto", None):
        st.switch_page(goto[0], query_params=goto[1])


def frame() -> None:
    """First call of ``app.py``: title, icon and logo (from our own files: no other host is asked), spacing."""
    logo = assets_dir() / "brand" / "logo.svg"
    there = logo.is_file()
    st.set_page_config(page_title="chaffinch", page_icon=str(logo) if there else None, layout="wide")
    st.html(
        "<style>.stMainBlockContainer{padding:2.6rem 2rem 3rem}"
        "@media(max-width:640px){.stMainBlockContainer{padding:4rem .8rem 2rem}}"
        "[data-testid=stSidebarUserContent]{padding-top:0}"
        "[data-testid=stButtonGroup] :is([role=radiogroup],[role=toolbar]){flex-wrap:wrap}"  # no choice out of sight
        ".cf-brand{display:flex;align-items:center;gap:.6rem;margin-top:.7rem}"
        ".cf-brand img{width:2rem;height:2rem;flex:none}"
        ".cf-brand b{font-size:1.2rem;display:block;line-height:1.2}"
        ".cf-brand span{font-size:.8rem;opacity:.7}</style>"
    )
    with st.sidebar:
        words = "<div><b>chaffinch</b><span>the grain from the chaff</span></div>"
        if there:
            picture = base64.b64encode(logo.read_bytes()).decode()
            words = f'<img src="data:image/svg+xml;base64,{picture}" alt="">{words}'
        st.html(f'<div class="cf-brand">{words}</div>')
        if (host := st.get_option("server.address")) not in LOCAL:
            st.caption(
                f":material/lan: Open to other machines: it listens on {plain(host or 'every address')}. Whoever "
                "reaches it sees these data and can decide about them."
            )


def current_spec() -> Spec:
    """First of every run: the view so far; at the start the link's, else what the app was given, else the default."""
    st.session_state["_drawn_before"] = st.session_state.get("_drawn", set())
    st.session_state["_drawn"] = set()
    if "_spec" not in st.session_state:
        given = os.environ.get("CHAFFINCH_SPEC", "")
        query = st.query_params.to_dict()
        st.session_state["_spec"] = Spec.from_query(query) if query or not given else Spec.from_toml(given)
    spec: Spec = st.session_state["_spec"]
    return spec


def keep(spec: Spec) -> Spec:
    """Remember the view in this session and in the URL, so that a copied link reproduces it."""
    st.session_state["_spec"] = spec
    query = spec.to_query()
    if os.environ.get("CHAFFINCH_SPEC"):  # an empty link would mean the view the app was started with
        query = {"dataset": spec.dataset, **query}
    if st.query_params.to_dict() != query:
        st.query_params.from_dict(query)
    return spec


def begin(key: str, value: object, options: Sequence[object] | None = None) -> str:
    """Give a keyed widget its first value and return the key.

    A widget whose default changed with every view would be a new one each time, and clicks on the old one are lost. So
    widgets get no default: their first value comes from the view, and from then on the view from them. One that was
    not on the page in the last run is told its value again, since the browser has forgotten it.
    """
    drawn: set[str] = st.session_state["_drawn"]
    known = key in st.session_state and (options is None or st.session_state[key] in options)
    if not known or key not in st.session_state["_drawn_before"]:
        st.session_state[key] = st.session_state[key] if known else value
    drawn.add(key)
    return key


def plain(text: str) -> str:
    """Text as markdown that means nothing but itself: names and errors may hold anything, pictures' addresses too."""
    return "".join("\\" + c if c in r"\`*_{}[]()#+-.!|~$:<>&" else c for c in text)


def chart(figure: Any, key: str, **options: Any) -> Any:
    """A figure without plotly's tools: nothing here needs them, and they cover the lines."""
    return st.plotly_chart(figure, key=key, config={"displayModeBar": False}, **options)


@contextmanager
def explained() -> Iterator[None]:
    """Show an input error as a message in place of the rest of the page."""
    try:
        yield
    except InputError as error:
        st.error(plain(str(error)), icon=":material/error:")
        st.stop()

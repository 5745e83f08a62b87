"""The server of the app: `chaffinch app` runs this module as a process of its own."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading

from ..base.errors import InputError
from ..base.files import bundle_dir
from ..spec import Spec

LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
"""Addresses that only this machine can reach."""


def main(host: str, port: str, *rest: str) -> None:
    """Serve the app until it is stopped; ``--browser`` opens a window too."""
    from streamlit.web import cli

    os.chdir(bundle_dir())  # the settings in .streamlit/config.toml are read from the current folder
    # the first view is opened while the server starts, so that the first visitor waits for nothing
    threading.Thread(target=_warm, name="warm", daemon=True).start()
    options = ["--server.address", host, "--server.port", port]
    options += ["--server.headless", "false" if "--browser" in rest else "true"]
    if host not in LOCAL:  # whoever opens the app to others decides by what name they come
        sys.stderr.write(f"note: the app listens on {host} and can be opened from other machines\n")
        options += ["--server.allowedHosts", "*"]
    _keep_clicks()
    cli.main(["run", "app.py", *options], standalone_mode=False)


def _keep_clicks() -> None:
    """See to it that a run that was told to stop says no more which page is wanted.

    A click on another page stops the run of a session and begins one of its own. Where the first had just ended in
    ``st.rerun``, as at the end of every job, Streamlit (1.67) begins it again all the same and looks at the order to
    stop only when the first element is drawn. By then it has noted its page as the wanted one, in a place that all runs
    of the session share, and the click is answered with the page that was left.
    """
    from streamlit.runtime import app_session
    from streamlit.runtime.pages_manager import PagesManager
    from streamlit.runtime.scriptrunner import get_script_run_ctx
    from streamlit.runtime.scriptrunner_utils.script_requests import ScriptRequestType

    def stopped() -> bool:
        run = get_script_run_ctx(suppress_warning=True)
        requests = None if run is None else run.script_requests
        return getattr(requests, "_state", None) == ScriptRequestType.STOP

    class Pages(PagesManager):
        def set_script_intent(self, page_script_hash: str, page_name: str) -> None:
            if not stopped():
                super().set_script_intent(page_script_hash, page_name)

        def set_current_page_script_hash(self, page_script_hash: str) -> None:
            if not stopped():
                super().set_current_page_script_hash(page_script_hash)

    app_session.PagesManager = Pages  # type: ignore[attr-defined]


def _warm() -> None:
    from . import cached

    with contextlib.suppress(InputError):  # whoever opens the page sees the message there
        cached.warm(Spec.from_toml(os.environ.get("CHAFFINCH_SPEC", "")))
    # Streamlit collects garbage after every run, also of a progress bar; over the objects of all libraries that takes
    # 0.35 s, in which nobody is answered
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main(*sys.argv[1:])

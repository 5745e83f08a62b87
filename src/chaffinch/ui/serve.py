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
    cli.main(["run", "app.py", *options], standalone_mode=False)


def _warm() -> None:
    from . import cached

    with contextlib.suppress(InputError):  # whoever opens the page sees the message there
        cached.warm(Spec.from_toml(os.environ.get("CHAFFINCH_SPEC", "")))
    # Streamlit collects garbage after every run, those of a progress bar included. The objects of all libraries in it
    # made that 0.35 s each, in which nobody was answered; and a click on another page just when a job had ended, and its
    # page began to run again, was lost: runs of one session share the note of which page is wanted.
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main(*sys.argv[1:])

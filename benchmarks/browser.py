"""A server process and a headless browser, for the browser tests and the benchmarks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_BROWSER = "no chromium, chromium-browser or google-chrome on the PATH"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync",
    "--disable-component-update", "--disable-default-apps", "--no-first-run", "--no-default-browser-check",
]  # fmt: skip


def free_port() -> int:
    """A port of the loopback interface that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def serve(
    command: Sequence[str], port: int, log: Path, *, path: str = "", cwd: Path | None = None, **environment: str
) -> Iterator[str]:
    """Run a Streamlit server; yield its address once it is healthy, and end it afterwards."""
    with log.open("w") as stream:
        process = subprocess.Popen(command, cwd=cwd, env={**os.environ, **environment}, stdout=stream, stderr=stream)
        url = f"http://127.0.0.1:{port}{path}"
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{url}/_stcore/health", timeout=2).close()
                    break
                except OSError:
                    if process.poll() is not None:
                        raise RuntimeError(f"the server ended: {log.read_text(encoding='utf-8')}") from None
                    time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            process.wait(20)


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tool:
        browser = tool.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield browser
        browser.close()

"""What all browser tests share: the app as a process, a headless browser, and pages that tell on themselves."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER, NO_BROWSER, chromium, free_port, serve


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            item.add_marker(pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER))


@pytest.fixture(scope="module")
def start_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """A function that serves the app, with these environment variables, and gives its address; no run may fail."""
    logs = []
    with ExitStack() as stack:

        def start(**environment: str) -> str:
            folder, port = tmp_path_factory.mktemp("app"), free_port()
            logs.append(folder / "log.txt")
            command = [sys.executable, "-m", "chaffinch.cli", "app", "--port", str(port)]
            environment = {"CHAFFINCH_HOME": str(folder / "home"), **environment}
            return stack.enter_context(serve(command, port, logs[-1], cwd=folder, **environment))

        yield start
    for log in logs:
        assert "Traceback" not in log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(start_app: Callable[..., str]) -> str:
    """Address of the app with an empty workspace."""
    return start_app()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as chrome:
        yield chrome


@pytest.fixture
def open_tab(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens an address in a fresh session; none may raise an error or ask another host."""
    contexts, problems = [], []

    def go(url: str, width: int = 1400, height: int = 900, scheme: str = "light", wait: int = 90_000) -> Any:
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        context.set_default_timeout(wait)  # ms; the machine may be busy
        contexts.append(context)
        page = context.new_page()
        own = "/".join(url.split("/")[:3]).partition("//")[2]
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(f"asked {r.url}") if foreign(r.url, own) else None)
        page.goto(url)
        return page

    yield go
    for context in contexts:
        context.close()
    assert problems == []


def foreign(url: str, own: str) -> bool:
    return url.startswith(("http", "ws")) and own not in url

"""The server of the app: what it asks of Streamlit."""

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from browser import BROWSER, NO_BROWSER, chromium, free_port, serve

from chaffinch.base.files import bundle_dir

FROZEN = """
import gc
from chaffinch.ui import serve
serve._warm()
print(gc.get_freeze_count(), len(gc.get_objects()))
"""

# A page whose job ends, as in `chaffinch.ui.jobs`, and what a busy machine does: collecting garbage and the first lines
# of the script take their time. So the run that `st.rerun` began notes its page after the run of the click noted its
# own, and before that run asks which page it is to draw.
APP = """
import gc, os, pathlib, time
import streamlit as st
flag = pathlib.Path(os.environ["FLAG"])
gc.collect = lambda *_: time.sleep(3.0 if flag.exists() else 0)

def first():
    @st.fragment(run_every=0.5)
    def watch():
        if "seen" in st.session_state:
            flag.touch()
            st.rerun()
        st.session_state["seen"] = True
        st.write("at work")
    if flag.exists():
        st.write("done")
    else:
        watch()

def second():
    st.write("the second page")

time.sleep(3.5 if flag.exists() else 0)
st.navigation([st.Page(first, title="First", default=True), st.Page(second, title="Second")]).run()
"""
SERVER = """
import sys
from streamlit.web import cli
from chaffinch.ui import serve
if "keep" in sys.argv:
    serve._keep_clicks()
cli.main(["run", "app.py", "--server.address=127.0.0.1", "--server.headless=true", "--server.port", sys.argv[1]])
"""


def test_the_settings_keep_the_app_at_home(monkeypatch):
    """It listens on this machine only, tells nobody about its use, and takes archives up to a limit that can be set."""
    settings = tomllib.loads((bundle_dir() / ".streamlit" / "config.toml").read_text(encoding="utf-8"))
    assert settings["server"]["address"] == "127.0.0.1"
    assert settings["server"]["allowedHosts"] == ["localhost", "127.0.0.1"]
    assert settings["server"]["maxUploadSize"] == 500
    assert settings["browser"]["gatherUsageStats"] is False
    monkeypatch.chdir(bundle_dir())
    show = [sys.executable, "-m", "streamlit", "config", "show"]
    for environment, limit in (({}, 500), ({"STREAMLIT_SERVER_MAX_UPLOAD_SIZE": "7"}, 7)):
        done = subprocess.run(show, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        assert f"\nmaxUploadSize = {limit}\n" in re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)


@pytest.mark.parametrize(("host", "told"), [("127.0.0.1", False), ("0.0.0.0", True)])
def test_it_says_so_when_it_listens_elsewhere(host, told, workspace):
    code = (
        "from streamlit.web import cli; from chaffinch.ui import serve; serve._warm = lambda: None;"
        f"cli.main = lambda argv, **options: print(*argv); serve.main({host!r}, '1234')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"--server.address {host} --server.port 1234 --server.headless true" in done.stdout
    assert ("can be opened from other machines" in done.stderr) is told
    assert ("--server.allowedHosts *" in done.stdout) is told


def test_what_was_imported_is_not_searched_for_garbage_after_every_run(workspace):
    done = subprocess.run([sys.executable, "-c", FROZEN], capture_output=True, text=True, check=True)
    frozen, left = map(int, done.stdout.split())
    assert frozen > 100_000
    assert left < frozen / 50


@pytest.mark.browser
@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
@pytest.mark.parametrize(("words", "expected"), [(("keep",), "the second page"), ((), "done")])
def test_a_click_just_when_a_job_has_ended(tmp_path: Path, words: tuple[str, ...], expected: str) -> None:
    """It counts; without the server's help Streamlit answers with the page that was left."""
    (tmp_path / "app.py").write_text(APP, encoding="utf-8")
    port, flag, log = free_port(), tmp_path / "flag", tmp_path / "log.txt"
    command = [sys.executable, "-c", SERVER, str(port), *words]
    with serve(command, port, log, cwd=tmp_path, FLAG=str(flag)) as url, chromium() as browser:
        page = browser.new_page()
        page.goto(url)
        page.get_by_text("at work").wait_for()
        place = page.get_by_role("link", name="Second").bounding_box()
        while not flag.exists():
            time.sleep(0.01)
        page.mouse.click(place["x"] + place["width"] / 2, place["y"] + place["height"] / 2)
        page.get_by_text(expected).wait_for()
        page.wait_for_timeout(4000)  # ms; it stays
        assert page.get_by_text(expected).is_visible()
    assert "Traceback" not in log.read_text(encoding="utf-8")

"""The server of the app: what it asks of Streamlit."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from browser import BROWSER, NO_BROWSER, chromium, free_port, serve

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

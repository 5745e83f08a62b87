"""Long work runs as a process of its own through the command line; closing the tab stops nothing, a button does.

What a job does is in the note of its name in the workspace, so every tab (and a server started anew) sees the same:
``{}`` nothing yet, ``{"what", "share", "pid"}`` at work, ``{"done"}``, ``{"stopped"}`` or ``{"error"}``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import streamlit as st

from ..base.files import digest
from ..spec import Spec
from ..study import Study
from .shell import plain

_starting = threading.Lock()


def prepare(study: Study, spec: Spec) -> None:
    """Embed and draw a study in the background; show progress and a Stop button.

    The page runs again as soon as there are features to show, and when the work is done.
    """
    name = f"embed-{digest(study.key, spec.map, spec.seed)}"
    with _starting:  # two tabs that open the same view share one process
        state = _state(study, name)
        if not state or "done" in state:  # done, and yet something is missing: its results were cleared away
            _start(study, spec, name)
    if "stopped" in state or "error" in state:
        _ended(study, name, state)
    else:
        _watch(study, spec, name, study.has_features())


def _start(study: Study, spec: Spec, name: str) -> None:
    command = [
        sys.executable, "-P", "-m", "chaffinch.cli", "embed", spec.dataset, "--encoder", study.encoder,
        "--map", spec.map, "--seed", str(spec.seed), "--workspace", str(study.workspace.root),
        "--job", name, "--quiet",
    ]  # fmt: skip
    with (study.workspace.folder("notes") / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    study.workspace.note(name, {"what": "starting", "share": 0.0, "pid": process.pid})
    threading.Thread(target=_follow, args=(study, name, process), name=name, daemon=True).start()


def _follow(study: Study, name: str, process: subprocess.Popen[bytes]) -> None:
    """Wait for the process to end; if it left no word on how, leave one."""
    process.wait()
    if "pid" in (study.workspace.noted(name) or {}):
        log = study.workspace.root / "notes" / f"{name}.log"
        study.workspace.note(name, {"error": f"the work ended before it was done; the reason is in {log}"})


def _state(study: Study, name: str) -> dict[str, Any]:
    """The note of a job; empty if there is none, or if it speaks of a process that is not there any more."""
    state: dict[str, Any] = study.workspace.noted(name) or {}
    return state if "pid" not in state or _alive(int(state["pid"])) else {}


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _ended(study: Study, name: str, state: dict[str, Any]) -> None:
    if "error" in state:
        st.error(plain(state["error"]), icon=":material/error:")
    else:
        st.info("Stopped. Nothing that was finished is lost.", icon=":material/pause:")
    if st.button("Try again" if "error" in state else "Go on", key="job-resume"):
        study.workspace.note(name, {})
        st.rerun()


@st.fragment(run_every=0.5)
def _watch(study: Study, spec: Spec, name: str, had_features: bool) -> None:
    state = study.workspace.noted(name) or {}
    if "done" in state and not (study.has_features() and study.has_map(spec.map)):
        state = {"error": "the work is done, but its results are not where this server looks; start it again"}
        study.workspace.note(name, state)
    if "pid" not in state or (not had_features and study.has_features()):
        st.rerun()
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    left.progress(float(state["share"]), text=plain(f"{study.dataset.name}: {state['what']} …"))
    if right.button("Stop", key="job-stop", width="stretch"):
        study.workspace.note(name, {"stopped": True})
        _stop(int(state["pid"]))
        study.workspace.note(name, {"stopped": True})  # the last word, whatever the process said meanwhile
        st.rerun()


def _stop(pid: int) -> None:
    """Ask the process to end, and wait for it for up to ten seconds."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 10
    while _alive(pid) and time.monotonic() < until:
        time.sleep(0.1)

"""Long work runs as a process of its own through the command line; closing the tab stops nothing, a button does.

What a job does is in the note of its name in the workspace, so every tab (and a server started anew) sees the same:
``{}`` nothing yet, ``{"what", "share", "pid"}`` at work, ``{"done"}``, ``{"stopped"}`` or ``{"error"}``. The command is
in a note beside it, so that any tab can go on with what another one began.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import streamlit as st

from ..base.files import digest
from ..spec import Spec
from ..study import Study
from ..workspace import LIVE, Workspace, alive
from .shell import plain

_starting = threading.Lock()


@dataclass(frozen=True)
class Job:
    """Work for a process of its own.

    Attributes:
        workspace: where its note is.
        name: of the note and of the log.
        command: arguments of ``chaffinch``; those that every job has are added.
        title: what it works on.
        key: how the keys of its buttons begin.
    """

    workspace: Workspace
    name: str
    command: tuple[str, ...]
    title: str
    key: str = "job"

    @property
    def state(self) -> dict[str, Any]:
        """Its note; empty if there is none, or if it speaks of a process that is not there any more."""
        state: dict[str, Any] = self.workspace.noted(self.name) or {}
        return state if "pid" not in state or alive(int(state["pid"])) else {k: state[k] for k in LIVE if k in state}

    @property
    def at_work(self) -> bool:
        """Is its process running?"""
        return "pid" in self.state

    @property
    def begun(self) -> bool:
        """Was it this very command that was started last under this name?"""
        return bool(self.workspace.noted(f"command-{self.name}") == list(self.command))

    def start(self, *, anew: bool = True) -> None:
        """Start the process, unless one of this name is at work.

        Args:
            anew: forget what an earlier one left in the note.
        """
        with _starting:  # two tabs that want the same share one process
            if not self.at_work:
                _start(self, {} if anew else {k: v for k, v in self.state.items() if k in LIVE})

    def stop(self) -> None:
        """End the process; what it has finished stays."""
        state = self.state
        word = {"stopped": True} | {k: state[k] for k in LIVE if k in state}
        self.workspace.note(self.name, word)
        if "pid" in state:
            _stop(int(state["pid"]))
            self.workspace.note(self.name, word)  # the last word, whatever the process said meanwhile


def prepare(study: Study, spec: Spec, key: str = "job") -> None:
    """Embed and draw a study in the background; show progress and a Stop button.

    The page runs again as soon as there are features to show, and when the work is done.
    """
    command = ("embed", spec.dataset, "--encoder", study.encoder, "--map", spec.map, "--seed", str(spec.seed))
    job = Job(study.workspace, f"embed-{digest(study.key, spec.map, spec.seed)}", command, study.dataset.name, key)
    had = study.has_features()
    ensure(
        job,
        lambda: study.has_features() and study.has_map(spec.map),
        lambda: not had and study.has_features(),
    )


def ensure(job: Job, there: Callable[[], bool], enough: Callable[[], bool] = lambda: False) -> None:
    """Start a job whose results are missing, and show it; one that was stopped or failed waits for a click.

    Args:
        job: the work.
        there: are its results there?
        enough: is there enough of them to draw the page again?
    """
    state = job.state
    if "stopped" in state or "error" in state:
        ended(job)
        return
    if not job.at_work:  # also where it is done, and yet something is missing: its results were cleared away
        job.start()
    _watch(job, there, enough)


def follow(job: Job) -> None:
    """Show a job that is at work; the page runs again when it ends."""
    _watch(job, lambda: True, lambda: False)


def ended(job: Job) -> None:
    """Say how a job ended that was stopped or failed; a button goes on."""
    state = job.state
    if "error" in state:
        st.error(plain(state["error"]), icon=":material/error:")
    else:
        st.info("Stopped. Nothing that was finished is lost.", icon=":material/pause:")
    if st.button("Try again" if "error" in state else "Go on", key=f"{job.key}-resume"):
        job.start(anew=False)
        st.rerun()


def bar(job: Job, state: dict[str, Any], more: str = "") -> None:
    """Progress of a job at work, with more words on it, and a Stop button."""
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    left.progress(float(state["share"]), text=plain(f"{job.title}: {state['what']}{more} …"))
    if right.button("Stop", key=f"{job.key}-stop", width="stretch"):
        job.stop()
        st.rerun()


@st.fragment(run_every=0.5)
def _watch(job: Job, there: Callable[[], bool], enough: Callable[[], bool]) -> None:
    state = job.workspace.noted(job.name) or {}
    if "done" in state and job.begun and not there():
        state = {"error": "the work is done, but its results are not where this server looks; start it again"}
        job.workspace.note(job.name, state)
    if "pid" not in state or enough():
        st.rerun()
    bar(job, state)


def _start(job: Job, kept: dict[str, Any]) -> None:
    root = job.workspace.root
    command = [sys.executable, "-P", "-m", "chaffinch.cli", *job.command]
    command += ["--workspace", str(root), "--job", job.name, "--quiet"]
    with (job.workspace.folder("notes") / f"{job.name}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    job.workspace.note(f"command-{job.name}", list(job.command))
    job.workspace.note(job.name, {"what": "starting", "share": 0.0, "pid": process.pid} | kept)
    threading.Thread(target=_follow, args=(job, process), name=job.name, daemon=True).start()


def _follow(job: Job, process: subprocess.Popen[bytes]) -> None:
    """Wait for the process to end; if it left no word on how, leave one."""
    process.wait()
    state = job.workspace.noted(job.name) or {}
    if state.get("pid") == process.pid:
        log = job.workspace.root / "notes" / f"{job.name}.log"
        error = {"error": f"the work ended before it was done; the reason is in {log}"}
        job.workspace.note(job.name, error | {k: state[k] for k in LIVE if k in state})


def _stop(pid: int) -> None:
    """Ask the process to end, and wait for it for up to ten seconds."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + 10
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.1)

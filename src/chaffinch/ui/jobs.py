"""Long work runs as a process of its own through the command line; closing the tab stops nothing, a button does."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import streamlit as st

from ..base.files import digest
from ..spec import Spec
from ..study import Study

_running: dict[str, subprocess.Popen[bytes]] = {}


def prepare(study: Study, spec: Spec) -> None:
    """Embed and draw a study in the background; show progress and a Stop button.

    The page runs again as soon as there are features to show, and when the work is done.
    """
    name = f"embed-{digest(study.key, spec.map, spec.seed)}"
    process = _running.get(name)
    if process is None:
        if st.session_state.get("_stopped") == name:
            st.info("Stopped. Nothing that was finished is lost.", icon=":material/pause:")
            if st.button("Go on", key="job-resume"):
                st.session_state.pop("_stopped")
                st.rerun()
            return
        study.workspace.note(name, {"what": "starting", "share": 0.0})
        log = (study.workspace.folder("notes") / f"{name}.log").open("wb")
        command = [
            sys.executable, "-m", "chaffinch.cli", "embed", spec.dataset, "--encoder", study.encoder,
            "--map", spec.map, "--seed", str(spec.seed), "--workspace", str(study.workspace.root),
            "--job", name, "--quiet",
        ]  # fmt: skip
        with log:
            _running[name] = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    _watch(study, name, study.has_features())


@st.fragment(run_every=0.5)
def _watch(study: Study, name: str, had_features: bool) -> None:
    state: dict[str, Any] = study.workspace.noted(name) or {}
    process = _running.get(name)
    if state.get("done"):
        _running.pop(name, None)
        st.rerun()
    if not had_features and study.has_features():
        st.rerun()
    if process is None or process.poll() is not None:
        _running.pop(name, None)
        log = study.workspace.root / "notes" / f"{name}.log"
        st.error(state.get("error") or f"The work ended before it was done; the reason is in {log}")
        st.session_state["_stopped"] = name
        return
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    left.progress(float(state.get("share", 0.0)), text=f"{study.dataset.name}: {state.get('what', '')} …")
    if right.button("Stop", key="job-stop", width="stretch"):
        process.terminate()
        _running.pop(name, None)
        st.session_state["_stopped"] = name
        st.rerun()

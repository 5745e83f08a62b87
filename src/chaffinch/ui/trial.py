"""A small version of the lesson's experiment, run from the app: choose, watch, stop, go on, and see what came out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from .. import lesson as core
from ..base.errors import InputError
from ..experiment import PLANS, collect
from ..figures import lesson as figures
from ..workspace import Workspace
from . import jobs
from .lesson import against, means
from .shell import begin, chart, plain

DEFAULT = ("mixup", "lsa", "pls-lsa", "oracle")


def section() -> None:
    """Start a small experiment, or watch, stop and resume the one that this workspace has; then its results."""
    st.subheader("Run it yourself", anchor="run-it-yourself", divider="gray")
    workspace = Workspace()
    command = workspace.noted(f"command-{core.NAME}")
    trial = core.Trial.of(command) if command else None
    job = jobs.Job(workspace, core.NAME, tuple(command or ()), "Experiment", "trial")
    if trial is not None and job.at_work:
        _live(job, trial)
        return
    _notice(job)
    state = workspace.noted(core.NAME) or {}
    if trial is None or not state:
        st.caption(
            "The same experiment in small, on this machine: one noise level, one seed, few pictures. It runs as a "
            "process of its own; closing the page stops nothing."
        )
        _form(workspace)
    elif "done" in state:
        _done(workspace, trial)
        _form(workspace)
    else:
        _paused(job, trial, state)


def folder(workspace: Workspace) -> Path:
    """Where it keeps what it has trained."""
    return workspace.root / "experiments" / "live"


@st.fragment(run_every=2.0)
def _notice(job: jobs.Job) -> None:
    """Draw the page again when another page that is open has started one."""
    if job.at_work:
        st.rerun()


@st.fragment(run_every=2.0)
def _live(job: jobs.Job, trial: core.Trial) -> None:
    """An experiment at work."""
    state = job.workspace.noted(job.name) or {}
    if not job.at_work:
        st.rerun()
    left = core.progress(trial, folder(job.workspace))[1]
    words = f", about {int(left) // 60}:{int(left) % 60:02d} left" if left and left >= 1 else ""
    jobs.bar(job, state, words)
    _curves(job.workspace, trial)


def _curves(workspace: Workspace, trial: core.Trial) -> None:
    curves, _ = core.progress(trial, folder(workspace))
    if not curves:
        st.caption("First the encoder that all start from is trained; the curves appear after the first epoch.")
        return
    chart(figures.accuracies(curves, core.NAMES, trial.epochs), "trial-curves")
    st.caption(
        f"Accuracy on clean test pictures; {trial.noise:.0%} noise, {trial.samples:,} pictures, one seed. The trainers "
        "are trained one after the other."
    )


def _paused(job: jobs.Job, trial: core.Trial, state: dict[str, Any]) -> None:
    """One that was stopped, failed, or lost its process."""
    if "error" in state:
        st.error(plain(state["error"]), icon=":material/error:")
    else:
        ended = "was stopped" if "stopped" in state else "was interrupted"
        st.info(f"The experiment {ended}. It goes on from its last whole epoch.", icon=":material/pause:")
    with st.container(horizontal=True):
        words = "Try again" if "error" in state else "Go on"
        st.button(words, key="trial-resume", type="primary", icon=":material/play_arrow:",
                  on_click=lambda: job.start(anew=False))  # fmt: skip
        st.button("Close", key="trial-close", icon=":material/close:",
                  on_click=lambda: job.workspace.note(job.name, {}),
                  help="Back to the choices; what is trained stays and is used again.")  # fmt: skip
    _curves(job.workspace, trial)


def _done(workspace: Workspace, trial: core.Trial) -> None:
    """What came out of one that has ended well."""
    found = collect(trial.plan, folder(workspace))
    if not found["rows"]:
        return
    st.success(
        f"Done: {trial.noise:.0%} noise, {trial.samples:,} pictures, {trial.epochs} epochs. This is one seed of a "
        "small set: small differences may be chance.",
        icon=":material/check:",
    )
    left, right = st.columns(2, gap="large")
    with left:
        _curves(workspace, trial)
    with right:
        _against(found, trial)
    means(found, trial.trainers, trial.noise, [*core.READINGS.values(), *core.MEASURES])


@st.fragment
def _against(found: dict[str, Any], trial: core.Trial) -> None:
    against(found, trial.noise, core.READINGS["best"], "trial")


@st.fragment
def _form(workspace: Workspace) -> None:
    """Choose what to run."""
    plan = PLANS[core.NAME]
    with st.container(horizontal=True, vertical_alignment="bottom"):
        noise = st.segmented_control(
            "Noise", plan.noises, key=begin("trial-noise", 0.6, plan.noises), format_func="{:.0%}".format, required=True
        )
        samples = _whole("Pictures", "trial-samples", 1500, 200, 12_000, "In the noisy set.")
        epochs = _whole("Epochs", "trial-epochs", 8, 2, 100, "Of each training.")
        starts = _whole("Epochs of the start", "trial-starts", 8, 1, 200, "Of the encoder that all start from.")
    trainers = st.multiselect(
        "Trainers", plan.trainers, key=begin("trial-trainers", list(DEFAULT)),
        format_func=lambda slug: core.NAMES.get(slug, slug), help="They are trained one after the other.",
    )  # fmt: skip
    if st.button("Start", key="trial-start", type="primary", icon=":material/play_arrow:", disabled=not trainers):
        chosen = [slug for slug in plan.trainers if slug in trainers]
        trial = core.Trial(float(noise or 0.6), tuple(chosen), samples, epochs, starts)
        try:
            command = trial.command(folder(workspace))
            trial.plan.cells()
        except InputError as error:
            st.error(plain(str(error)), icon=":material/error:")
        else:
            jobs.Job(workspace, core.NAME, command, "Experiment", "trial").start()
            st.rerun()


def _whole(label: str, key: str, start: int, least: int, most: int, help: str) -> int:
    return int(st.number_input(label, least, most, key=begin(key, start), help=help, width=150))

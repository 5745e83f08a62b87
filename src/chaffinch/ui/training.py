"""Train an encoder from the app: choose a loss, and watch its curve and the map of every epoch."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import streamlit as st

from .. import registry, training
from ..base.errors import InputError
from ..card import KINDS
from ..data import CLEAN
from ..data.fashion_web import Draw
from ..figures import losses as figures
from ..figures.palette import KIND_COLOURS, SIDES, class_colours
from ..spec import Spec
from ..study import SMALL_SIDE, Study, encoder_cards
from ..training import JOB, Plan
from ..workspace import Workspace
from . import cached, jobs, methods
from .pickers import BUNDLED
from .scatter import Colours, scatter_map
from .shell import begin, chart, keep, plain

NETWORKS = {"preact-resnet-8-16-32": "small (quick)", "preact-resnet-32-64-128": "standard"}


def section(spec: Spec, study: Study) -> None:
    """Start a training, or watch, stop and resume the one that this workspace has."""
    st.markdown(
        "##### Train one here",
        help="It runs as a process of its own: closing the page stops nothing, and every page that is open on this "
        "workspace shows the same.",
    )
    plan = _begun(study.workspace)
    job = _job(study.workspace, plan)
    state = study.workspace.noted(JOB) or {}
    if plan is not None and job.at_work:
        _live(job, plan)
        return
    _notice(job)
    if plan is None or not state:
        _form(spec, study)
    elif "done" in state:
        _done(spec, study, job, plan, state)
        _form(spec, study)
    else:
        _paused(job, plan, state)


def _begun(workspace: Workspace) -> Plan | None:
    """The training that was started last."""
    command = workspace.noted(f"command-{JOB}")
    return Plan.of(command) if command else None


def _job(workspace: Workspace, plan: Plan | None) -> jobs.Job:
    command = plan.command() if plan else ()
    return jobs.Job(workspace, JOB, command, plan.dataset if plan else "", "train")


@st.fragment(run_every=2.0)
def _notice(job: jobs.Job) -> None:
    """Draw the page again when another page that is open has started a training."""
    if job.at_work:
        st.rerun()


@st.fragment(run_every=1.0)
def _live(job: jobs.Job, plan: Plan) -> None:
    """A training at work."""
    state = job.workspace.noted(JOB) or {}
    if not job.at_work:
        st.rerun()
    jobs.bar(job, state, _pace(state))
    _course(job, plan, state)


def _pace(state: dict[str, Any]) -> str:
    """Loss, speed and time left, as far as they are known."""
    words = [f"loss {state['loss']:.3f}"] if "loss" in state else []
    words += [f"{state['speed']:,.0f} pictures/s"] if "speed" in state else []
    if "left" in state:
        seconds = int(state["left"])
        words.append(f"{seconds // 60}:{seconds % 60:02d} left")
    return "".join(f", {word}" for word in words)


def _course(job: jobs.Job, plan: Plan, state: dict[str, Any]) -> None:
    """What a training has shown so far: its curve, and the map of its last whole epoch."""
    history = state.get("history")
    if not history:
        st.caption("Curve and map appear after the first epoch.")
        return
    left, right = st.columns(2, gap="medium")
    with left:
        chart(figures.history(history, SIDES[1], epochs=plan.epochs), "train-history")
        if parts := state.get("parts"):
            st.caption(plain(" · ".join(f"{name} {value:.3f}" for name, value in parts.items())))
    live = job.workspace.find("live", JOB)
    if live is None:
        return
    try:
        data = cached.dataset(plan.dataset)
    except InputError as error:
        right.caption(plain(str(error)))
        return
    with right:
        colours = ["given", *(["kind"] if data.truth is not None else [])]
        by = st.segmented_control(
            "Colour by",
            colours,
            key=begin("train-colour", colours[-1], colours),
            format_func={"given": "given label", "kind": "true kind"}.__getitem__,
            label_visibility="collapsed",
        )
        xy = np.full((len(data.observed), 2), np.nan, np.float32)
        xy[live["rows"]] = live["xy"]
        look = Colours(data.observed.labels, data.observed.classes, class_colours(len(data.observed.classes)))
        if by == "kind" and data.truth is not None:
            look = Colours(data.truth.kind, KINDS, tuple(KIND_COLOURS[kind] for kind in KINDS))
        scatter_map(xy, look, shown=live["rows"], key="train-map", height=340)
        st.caption(
            f"{len(live['rows']):,} pictures after epoch {len(history)}: the two directions in which their features "
            "differ most (PCA), turned to match the epoch before."
        )


def _done(spec: Spec, study: Study, job: jobs.Job, plan: Plan, state: dict[str, Any]) -> None:
    """A training that has ended well."""
    name = str(state.get("encoder", plan.name))
    if name not in encoder_cards(job.workspace):
        return
    st.success(f"{plain(name)} is trained, and among the encoders above.", icon=":material/check:")

    def show() -> None:
        st.session_state["beside"] = name
        keep(replace(spec, beside=name, beside_outline=""))

    with st.container(horizontal=True):
        if name not in (study.encoder, spec.beside):
            st.button(
                f"Put it beside {study.encoder}", key="train-show", type="primary", on_click=show,
                icon=":material/compare:",
            )  # fmt: skip
        st.button("Close", key="train-close", on_click=lambda: job.workspace.note(JOB, {}), icon=":material/close:")


def _paused(job: jobs.Job, plan: Plan, state: dict[str, Any]) -> None:
    """A training that was stopped, failed, or lost its process."""
    if "error" in state:
        st.error(plain(state["error"]), icon=":material/error:")
    else:
        ended = "was stopped" if "stopped" in state else "was interrupted"
        st.info(
            f"The training of {plain(plan.name)} {ended}. It goes on from its last whole epoch.",
            icon=":material/pause:",
        )

    def discard() -> None:
        training.discard(job.workspace, plan.name)
        job.workspace.note(JOB, {})

    with st.container(horizontal=True):
        words = "Try again" if "error" in state else "Resume"
        st.button(words, key="train-resume", type="primary", on_click=lambda: job.start(anew=False),
                  icon=":material/play_arrow:")  # fmt: skip
        st.button("Discard", key="train-discard", on_click=discard, icon=":material/delete:",
                  help="Throws away what it has learnt so far.")  # fmt: skip
    _course(job, plan, state)


@st.fragment
def _form(spec: Spec, study: Study) -> None:
    """Choose a loss and a recipe."""
    losses = training.losses(study.dataset)
    can = [slug for slug, reason in losses.items() if reason is None]
    cannot = {slug: reason for slug, reason in losses.items() if reason is not None}
    cards = {slug: cls.card for slug, cls in registry.methods("loss").items()}
    if not can:
        st.info(plain(next(iter(cannot.values()))), icon=":material/block:")
        return
    n = len(study)
    with st.container(horizontal=True, vertical_alignment="bottom"):
        used = {card.get("loss") for _, card in encoder_cards(study.workspace).values()}
        first = next((slug for slug in can if slug not in used), can[0])
        loss = st.selectbox(
            "Loss", can, key=begin("train-loss", first, can), format_func=lambda slug: cards[slug].name, width=280,
            help="Those that can be trained on this dataset; the others are below, with the reason.",
        )  # fmt: skip
        networks = training.architectures()
        network = st.selectbox(
            "Network", networks, key=begin("train-network", networks[0], networks), width=170,
            format_func=lambda name: NETWORKS.get(name, name),
            help="; ".join(f"{NETWORKS.get(name, name)}: {name}" for name in networks),
        )  # fmt: skip
        epochs = _whole("Epochs", "train-epochs", 5, 1, 10_000, "How often it sees every picture.")
        batch = _whole("Batch", "train-batch", min(256, n), 2, n, "Pictures in one step; they are what a contrastive "
                       "loss compares with.")  # fmt: skip
        rate = st.number_input(
            "Learning rate", 1e-6, 1.0, key=begin("train-rate", Plan.learning_rate), step=1e-3, format="%g", width=130,
            help="The largest of the schedule. Lower it if the loss becomes infinite.",
        )  # fmt: skip
        seed = _whole("Seed", "train-seed", 0, 0, 2**32 - 1, "Of the first weights, the order and the views.")
        data = _noise(spec.dataset)
        side, images = Plan.side, study.observed.images
        if images is not None and (largest := max(images.shape[1:3])) > SMALL_SIDE:
            side = _whole("Size", "train-side", min(side, largest), 8, largest, "Pixels a side at which it sees the "
                          "pictures: half as many are four times as fast.")  # fmt: skip
        flip = st.checkbox(
            "Mirror", key=begin("train-flip", True), help="May pictures be mirrored? Not digits or text."
        )
    st.caption(plain(cards[loss].summary))
    if data == spec.dataset:
        noise = "" if study.truth is None else f" with {1 - (study.truth.kind == CLEAN).mean():.0%} noise"
        st.caption(f"It learns from {plain(study.dataset.name)}{noise}; the sidebar chooses other data.")
    else:
        st.caption(f"It learns from {plain(data)}; the rest of this page stays with {plain(study.dataset.name)}.")
    given = _parameters(loss)
    if st.button("Start training", key="train-start", type="primary", icon=":material/play_arrow:"):
        try:
            name = training.free_name(study.workspace, loss)
            plan = Plan(data, name, loss, training.options(loss, given), epochs, batch, seed, network, flip, side, rate)
        except InputError as error:
            st.error(plain(str(error)), icon=":material/error:")
        else:
            _job(study.workspace, plan).start()
            st.rerun()
    if cannot:
        with st.expander("Losses that cannot be trained on this dataset"):
            st.markdown(
                "\n".join(f"- :gray[**{plain(cards[slug].name)}**: {plain(reason)}]" for slug, reason in cannot.items())
            )


def _whole(label: str, key: str, start: int, least: int, most: int, help: str) -> int:
    return int(st.number_input(label, least, most, key=begin(key, start), help=help, width=120))


def _noise(name: str) -> str:
    """The data to learn from: those of the page, or of bundled ones the draw with the noise that is chosen here."""
    bundled, _, options = name.partition(":")
    if bundled != BUNDLED:
        return name
    draw = Draw.parse(options)
    now = round(draw.noise * 100)
    share = _whole("Noise (%)", f"train-noise-{name}", now, 0, 100, "Share of the pictures it learns from that have a "
                   "wrong label or are foreign. The page itself keeps its draw.")  # fmt: skip
    return name if share == now else str(replace(draw, noise=share / 100))


def _parameters(loss: str) -> dict[str, Any]:
    """A widget for each parameter of a loss, with what its code says of it."""
    words = {name: methods.inline(text) for name, _, text in methods.parameters(registry.get("loss", loss))}
    given: dict[str, Any] = {}
    with st.container(horizontal=True, vertical_alignment="bottom"):
        for name, value in training.options(loss).items():
            key, help = begin(f"train-{loss}-{name}", value), words.get(name) or None
            label = name.replace("_", " ")
            if isinstance(value, bool):
                given[name] = st.checkbox(label, key=key, help=help)
            elif isinstance(value, int):
                given[name] = int(st.number_input(label, key=key, help=help, step=1, width=150))
            elif isinstance(value, float):
                step = 10 ** math.floor(math.log10(abs(value) or 1.0)) / 10 or 0.01
                given[name] = st.number_input(label, key=key, help=help, step=step, format="%g", width=150)
            else:
                given[name] = st.text_input(label, key=key, help=help, width=150)
    return given

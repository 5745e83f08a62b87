"""The pieces of the Lesson page: six steps from a noisy set to alternating detectors, and all numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from .. import exports
from .. import lesson as core
from ..card import KINDS
from ..data import CLEAN, OOD, NoisyDataset
from ..experiment import COLUMNS
from ..figures import lesson as figures
from ..figures.comparison import KIND_WORDS
from ..figures.methods import score_outlines
from ..figures.palette import KIND_COLOURS
from ..spec import Spec
from ..thumbnails import Sheets
from ..workspace import Workspace
from . import cached
from .gallery import Tile, gallery
from .scatter import Colours, scatter_map
from .shell import begin, chart, keep, plain

SHOWN, WORST = 24, 15
OPENING = (
    "Pictures from the web come with noise: wrong labels, and foreign pictures that belong to no class. "
    "[Albert and others (ECCV 2024)](https://arxiv.org/abs/2407.05528) report that a straight border finds the foreign "
    "ones almost perfectly, that training on what it keeps gains nothing all the same, and that taking turns with "
    "another detector does. Here is their argument in six steps, tried again on small pictures of clothes: all figures "
    "and numbers below come from our own experiment, whether they agree or not."
)
NOTHING = (
    "The experiment that this page tells of has not been run here yet. `chaffinch experiment lesson --ship "
    "assets/experiments` runs it (hours on a laptop; it can be stopped and goes on where it stood). A small version "
    "can be run below."
)
STEPS = (
    "The noisy set",
    "Can one line find the foreign pictures?",
    "A line without knowing the truth",
    "Does a better detection train a better classifier?",
    "What the plane throws away",
    "Taking turns, epoch by epoch",
)
DETECTORS = {"linear": "The plane", "rule": "Small loss"}
PLACES = {"map": "On the map", "plane": "On the plane of step 2"}


@dataclass(frozen=True)
class View:
    """What the page shows.

    Attributes:
        spec: the view.
        found: results of the experiment.
        noise: the level that is told of.
        path: file of its story, or None.
        data: the draw of this level.
        told: noise levels that have a story.
    """

    spec: Spec
    found: dict[str, Any]
    noise: float
    path: Path | None
    data: NoisyDataset
    told: tuple[float, ...]

    @property
    def accuracy(self) -> str:
        """Key of the accuracy that counts."""
        return core.READINGS[self.spec.accuracy]

    @property
    def story(self) -> core.Story | None:
        """The story of this level, if there is one."""
        return cached.story(self.path) if self.path else None

    @cached_property
    def kind(self) -> NDArray[np.int8]:
        """(N,) true kinds."""
        assert self.data.truth is not None  # the lesson's draws are made with it
        return self.data.truth.kind

    @property
    def sheets(self) -> Sheets | None:
        """Thumbnails of the draw."""
        return cached.thumbnails(self.data, Workspace())

    def given(self, i: int) -> str:
        """The label that a sample came with."""
        return str(self.data.observed.classes[self.data.observed.labels[i]])

    def true(self, i: int) -> str:
        """What a sample is in truth."""
        assert self.data.truth is not None
        return "foreign" if self.kind[i] == OOD else self.data.observed.classes[self.data.truth.labels[i]]

    @cached_property
    def hover(self) -> list[str]:
        """Texts of the cards under the pointer."""
        return [f"{self.given(i)}\nin truth: {self.true(i)}" for i in range(len(self.data))]


def contents() -> None:
    """Links to the steps, beside the page."""
    lines = [f"{i}. [{title}](#step-{i})" for i, title in enumerate(STEPS, start=1)]
    rest = "\n\n[All numbers](#all-numbers)\n\n[Run it yourself](#run-it-yourself)"
    st.sidebar.markdown("\n".join(lines) + rest)


def choose(spec: Spec, found: dict[str, Any]) -> tuple[Spec, View]:
    """Choose the noise level and which accuracy counts; returns the view."""
    stories = core.stories()
    options = core.levels(found, stories)
    wanted = (spec.noise, *([core.FIRST] if core.FIRST in stories else []), *reversed(stories))
    first = next((x for x in wanted if x in options), options[0])
    reading = spec.accuracy if spec.accuracy in core.READINGS else "best"
    with st.container(horizontal=True, gap="large"):
        noise = st.segmented_control(
            "Noise in the set", options, key=begin("lesson-noise", first, options), format_func=lambda x: f"{x:.0%}",
            required=True, help="Share of pictures that are foreign or wrongly labelled; 5 in 8 of them are foreign.",
        )  # fmt: skip
        accuracy = st.segmented_control(
            "Accuracy of", list(core.READINGS), key=begin("lesson-accuracy", reading, list(core.READINGS)),
            format_func="the {} epoch".format, required=True,
            help="On clean test pictures. The paper reports the best epoch, which is chosen by the test itself; the "
            "last one is what you would get.",
        )  # fmt: skip
    spec = replace(spec, noise=float(noise or first), accuracy=accuracy or reading)
    path = stories.get(spec.noise)
    name = cached.story(path).dataset if path else core.plan_of(found).dataset(spec.noise)
    return spec, View(spec, found, spec.noise, path, cached.dataset(name), tuple(stories))


def _step(number: int, words: str) -> tuple[Any, Any]:
    """Heading of a step, a column for its text, and one for its figure."""
    st.subheader(f"{number}. {STEPS[number - 1]}", anchor=f"step-{number}", divider="gray")
    text, figure = st.columns([2, 3], gap="large")
    text.markdown(words)
    return text, figure


def _untold(view: View, column: Any) -> None:
    """Say that the figure of a step is missing."""
    there = " and ".join(f"{level:.0%}" for level in view.told)
    column.info(
        f"The figure for {view.noise:.0%} noise is not there yet: its trainings are not all done."
        + (f" There is one for {there}." if there else ""),
        icon=":material/hourglass:",
    )


@st.fragment
def the_set(view: View) -> None:
    """Step 1: pictures as they came, and what they are in truth."""
    text, figure = _step(
        1,
        "Each picture came with a label. Some labels are **wrong**: the picture shows another class. Some pictures are "
        "**foreign**: they belong to none of the classes, so no label could be right. Try to find them: a click on a "
        "picture tells what it is.",
    )
    draw = st.session_state.setdefault("lesson-draw", 0)
    order = np.random.default_rng(draw).permutation(len(view.data))[:SHOWN].tolist()
    seen: set[tuple[str, int]] = st.session_state.setdefault("lesson-seen", set())
    clicked = (st.session_state.get("lesson-set") or {}).get("picked")
    if clicked is not None:
        seen ^= {(view.data.name, clicked)}
    with text:
        truth = st.toggle("Show the truth", key=begin("lesson-truth", False))

        def other() -> None:
            st.session_state["lesson-draw"] += 1

        st.button("Other pictures", key="lesson-other", on_click=other, icon=":material/casino:")
        _composition(view)
    tiles = []
    for i in order:
        told = truth or (view.data.name, i) in seen
        kind = KINDS[view.kind[i]]
        words = {"clean": "right", "mislabelled": f"is {view.true(i)}", "ood": "foreign"}[kind] if told else ""
        tiles.append(Tile(i, view.given(i), words, kind if told else ""))
    with figure:
        gallery(tiles, view.sheets, key="lesson-set", tile=72)


def _composition(view: View) -> None:
    """Of what the set consists: a bar, and counts."""
    counts, total = np.bincount(view.kind, minlength=len(KINDS)).tolist(), len(view.kind)
    parts = list(zip(KINDS, counts, strict=True))
    bar = "".join(f'<i style="width:{n / total:.2%};background:{KIND_COLOURS[kind]}"></i>' for kind, n in parts)
    cells = "".join(
        f'<span><u style="background:{KIND_COLOURS[kind]}"></u><b>{n:,}</b> {KIND_WORDS[kind]} ({n / total:.1%})</span>'
        for kind, n in parts
    )
    st.html(f'{_BAR_STYLE}<div class="cf-mix"><div>{bar}</div>{cells}</div>')
    clean = len(view.data.test) - len(view.data.trusted) if view.data.test else 0
    test = f"; accuracy is measured on {clean:,} clean ones" if clean else ""
    st.caption(f"{total:,} pictures of {len(view.data.observed.classes)} classes{test}.")


_BAR_STYLE = """<style>
.cf-mix{font-size:.9rem;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem}.cf-mix div{display:flex;height:.9rem;
border-radius:3px;overflow:hidden;width:100%;margin-bottom:.2rem}.cf-mix i{display:block}
.cf-mix u{display:inline-block;width:.7rem;height:.7rem;border-radius:2px;margin-right:.35rem}
</style>"""


def one_line(view: View) -> None:
    """Step 2: foreign pictures are linearly separable in contrastive features."""
    text, figure = _step(
        2,
        "A network learns, without any label, to recognise a picture again after cropping and shifting "
        "(contrastive learning). Pictures that look alike end up close together. The figure shows its features from "
        "the side on which a **straight border**, fitted with the truth, separates foreign pictures best.\n\n"
        "Turn the border with the slider: below, how far each kind lies beyond it. **AUROC** is the chance that a "
        "foreign picture lies farther on the tinted side than another one; 0.5 is guessing.",
    )
    if view.story is None or view.path is None:
        _untold(view, figure)
        return
    with figure:
        chart(cached.turning(view.path), f"lesson-line-{view.noise:g}")
    with text:
        st.markdown(core.line_told(view.story))
        st.caption(
            f"{len(view.kind):,} pictures, one encoder. The other axis of the figure is where the features differ most "
            "besides. The number in the figure is for the pictures themselves, with the truth known: it flatters."
        )


@st.fragment
def the_detector(view: View) -> None:
    """Step 3: the plane and the small-loss rule, at work without the truth."""
    text, figure = _step(
        3,
        "Nobody knows the truth in practice. But a classifier learns right labels first, so pictures whose label it "
        "finds hard to believe (**large loss**) are suspects. The **plane** takes these suspects as seeds: it is the "
        "straight border between suspects and all others. What it finds is no longer what looked wrong, but what lies "
        "on the wrong side.",
    )
    if view.story is None:
        _untold(view, figure)
        return
    story = view.story
    looks = {
        "linear": (story.linear_scores, story.linear_flags),
        "rule": (story.loss_scores, story.loss_flags),
    }
    found = {name: core.detection(scores, flags, view.kind) for name, (scores, flags) in looks.items()}
    with figure:
        shown = st.segmented_control(
            "Scores of", list(DETECTORS), key=begin("lesson-detector", "linear", list(DETECTORS)),
            format_func=DETECTORS.__getitem__, required=True,
        ) or "linear"  # fmt: skip
        scores, flags = looks[shown]
        chart(
            score_outlines(scores.astype(np.float64), view.kind, core.cut(scores, flags)),
            f"lesson-scores-{view.noise:g}-{shown}",
        )
    with text:
        st.markdown(core.detectors_told(found["linear"], found["rule"]))
        _beside(found)
        st.caption(
            f"Both on the features of step 2, {len(view.kind):,} pictures, one encoder. Small loss is that of a linear "
            "classifier on these features, fitted out of fold."
        )


_FIGURES = {
    "auroc_ood": ("AUROC, foreign", "Chance that a foreign picture is ranked above another one."),
    "foreign_found": ("Foreign found", "Share of the foreign pictures that are flagged."),
    "wrong_found": ("Wrong labels found", "Share of the wrong labels that are flagged."),
    "clean_kept": ("Clean kept", "Share of the clean pictures that are not flagged."),
    "precision": ("Precision", "Share of the flagged pictures that are noise of either kind."),
}


def _beside(found: Mapping[str, Mapping[str, float | None]]) -> None:
    """Figures of the two detectors, the better one bold."""
    lines = []
    for key, (name, help) in _FIGURES.items():
        values = [found[who][key] for who in DETECTORS]
        texts = ["–" if v is None else f"{v:.3f}" if key == "auroc_ood" else f"{v:.1%}" for v in values]
        known = [v for v in values if v is not None]
        cells = "".join(
            f"<td>{f'<b>{text}</b>' if v is not None and v == max(known) else text}</td>"
            for v, text in zip(values, texts, strict=True)
        )
        lines.append(f'<tr title="{escape(help)}"><th>{name}</th>{cells}</tr>')
    heads = "".join(f"<td>{name}</td>" for name in DETECTORS.values())
    _table(f"<tr><th></th>{heads}</tr>{''.join(lines)}")


def _table(rows: str) -> None:
    """A small table that scrolls sideways where it does not fit."""
    st.html(f'{_TABLE_STYLE}<div class="cf-scroll"><table class="cf-table">{rows}</table></div>')


_TABLE_STYLE = """<style>
.cf-scroll{overflow-x:auto}.cf-table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;
width:100%}.cf-table th{font-weight:400;text-align:left;white-space:nowrap}.cf-table td{text-align:right;
padding:.2rem 0 .2rem .9rem;white-space:nowrap}.cf-table tr:first-child td{opacity:.75;font-size:.8rem}
.cf-table tr+tr{border-top:1px solid color-mix(in srgb,currentColor 12%,transparent)}
.cf-table .cf-paper{opacity:.65}.cf-table td.cf-first{padding-left:1.6rem}
</style>"""


@st.fragment
def the_surprise(view: View) -> None:
    """Step 4: does training gain what the detection gained?"""
    text, figure = _step(
        4,
        "Now classifiers are trained, all from the encoder of step 2. One detects nothing (mixup: it learns from "
        "mixtures of pictures). The others leave out what **small loss**, the **plane**, or **both in turn** flag; "
        "**PLS** and **PLS-LSA** guess a new label for it instead; one is told the truth. If detection were all, "
        "the points would climb to the right.",
    )
    seeds = [row["seeds"] for row in view.found["table"] if row["noise"] == view.noise]
    if not seeds:
        figure.info(f"Nothing has been trained at {view.noise:.0%} noise yet.", icon=":material/hourglass:")
        return
    with figure:
        against(view.found, view.noise, view.accuracy, "lesson")
    with text:
        st.markdown("\n".join(f"- {words}" for words in core.surprise(view.found, view.noise, view.accuracy)))
        st.caption(
            f"{view.noise:.0%} noise, {_span(seeds)}; ± is the deviation over the seeds, the spread that of a "
            "difference between two of them. Detection: mean over the last quarter of the epochs that had one, on the "
            f"network's own features of the day. Accuracy: the {view.spec.accuracy} epoch."
        )


def _span(seeds: Sequence[int]) -> str:
    low, high = min(seeds), max(seeds)
    words = f"{low}" if low == high else f"{low} to {high}"
    return f"{words} seed{'s' if high > 1 else ''} each"


def against(found: Mapping[str, Any], noise: float, accuracy: str, key: str) -> None:
    """Detection and accuracy of all trainers of a level in one figure, and a switch of what counts as detection."""
    names = list(core.MEASURES)
    measure = st.segmented_control(
        "Detection by", names, key=begin(f"{key}-measure", names[0], names), required=True,
        format_func=lambda name: core.MEASURES[name][0], help="  \n".join(": ".join(m) for m in core.MEASURES.values()),
    ) or names[0]  # fmt: skip
    rows = [row for row in found["table"] if row["noise"] == noise]
    figure = figures.surprise(rows, core.NAMES, measure, core.MEASURES[measure][0], accuracy)
    chart(figure, f"{key}-against-{noise:g}-{measure}-{accuracy}")
    if (core.cell(found, "oracle", noise).get(measure) or 1) < 1:
        st.caption("Told the truth, one flags wrong labels too: by a measure of foreign pictures, these are errors.")


@st.fragment
def the_culprits(view: View) -> None:
    """Step 5: the clean pictures that the plane throws away and small loss keeps."""
    text, figure = _step(
        5,
        "The plane judges by place: a **clean** picture on its wrong side is left out, whatever its label. Small loss "
        "asks another question, whether the label is believed, so it may keep that picture. Clean pictures on which "
        "the two disagree in this way are the **culprits**. The paper describes them as visually simple pictures; here "
        "is what ours are.",
    )
    if view.story is None:
        _untold(view, figure)
        return
    story = view.story
    seen = core.describe(story, view.kind, view.data.observed.labels, view.data.observed.classes)
    picked = (st.session_state.get("lesson-culprits") or {}).get("picked")
    with text:
        st.markdown("\n\n".join(core.culprits_told(story, seen)))
    if not len(seen.positions):
        return
    with text:
        st.caption(f"The {min(WORST, len(seen.positions))} worst. A click shows where one lies.")
        tiles = [Tile(i, view.given(i), f"{story.lost[i]:.0%} of looks") for i in seen.positions[:WORST].tolist()]
        gallery(tiles, view.sheets, key="lesson-culprits", tile=56, selected=picked)
    culprit = np.zeros(len(view.kind), bool)
    culprit[seen.positions] = True
    with figure:
        where = st.segmented_control(
            "Where they lie", list(PLACES), key=begin("lesson-where", "map", list(PLACES)), required=True,
            format_func=PLACES.__getitem__,
        ) or "map"  # fmt: skip
        scatter_map(
            story.xy if where == "map" else story.plane,
            Colours(
                np.select([culprit, view.kind == OOD], [1, 0], -1),
                ("foreign", "culprit (grey: all others)"),
                (KIND_COLOURS["ood"], KIND_COLOURS["flag"]),
            ),
            hover=view.hover,
            sheets=view.sheets,
            key=f"lesson-where-{where}",
            height=560,
            focus=picked,
        )
    left, right = st.columns(2, gap="large")
    clean = view.kind == CLEAN
    with left:
        st.markdown("**How much there is to see in them**")
        chart(figures.detail(story.detail[clean], culprit[clean]), f"lesson-detail-{view.noise:g}")
    with right:
        st.markdown("**Of which classes they are**")
        chart(figures.classes(seen.classes), f"lesson-classes-{view.noise:g}")
    st.caption(
        f"Counted over {story.told['looks']} late looks of {core.NAMES[core.TEACHER]}: epochs in the second half of "
        "the trainings, all seeds, after which the plane flagged. Map: UMAP of the features of step 2."
    )


def the_alternation(view: View) -> None:
    """Step 6: the two detectors take turns, epoch by epoch."""
    playing = st.session_state.get("lesson-playing", False)
    st.fragment(_alternation, run_every=1.0 if playing else None)(view)


def _alternation(view: View) -> None:
    text, figure = _step(
        6,
        "The paper's remedy: the two **take turns**, an epoch each. What the plane throws away in one epoch, small "
        "loss can bring back in the next, so that fewer clean pictures are lost for good. Go through the epochs, or "
        "press Play: in colour is what is flagged in that epoch.",
    )
    if view.story is None:
        _untold(view, figure)
        return
    story, seen = view.story, core.course(view.story, view.kind)
    last, playing = len(seen.turns), st.session_state.get("lesson-playing", False)
    first = next((e for e, who in enumerate(seen.turns, start=1) if who == "lsa"), last)
    begun = next((e for e, who in enumerate(seen.turns, start=1) if who), last + 1)
    begin("lesson-epoch", view.spec.epoch if 1 <= view.spec.epoch <= last else first, range(1, last + 1))
    if playing and st.session_state["lesson-epoch"] == last:
        st.session_state["lesson-playing"] = False
        st.rerun()
    if playing and not st.session_state.get("lesson-play"):  # a tick, not the click that began it
        st.session_state["lesson-epoch"] += 1

    def play() -> None:
        st.session_state["lesson-playing"] = not playing
        if not playing and st.session_state["lesson-epoch"] == last:
            st.session_state["lesson-epoch"] = 1

    with figure:
        left, right = st.columns([5, 1], vertical_alignment="bottom")
        epoch = int(left.slider("Epoch", 1, last, key="lesson-epoch")) if last > 1 else 1
        words, icon = ("Stop", ":material/pause:") if playing else ("Play", ":material/play_arrow:")
        if right.button(words, key="lesson-play", icon=icon, on_click=play, width="stretch", disabled=last < 2):
            st.rerun()
        st.markdown(core.epoch_told(seen, epoch - 1))
        scatter_map(
            story.xy,
            Colours(view.kind, tuple(KIND_WORDS[k] for k in KINDS), tuple(KIND_COLOURS[k] for k in KINDS), "Flagged"),
            emphasis=story.flags[epoch - 1],
            hover=view.hover,
            sheets=view.sheets,
            key="lesson-epochs",
            height=400,
        )
    with text:
        st.markdown("\n".join(f"- {words}" for words in core.turns_told(story, view.kind)))
        st.caption(
            f"One training of {core.NAMES[core.TEACHER]}, seed {story.told['seed']}, {view.noise:.0%} noise"
            f"{'' if begun == 1 else f'; nothing is flagged before epoch {begun}'}. Map: UMAP of the features that the "
            "training started from."
        )
    chart(figures.course(seen.turns, seen.flagged, seen.accuracy, epoch - 1), "lesson-course")
    keep(replace(view.spec, epoch=epoch))


def numbers(view: View) -> None:
    """The paper's two tables in our setting, beside the paper's own, and how they were made."""
    found, plan = view.found, core.plan_of(view.found)
    st.subheader("All numbers", anchor="all-numbers", divider="gray")
    st.markdown(core.overall(found, view.accuracy))
    noises = sorted({row["noise"] for row in found["rows"]})
    theirs: dict[str, tuple[float, ...]] = core.REFERENCE["rows"]
    levels: tuple[float, ...] = core.REFERENCE["noises"]
    lines = []
    for slug in dict.fromkeys([*plan.trainers, *theirs]):
        rows = [core.cell(found, slug, noise) for noise in noises]
        own = [core.percent(row.get(view.accuracy), row.get(f"{view.accuracy}_sd")) for row in rows]
        other = [core.percent(value) for value in theirs.get(slug, [None] * len(levels))]
        lines.append(f"<tr><th>{escape(core.NAMES.get(slug, slug))}</th>{_cells(own)}{_cells(other, paper=True)}</tr>")
    st.markdown(f"**Accuracy (%) by noise, the {view.spec.accuracy} epoch**")
    heads = _cells([f"{n:.0%}" for n in noises]) + _cells([f"{n:.0%}" for n in levels], paper=True)
    _table(
        f'<tr><th></th><td colspan="{len(noises)}">here</td><td class="cf-paper" colspan="{len(levels)}">in the paper'
        f"</td></tr><tr><th></th>{heads}</tr>{''.join(lines)}"
    )
    st.caption(
        f"Here: {len(view.data.observed.classes)} classes of small grey pictures of clothes; in the paper: 100 classes "
        f"of web pictures ({core.REFERENCE['title']}). The settings differ in data, network and "
        "length of training, so compare the order of the rows, not their values. A dash: not trained, or not reported."
    )
    st.markdown(f"**Detection while training, {view.noise:.0%} noise**")
    means(found, plan.trainers, view.noise, [*core.MEASURES, "correlation"])
    st.caption(
        "Rank correlation: Spearman's, between the scores of the plane and the losses after the same epochs; 1 = the "
        "two detectors rank all pictures alike, 0 = they have nothing in common."
    )
    save: dict[str, Any] = {"on_click": "ignore", "icon": ":material/download:"}
    with st.container(horizontal=True):
        st.download_button(
            "CSV", data=lambda: exports.to_csv(pd.DataFrame(found["table"])), file_name="chaffinch-lesson.csv",
            mime="text/csv", help="Means and deviations, one row a trainer and noise level.", **save,
        )  # fmt: skip
        st.download_button(
            "JSON", data=lambda: json.dumps(found, indent=1), file_name="chaffinch-lesson.json",
            mime="application/json", help="Everything: the plan, each training epoch by epoch, means.", **save,
        )  # fmt: skip
    with st.expander("How they were made"):
        seconds, devices = core.cost(found)
        size = "all pictures of the draw" if plan.samples is None else f"{plan.samples:,} pictures"
        st.code("chaffinch experiment lesson", language="sh")
        st.markdown(
            f"- {len(found['rows'])} of {len(plan.cells())} trainings: {len(plan.trainers)} trainers, "
            f"{len(plan.noises)} noise levels, {len(plan.seeds)} seeds\n"
            f"- each {plan.epochs} epochs, batches of {plan.batch}, learning rate {plan.learning_rate:g}, weight decay "
            f"{plan.weight_decay:g}, {size}, network {plain(plan.architecture)}\n"
            f"- started from an encoder per noise level: SimCLR, {plan.start_epochs} epochs, batches of "
            f"{plan.start_batch}\n"
            "- the setting was chosen in trials of one seed on these draws, judged by the same test pictures; it "
            "departs from the paper in the layer that the plane cuts, in the warm-up and in a balance penalty for "
            "PLS-LSA\n"
            f"- {seconds / 3600:.1f} hours in all, on {plain(', '.join(devices) or 'an unknown device')}"
        )


def _cells(texts: Sequence[str], *, paper: bool = False) -> str:
    """Cells of a table, the first a little apart; paler for what the paper reports."""
    looks = [" ".join(["cf-first"] * (not i) + ["cf-paper"] * paper) for i in range(len(texts))]
    return "".join(f'<td class="{look}">{text}</td>' for look, text in zip(looks, texts, strict=True))


def means(found: Mapping[str, Any], trainers: Sequence[str], noise: float, keys: Sequence[str]) -> None:
    """A table of figures of each trainer at one level, with their deviations."""
    names = COLUMNS | {key: name for key, (name, _) in core.MEASURES.items()}
    titles, lines = "".join(f"<td>{names[key]}</td>" for key in keys), []
    for slug in trainers:
        row = core.cell(found, slug, noise)
        cells = "".join(f"<td>{_three(row.get(key), row.get(f'{key}_sd'))}</td>" for key in keys)
        lines.append(f"<tr><th>{escape(core.NAMES.get(slug, slug))}</th>{cells}</tr>")
    _table(f"<tr><th></th>{titles}</tr>{''.join(lines)}")


def _three(value: float | None, sd: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" + ("" if sd is None else f" ± {sd:.3f}")

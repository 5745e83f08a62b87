"""The pieces of the Losses page: two encoders side by side, with their maps, figures, flags, pulls and formulas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from .. import exports, lineup, pulls, registry, views
from ..card import KINDS, MethodCard
from ..data import CLEAN
from ..figures import losses as figures
from ..figures.methods import KIND_NAMES
from ..figures.palette import SIDES
from ..spec import Spec
from ..study import OWN_FEATURES, Detection, Study, encoder_cards
from ..verdict import Verdict
from . import cached, explore, jobs, methods
from .compare import judged_tiles
from .gallery import gallery
from .scatter import Colours, link, scatter_map
from .shell import begin, chart, plain

PER_PAGE = 24
HARDEST = 12
BY = {"detectors": "the detectors that are on", "verdict": "the verdict"}


@dataclass(frozen=True)
class Side:
    """One of the two encoders, and what is known through it.

    Attributes:
        key: ``left`` or ``right``.
        spec: the view with this encoder.
        study: of the dataset through it.
    """

    key: str
    spec: Spec
    study: Study

    @property
    def name(self) -> str:
        """What its features go by."""
        return self.study.encoder

    @property
    def colour(self) -> str:
        """What marks it on the page."""
        return SIDES[self.key == "right"]

    @cached_property
    def known(self) -> dict[str, Detection]:
        """Results of the detectors that are on, as far as they are there."""
        return explore.known_detections(self.study, self.spec.detectors)

    @cached_property
    def votes(self) -> views.Votes:
        """Their flags."""
        return views.vote(len(self.study), list(self.known.values()), self.spec.detectors, self.spec.votes)

    @cached_property
    def verdict(self) -> Verdict | None:
        """The verdict, if it is there."""
        return explore.known_verdict(self.study)

    @cached_property
    def card(self) -> dict[str, Any]:
        """The model card; empty where the features came with the data."""
        return {} if self.name == OWN_FEATURES else self.study.card()

    @cached_property
    def loss(self) -> MethodCard | None:
        """The card of the loss that trained it, if that is at hand."""
        found = registry.methods("loss").get(self.card.get("loss", ""))
        return found.card if found else None


def pick(spec: Spec, study: Study) -> Spec:
    """Choose the encoder on the right of that of a study."""
    names = cached.embedding_names()
    options = [name for name in names if name != study.encoder]
    if not options:
        st.info(
            "There is only one encoder at hand. Train another one below, with another loss, and both are shown here "
            "side by side.",
            icon=":material/model_training:",
        )
        return replace(spec, beside="")
    chosen = st.selectbox(
        f"On the right, beside {study.encoder}",
        options,
        key=begin("beside", spec.beside if spec.beside in options else options[0], options),
        format_func=lambda name: f"{name} — {names[name].partition(' (')[0]}",
        help="The sidebar chooses the encoder on the left. Type to search.",
    )
    return spec if chosen == spec.beside else replace(spec, beside=chosen, beside_outline="")


def sides(spec: Spec, study: Study) -> tuple[Side, Side | None]:
    """The two encoders; the right one is None where there is no other."""
    left = Side("left", spec, study)
    if not spec.beside:
        return left, None
    other = replace(spec, encoder=spec.beside)
    return left, Side("right", other, cached.study(other))


def ready(left: Side, right: Side | None) -> list[Side]:
    """Those of the two that have features."""
    return [left] if right is None or not right.study.has_features() else [left, right]


def maps(
    spec: Spec, left: Side, right: Side | None, focus: int | None
) -> tuple[Spec, NDArray[np.bool_] | None, int | None]:
    """Both maps with one selection of samples; returns the view, what is selected, and a clicked position."""
    there = ready(left, right)
    kinds = {s.key: spec.map if s.study.has_map(spec.map) else "pca" for s in there}
    xy = {f"map-{s.key}": s.study.map(kinds[s.key]) for s in there}
    first = {"map-left": views.read_outline(spec.outline), "map-right": views.read_outline(spec.beside_outline)}
    shared, clicked = link("losses", xy, first), None
    flagged = np.logical_or.reduce([s.votes.flagged for s in there])
    known = [found for s in there for found in s.known.values()]
    drawn = explore.thinned(there[0].study, known, flagged, spec.seed, 2)
    for column, s in zip(st.columns(2) if right else [st.container()], filter(None, (left, right)), strict=True):
        with column:
            _heading(s)
            if s not in there:
                st.caption("Its features are not there yet. This happens once; the result is kept.")
                jobs.prepare(s.study, s.spec, key="beside")
                continue
            look = views.colouring(s.study, list(s.known.values()), s.votes, spec.colour, s.verdict)
            event = scatter_map(
                xy[f"map-{s.key}"],
                Colours(look.values, look.names, look.colours, look.title),
                emphasis=s.votes.flagged if spec.only else None,
                marked=s.votes.flagged if s.votes.flags and spec.colour not in ("votes", "verdict") else None,
                shown=drawn.shown,
                rest=True,
                hover=explore.hover_texts(s.study, drawn.shown),
                sheets=cached.sheets(s.study),
                key=f"map-{s.key}",
                height=460,
                focus=focus,
                linked=shared,
            )
            clicked = event.clicked if clicked is None else clicked
            if kinds[s.key] != spec.map:
                st.caption("PCA is shown while UMAP is being computed.")
                jobs.prepare(s.study, s.spec, key=f"map-{s.key}")
    outline = views.spell_outline(shared.polygon)
    spec = replace(
        spec,
        outline=outline if shared.key == "map-left" else "",
        beside_outline=outline if shared.key == "map-right" else "",
    )
    st.caption(f"{_selected(there, shared.within)} {drawn.words}".strip())
    return spec, shared.within, clicked


def _heading(s: Side) -> None:
    """Name and loss of one side."""
    card, loss = s.card, s.loss
    words = f"{escape(loss.name)}, {card['epochs']} epochs" if loss else escape(str(card.get("loss", "from the data")))
    if card.get("about"):
        words = escape(", ".join([*([loss.name] if loss else []), f"trained on {card['dataset']}"]))
    st.html(
        f'<div class="cf-side"><i style="background:{s.colour}"></i><b>{escape(s.name)}</b><span>{words}</span></div>'
        "<style>.cf-side{display:flex;flex-wrap:wrap;align-items:center;gap:.1rem .5rem}.cf-side i{width:.8rem;"
        "height:.8rem;border-radius:50%;flex:none}.cf-side span{opacity:.75}</style>"
    )


def _selected(there: Sequence[Side], within: NDArray[np.bool_] | None) -> str:
    """What is selected, and how far it keeps to itself under each loss."""
    if within is None:
        return (
            "Select samples on one map, and the same samples are marked on the other: the maps differ, so look where "
            "they went. A click opens one sample on both."
        )
    count = int(within.sum())
    told = f"{count:,} samples are selected; the galleries below list only these. Escape clears."
    if not count:
        return told
    truth = there[0].study.truth
    if truth is not None:
        counts = np.bincount(truth.kind[within], minlength=len(KINDS))
        told += " Of these, " + ", ".join(f"{n:,} {KIND_NAMES[k]}" for k, n in zip(KINDS, counts, strict=True)) + "."
    shares = " and ".join(f"{lineup.together(s.study, within):.0%} with {plain(s.name)}" for s in there)
    chance = f"{within.mean():.0%} would be chance"
    return f"{told} Of the 10 nearest neighbours of each, in the features, {shares} are selected too ({chance})."


def inspector(there: Sequence[Side], focus: int) -> tuple[bool, int | None]:
    """One sample, and its neighbours under both losses. Returns (closed?, clicked neighbour)."""
    left, *right = there
    seen = views.inspect(left.study, focus, list(left.known.values()), left.votes, left.verdict)
    closed, clicked = explore.inspector(left.study, seen)
    for s in right:
        near = views.inspect(s.study, focus, [], s.votes).neighbours
        st.caption(f"Its nearest neighbours with {plain(s.name)}; those above are with {plain(left.name)}")
        tiles = explore.neighbour_tiles(near, seen.given)
        picked = gallery(tiles, cached.sheets(s.study), key="neighbours-right", tile=56)
        clicked = picked if clicked is None else clicked
    return closed, clicked


def numbers(spec: Spec, left: Side, right: Side) -> None:
    """The figures of the two beside each other, measured now if they are not known, and those of all encoders."""
    st.markdown("##### In numbers")
    rows, rest = cached.measured(spec)
    study = left.study
    job = jobs.Job(
        study.workspace, f"measure-{study.dataset.digest[:8]}-{spec.seed}", (), study.dataset.name, "measure"
    )
    refused: dict[str, str] = job.state.get("skipped", {})
    missing = [s.name for s in (left, right) if s.name in rest and s.name not in refused]
    if missing:
        st.caption("These are measured once, in the background; all else on the page works meanwhile.")
        jobs.ensure(_measuring(job, spec, missing), lambda: not set(missing) & set(cached.measured(spec)[1]))
    elif job.at_work:
        jobs.follow(job)
    axes = lineup.with_detectors(cut.detector for cut in spec.detectors)
    pair = [
        rows.get(s.name, {}) | {"detectors": rows.get(s.name, {}).get("detectors", {}) | _live(s)}
        for s in (left, right)
    ]
    beside, figure = st.columns([2, 3], gap="medium")
    with beside:
        _pair(axes, left, right, pair)
    with figure:
        shown = _parallel(rows, axes, {left.name: left.colour, right.name: right.colour})
    with st.expander("What the figures say"):
        sources = {f.key: f" :gray[{plain(f.source)}]" if f.source else "" for f in axes}
        st.markdown("\n".join(f"- **{plain(f.name)}**: {plain(f.help)}{sources[f.key]}" for f in axes))
    if shown:
        _everything(study, rows, axes, refused)
    for name, reason in refused.items():
        st.caption(f":material/block: {plain(name)} could not be measured: {plain(reason)}")
    rest = [name for name in rest if name not in refused and name not in missing]
    if rest and not missing and not job.at_work:
        words = f"Measure the other {len(rest)}" if len(rest) > 1 else f"Measure {plain(rest[0])} too"
        if st.button(words, key="measure-rest", icon=":material/speed:", help="In the background; it can be stopped."):
            _measuring(job, spec, ()).start()
            st.rerun()


def _measuring(job: jobs.Job, spec: Spec, names: Sequence[str]) -> jobs.Job:
    """The job that measures these encoders; all that are at hand if there are none."""
    words = [word for name in names for word in ("--encoder", name)]
    return replace(job, command=("compare-encoders", spec.dataset, "--seed", str(spec.seed), *words))


def _live(s: Side) -> dict[str, dict[str, Any]]:
    """AUROC of the detectors that are on: they have run already."""
    if s.study.truth is None:
        return {}
    return {slug: s.study.figures(found, s.votes.flags[slug]) for slug, found in s.known.items()}


def _pair(axes: Sequence[lineup.Figure], left: Side, right: Side, pair: Sequence[lineup.Row]) -> None:
    lines = []
    for f in axes:
        one, other = (lineup.reading(row, f) for row in pair)
        if one is None and other is None:
            continue
        texts = ["–" if value is None else _figure(value) for value in (one, other)]
        best = lineup.better(f, one, other) if texts[0] != texts[1] else 0
        cells = "".join(
            f'<td class="{"cf-best" if best == side else ""}">{text}</td>'
            for text, side in zip(texts, (-1, 1), strict=True)
        )
        lines.append(f'<tr title="{escape(f.help)}"><th>{escape(f.name)}</th>{cells}</tr>')
    if not lines:
        return
    heads = "".join(f'<td><i style="background:{s.colour}"></i>{escape(s.name)}</td>' for s in (left, right))
    st.html(f'{_PAIR_STYLE}<table class="cf-pair"><tr><th></th>{heads}</tr>{"".join(lines)}</table>')
    st.caption("Bold: the better of the two, where there is a better end.")


_PAIR_STYLE = """<style>
.cf-pair{width:100%;border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
.cf-pair th{font-weight:400;text-align:left;opacity:.85}.cf-pair td{text-align:right;padding:.15rem 0 .15rem .6rem}
.cf-pair tr+tr{border-top:1px solid color-mix(in srgb,currentColor 12%,transparent)}
.cf-pair tr:first-child td{overflow-wrap:anywhere;font-size:.8rem;vertical-align:bottom}
.cf-pair i{display:inline-block;width:.6rem;height:.6rem;border-radius:50%;margin-right:.3rem}
.cf-pair .cf-best{font-weight:700}
</style>"""


def _figure(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"


def _parallel(rows: dict[str, lineup.Row], axes: Sequence[lineup.Figure], marked: dict[str, str]) -> bool:
    """All encoders as lines through their figures, if there are enough; is any of them measured?"""
    if len(rows) < 3:
        st.caption("With three or more encoders measured, each is drawn here as a line through its figures.")
        return bool(rows)
    values = np.array([[lineup.reading(row, f) for f in axes] for row in rows.values()], dtype=float)
    there = ~np.isnan(values).all(axis=0)
    values, axes = values[:, there], [f for f, shown in zip(axes, there, strict=True) if shown]
    high = lineup.heights(values, axes)
    names = [(f.name, f.better) for f in axes]
    chart(figures.parallel(list(rows), high, values, names, marked), "parallel")
    st.caption(f"Each line is one of the {len(rows)} encoders that are measured; up is better (* neither end is).")
    return True


def _everything(
    study: Study, rows: dict[str, lineup.Row], axes: Sequence[lineup.Figure], refused: dict[str, str]
) -> None:
    """One row an encoder, sortable, and as files."""
    cards = {name: card for name, (_, card) in encoder_cards(study.workspace).items()}
    merged = lineup.over_seeds(rows, cards)
    head, merge, csv, js = st.columns([4, 3, 1, 1], vertical_alignment="bottom")
    head.markdown("**All encoders that are measured here**")
    if len(merged) < len(rows) and merge.toggle(
        "Average over seeds",
        key=begin("over-seeds", False),
        help="Encoders that differ in the seed alone become one row: the mean. The JSON file always has it so, with "
        "the spread.",
    ):
        rows = merged
    save: dict[str, Any] = {"width": "stretch", "on_click": "ignore", "icon": ":material/download:"}
    csv.download_button(
        "CSV",
        data=lambda: exports.to_csv(lineup.table(rows, cards, lineup.with_detectors(registry.methods("detector")))),
        file_name="chaffinch-encoders.csv",
        mime="text/csv",
        help="All figures, with the AUROC of every detector.",
        **save,
    )
    js.download_button(
        "JSON",
        data=lambda: json.dumps({"encoders": merged, "skipped": refused}, indent=2),
        file_name="chaffinch-encoders.json",
        mime="application/json",
        help="What `chaffinch compare-encoders --json` prints.",
        **save,
    )
    frame = lineup.table(rows, cards, axes)
    number = st.column_config.NumberColumn
    st.dataframe(
        frame.drop(columns=[] if (frame["seeds"] > 1).any() else ["seeds"]),
        hide_index=True,
        column_config={
            "encoder": st.column_config.TextColumn("Encoder", pinned=True, width=130),
            "loss": st.column_config.TextColumn("Loss", width=110),
            "epochs": number("Epochs", width=66),
            "seeds": number("Seeds", width=60, help="So many trainings, their figures averaged."),
        }
        | {f.key: number(f.name, help=f.help, format="%.3f", width=40 + 7 * len(f.name)) for f in axes},
    )


def curves(left: Side, right: Side | None) -> None:
    """The mean loss of each epoch of the two trainings."""
    st.markdown("##### How the training went")
    for column, s in zip(st.columns(2), filter(None, (left, right)), strict=False):
        with column:
            _heading(s)
            if values := s.card.get("history"):
                noted = cached.pulls(s.study) if s.name != OWN_FEATURES else ""
                more = {"kinds": noted.losses, "noted": noted.epochs.tolist()} if isinstance(noted, pulls.Pulls) else {}
                chart(figures.history(values, s.colour, **more), f"history-{s.key}")
            else:
                st.caption("There is no record of its losses.")
    st.caption(
        "Each has an axis of its own: the values of different losses measure different things and cannot be compared. "
        "Their shape can: whether it still falls, or has come to rest, and whether noisy pictures (dotted lines, where "
        "that was noted) keep a higher loss than clean ones or are learnt like them."
    )


def differences(spec: Spec, left: Side, right: Side, within: NDArray[np.bool_] | None, focus: int | None) -> int | None:
    """The samples that are flagged under one loss alone; returns a clicked position."""
    st.markdown("##### Flagged with one, not with the other")
    by = "detectors"
    if left.verdict is not None and right.verdict is not None:
        by = (
            st.segmented_control(
                "Flagged by",
                list(BY),
                key=begin("differ-by", "detectors" if spec.detectors else "verdict", list(BY)),
                format_func=BY.__getitem__,
                label_visibility="collapsed",
            )
            or by
        )
    if by == "verdict" and left.verdict is not None and right.verdict is not None:
        flags = [v.kinds != CLEAN for v in (left.verdict, right.verdict)]
        gap = right.verdict.proba[:, CLEAN] - left.verdict.proba[:, CLEAN]
    elif not (shared := [slug for slug in left.known if slug in right.known]):
        st.info("No detector has run on both yet.", icon=":material/hourglass:")
        return None
    else:
        pair = [[s.known[slug] for slug in shared] for s in (left, right)]
        flags = [views.vote(len(left.study), found, spec.detectors, spec.votes).flagged for found in pair]
        gap = np.subtract(*(views.suspicion(found, len(left.study)) for found in pair))
        if apart := [slug for slug in {**left.known, **right.known} if slug not in shared]:
            names = ", ".join(registry.get("detector", slug).card.name for slug in apart)
            st.caption(f"Not counted here, since there is no result for both: {plain(names)}.")
    both = int((flags[0] & flags[1]).sum())
    st.caption(f"{both:,} samples are flagged with both. The widest gap comes first.")
    clicked = None
    pairs = ((left, flags[0], flags[1], gap), (right, flags[1], flags[0], -gap))
    for column, (s, one, other, lead) in zip(st.columns(2, gap="medium"), pairs, strict=True):
        with column:
            picked = _one_sided(s, lineup.only(one, other, lead, within), focus)
            clicked = picked if clicked is None else clicked
    return clicked


def _one_sided(s: Side, order: NDArray[np.int64], focus: int | None) -> int | None:
    """The samples that are flagged with one encoder only."""
    words = f"{len(order):,} with {plain(s.name)} only"
    if s.study.truth is not None and len(order):
        counts = np.bincount(s.study.truth.kind[order], minlength=len(KINDS))
        words += ": " + ", ".join(f"{n:,} {KIND_NAMES[kind]}" for kind, n in zip(KINDS, counts, strict=True) if n)
    st.markdown(f"**{words}**")
    if not len(order):
        st.caption("There are none.")
        return None
    pages, key = max(1, -(-len(order) // PER_PAGE)), f"only-{s.key}"
    page = 1
    if pages > 1:
        begin(key, 1, range(1, pages + 1))
        page = int(st.number_input(f"Page of {pages:,}", 1, pages, key=key, width=140))
    tiles = judged_tiles(s.study, order[(page - 1) * PER_PAGE : page * PER_PAGE], list(s.known.values()))
    return gallery(tiles, cached.sheets(s.study), key=f"gallery-{s.key}", tile=64, selected=focus)


def pulled(left: Side, right: Side | None, focus: int | None) -> int | None:
    """How hard samples pulled in training, and whereto the wrong labels were moved; returns a clicked position."""
    clicked = None
    st.markdown(
        "##### How hard each picture pulls, and whereto",
        help="The pull of a picture is how strongly the loss would change if the features of this picture moved by a "
        "share of their length: the weight of its gradient, whatever the loss (after arXiv 2510.14824). The loss is "
        "the sum over the pictures of a training step. In a classifier only the picture's own part depends on its "
        "features; where a loss compares pictures, those of the others do too. Whereto is the direction in which the "
        "loss moves the features, compared with the way to the middle of a class: cosine 1 = straight there, 0 = "
        "neither to nor fro, -1 = straight away.",
    )
    found = {s: cached.pulls(s.study) for s in (left, right) if s is not None and s.name != OWN_FEATURES}
    known = {s: p for s, p in found.items() if isinstance(p, pulls.Pulls)}
    span = pulls.span(known.values())
    for column, (s, p) in zip(st.columns(2, gap="medium"), found.items(), strict=False):
        with column:
            _heading(s)
            if isinstance(p, str):
                st.info(plain(p), icon=":material/history_toggle_off:")
                continue
            if s.card.get("dataset_digest") != s.study.dataset.digest:
                st.caption(f"As noted when it was trained, on {plain(s.card['dataset'])}.")
            chart(figures.spread(p.epochs.tolist(), p.spread), f"pulls-{s.key}")
            if p.given is not None and p.other is not None:
                names = ("to the class on the label", f"to the {'true' if p.known else 'probable'} class")
                st.markdown("**Whereto wrongly labelled pictures are moved**")
                chart(figures.whereto(p.epochs.tolist(), p.given, p.other, names, span), f"whereto-{s.key}")
            else:
                st.caption("Whereto was not kept, or nobody is known to be wrongly labelled.")
            picked = _hardest(s, focus)
            clicked = picked if clicked is None else clicked
    if known:
        st.markdown("\n".join(f"- {plain(words)}" for words in pulls.told({s.name: p for s, p in known.items()})))
        st.caption(
            "Pulls of different losses have different units: compare the kinds within one figure. Boxes: the middle "
            "half of the pictures, and 5 to 95 %; lines: the median and the middle half."
            + ("" if all(p.known for p in known.values()) else " The truth is not known: kinds are the verdict's.")
        )
    return clicked


def _hardest(s: Side, focus: int | None) -> int | None:
    """The pictures that pulled hardest in the end; returns a clicked position."""
    if (ranks := s.study.pull_ranks) is None:
        return None
    order = np.argsort(-ranks, kind="stable")[: np.count_nonzero(~np.isnan(ranks))]  # NaN last
    told, truth = "**The pictures that pull hardest**", s.study.truth
    if truth is not None:
        first = order[: max(HARDEST, len(order) // 50)]
        told += f": of the first {len(first)}, {(truth.kind[first] != CLEAN).mean():.0%} are noise"
    st.markdown(told)
    tiles = judged_tiles(s.study, order[:HARDEST], list(s.known.values()))
    return gallery(tiles, cached.sheets(s.study), key=f"hardest-{s.key}", tile=64, selected=focus)


def formulas(left: Side, right: Side | None) -> None:
    """Formula and explanation of each of the two losses, and the parameters that were used."""
    st.markdown("##### The formula" if right is None else "##### The two formulas")
    for column, s in zip(st.columns(2, gap="medium"), filter(None, (left, right)), strict=False):
        with column, st.container(border=True):
            _heading(s)
            if s.loss is None:
                st.caption("The loss that trained it is not at hand here.")
                continue
            st.latex(methods.stacked(s.loss.formula))
            st.markdown(plain(s.loss.summary))
            st.markdown(f"**Fails when**  \n{plain(s.loss.fails_when)}")
            st.markdown(_parameters(s))
            arxiv = f" — [arXiv {s.loss.arxiv}](https://arxiv.org/abs/{s.loss.arxiv})" if s.loss.arxiv else ""
            st.caption(plain(s.loss.paper) + arxiv)


def _parameters(s: Side) -> str:
    """The parameters of the loss that were used, what they mean, and the rest of the recipe."""
    card = s.card
    words = {name: text for name, _, text in methods.parameters(registry.get("loss", card["loss"]))}
    lines = [
        f"- **{plain(name)}** = `{value}`" + (f": {methods.inline(words[name])}" if words.get(name) else "")
        for name, value in card.get("loss_parameters", {}).items()
    ]
    recipe = f"trained with batch {card['batch']}, seed {card['seed']}, {card['architecture']}, on {card['dataset']}"
    if about := card.get("about"):
        told = (f"{about['name']}, trained on {card['dataset']}", about.get("source"), about.get("licence"))
        recipe = "; ".join(filter(None, told))
    return "\n".join([*lines, f"- {plain(recipe)}"])

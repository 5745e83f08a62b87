"""The pieces of the Explore page: map, strip of figures, gallery, inspector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from html import escape

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from .. import checks, exports, registry, views
from ..base.errors import InputError
from ..card import KINDS
from ..figures import learning, thinning
from ..figures.comparison import KIND_WORDS
from ..figures.palette import KIND_COLOURS
from ..projection import MOST, SMALLEST
from ..spec import MAPS, Cut, Spec
from ..study import Detection, Study
from ..thumbnails import picture_png
from ..verdict import Verdict
from . import cached
from .gallery import Tile, gallery
from .pickers import awaits_verdict, has_verdict
from .scatter import Colours, MapEvent, inside, scatter_map
from .shell import begin, chart, plain

PER_PAGE = 40
SHOWS = {
    "suspicious": "Most suspicious",
    "flagged": "Flagged",
    "mislabelled": "Verdict: wrong label",
    "ood": "Verdict: foreign picture",
    "trusted": "Least suspicious",
    "random": "Random",
}


def known_detections(study: Study, cuts: Sequence[Cut]) -> dict[str, Detection]:
    """Results of the detectors that are on, as far as they are there already."""
    if awaits_verdict(study):  # how many to flag depends on it
        return {}
    return {c.detector: study.detect(c.detector) for c in cuts if study.knows(c.detector)}


def known_verdict(study: Study) -> Verdict | None:
    """The verdict, if it is there already."""
    return study.verdict() if study.knows_verdict() else None


def compute_missing(study: Study, cuts: Sequence[Cut], known: dict[str, Detection]) -> None:
    """Run the detectors that are on and not known yet, and the verdict, with progress; then draw the page again."""
    refused: dict[str, str] = st.session_state.setdefault("_refused", {})
    missing = ["verdict"] if study.features is not None and not study.knows_verdict() else []
    missing += [c.detector for c in cuts if c.detector not in known]
    ready = [slug for slug in missing if f"{study.key}-{slug}" not in refused]
    with st.sidebar:
        for slug in missing:
            if reason := refused.get(f"{study.key}-{slug}"):
                st.warning(plain(reason), icon=":material/block:")
        if not ready:
            return
        bar = st.progress(0.0, text="Computing what the detectors share …")
        for i, slug in enumerate(ready):
            bar.progress(i / len(ready), text=f"Running {slug} …")
            try:
                study.verdict() if slug == "verdict" else study.detect(slug)
            except InputError as error:
                refused[f"{study.key}-{slug}"] = str(error)
    st.rerun()


def strip(study: Study, votes: views.Votes, within: NDArray[np.bool_] | None) -> None:
    """Counts, and figures against the truth where it is known."""
    values = views.summary(study, votes, within)
    names = {
        "samples": ("samples", "in the dataset"),
        "flagged": ("flagged", "by the detectors that are on"),
        "selected": ("selected", "inside the outline on the map"),
        "precision": ("precision", "share of flagged samples that are noisy"),
        "recall": ("recall", "share of noisy samples that are flagged"),
        "f1": ("F1", "harmonic mean of precision and recall"),
        "clean_kept": ("clean kept", "share of clean samples that are not flagged"),
    }
    cells = []
    for key, value in values.items():
        name, title = names[key]
        text = "–" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.1%}"
        cells.append(f'<div class="cf-cell" title="{title}"><b>{text}</b><span>{name}</span></div>')
    note = "" if study.truth is not None else '<div class="cf-note">The truth is not known here: counts only.</div>'
    st.html(_STRIP_STYLE + f'<div class="cf-strip">{"".join(cells)}{note}</div>')
    for slug, problem in votes.problems.items():
        st.warning(plain(f"{slug}: {problem}"), icon=":material/warning:")


def verdict_strip(verdict: Verdict | None, within: NDArray[np.bool_] | None) -> None:
    """How many samples the verdict takes for clean, wrongly labelled and foreign, and how sure it is."""
    if verdict is None:
        return
    counts = views.tally(verdict, within)
    total = max(sum(counts.values()), 1)
    bars = "".join(
        f'<i style="width:{count / total:.2%};background:{KIND_COLOURS[kind]}"></i>' for kind, count in counts.items()
    )
    words = {"clean": "clean", "mislabelled": "wrong label", "ood": "foreign"}
    cells = "".join(
        f'<span><u style="background:{KIND_COLOURS[kind]}"></u><b>{count:,}</b> {words[kind]} '
        f"({count / total:.1%})</span>"
        for kind, count in counts.items()
    )
    sure = f"by its own account {verdict.info['expected_accuracy']:.0%} of these judgements are right"
    st.html(
        f'{_VERDICT_STYLE}<div class="cf-verdict"><div class="cf-split">{bars}</div>'
        f'<div class="cf-kinds"><em title="{sure}">Verdict</em>{cells}<span class="cf-sure">{sure}</span></div></div>'
    )
    if note := verdict.info.get("note"):
        say = partial(st.warning, icon=":material/warning:") if verdict.info.get("weak") else st.caption
        say(plain(f"Verdict: {note}."))


_VERDICT_STYLE = """<style>
.cf-verdict{font-size:.9rem;margin-top:-.3rem}.cf-split{display:flex;height:.45rem;border-radius:3px;overflow:hidden;
max-width:46rem}.cf-split i{display:block}.cf-kinds{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;margin-top:.3rem}
.cf-kinds em{font-style:normal;font-weight:600}.cf-kinds u{display:inline-block;width:.7rem;height:.7rem;
border-radius:2px;margin-right:.35rem}.cf-sure{opacity:.7}
</style>"""


_STRIP_STYLE = """<style>
.cf-strip{display:flex;flex-wrap:wrap;gap:.4rem 1.6rem;align-items:baseline}
.cf-cell{display:flex;flex-direction:column;min-width:4.2rem}
.cf-cell b{font-size:1.35rem;line-height:1.25;font-variant-numeric:tabular-nums}
.cf-cell span,.cf-note{font-size:.8rem;opacity:.75}
</style>"""


def map_controls(spec: Spec, study: Study) -> Spec:
    """Colour, layout and emphasis of the map."""
    options = ["given", "votes", *(["verdict"] if has_verdict(study) else [])]
    options += [*(["kind"] if study.truth is not None else []), *(c.detector for c in spec.detectors)]
    options += ["pull"] if study.pull_ranks is not None else []
    names = {"given": "given label", "votes": "votes", "verdict": "verdict", "kind": "true kind"}
    names |= {"pull": "pull in training"}
    names |= {slug: f"suspicion: {cls.card.name}" for slug, cls in registry.methods("detector").items()}
    a, b, c = st.columns([3, 2, 2], vertical_alignment="bottom")
    colour = a.selectbox(
        "Colour by",
        options,
        key=begin("colour", spec.colour if spec.colour in options else options[0], options),
        format_func=lambda o: names.get(o, o),
    )
    layout = None
    if study.observed.xy is None:
        layout = b.segmented_control("Map", MAPS, format_func=str.upper, key=begin("layout", spec.map, MAPS))
    only = c.toggle("Grey out unflagged", key=begin("only-flagged", spec.only == "flagged"))
    if layout not in (None, spec.map):
        spec = replace(spec, map=layout, outline="", beside_outline="")  # they speak of other positions
    return replace(spec, colour=colour, only="flagged" if only else "")


def hover_texts(study: Study, shown: NDArray[np.int64] | None = None) -> tuple[str, ...]:
    """Texts of the card under the pointer, of all samples or of these positions."""
    return _all_texts(study) if shown is None else _texts(study, shown)


@lru_cache(maxsize=8)
def _all_texts(study: Study) -> tuple[str, ...]:
    """The same for every view of a study, so the browser keeps them."""
    return _texts(study, np.arange(len(study)))


def _texts(study: Study, rows: NDArray[np.int64]) -> tuple[str, ...]:
    names, observed = study.observed.classes, study.observed
    given = (names[label] for label in observed.labels[rows].tolist())
    return tuple(f"{label}\n{identity}" for label, identity in zip(given, observed.ids[rows].tolist(), strict=True))


@dataclass(frozen=True)
class Thinned:
    """Which samples the maps of a page draw as points.

    Attributes:
        shown: their positions, or None if all are.
        words: what to tell about it; empty if all are.
    """

    shown: NDArray[np.int64] | None
    words: str


def thinned(
    study: Study, detections: Sequence[Detection], flagged: NDArray[np.bool_], seed: int, maps: int = 1
) -> Thinned:
    """Which samples are points on maps that share the browser: flagged ones first, then the most suspicious.

    Args:
        study: the study.
        detections: that say how suspicious a sample is.
        flagged: (N,) by them.
        seed: of the draw where there are none.
        maps: how many there are on the page.
    """
    n, most, points = len(study), thinning.MOST // maps, thinning.POINTS // maps
    if n <= most:
        return Thinned(None, "")
    score = views.suspicion(detections, n) if detections else None
    shown = thinning.thin(flagged, score, most=most, points=points, seed=seed)
    return Thinned(shown, thinning.told(n, shown, flagged, bool(detections)))


def draw_map(
    spec: Spec,
    study: Study,
    detections: Sequence[Detection],
    votes: views.Votes,
    *,
    kind: str,
    focus: int | None,
    verdict: Verdict | None = None,
) -> tuple[MapEvent, NDArray[np.bool_] | None]:
    """The map, and which samples its outline selects (None without one)."""
    if not study.can_map():
        st.info("No pictures and no features, so there is no map; the detectors that need neither still work.")
        return MapEvent(None, None), None
    xy = study.map(kind)
    look = views.colouring(study, detections, votes, spec.colour, verdict)
    drawn = thinned(study, detections, votes.flagged, spec.seed)
    event = scatter_map(
        xy,
        Colours(look.values, look.names, look.colours, look.title),
        emphasis=votes.flagged if spec.only else None,
        marked=votes.flagged if votes.flags and spec.colour not in ("votes", "verdict") else None,
        shown=drawn.shown,
        rest=True,
        hover=hover_texts(study, drawn.shown),
        sheets=cached.sheets(study),
        key="map",
        focus=focus,
        outline=views.read_outline(spec.outline),
    )
    if drawn.words:
        st.caption(drawn.words)
    return event, None if event.polygon is None else inside(xy, event.polygon)


def map_footer(study: Study, kind: str, focus: int | None) -> None:
    """How the map was made, and how far to trust it."""
    if focus is not None:
        st.caption(f"The cross-hair marks {plain(study.name_of(focus))}; it is opened beside the map, or below it.")
    trust = study.map_trust(kind)
    made = "PCA" if len(study) < SMALLEST else kind.upper()
    placed = kind == "umap" and len(study) > MOST
    if study.observed.xy is not None:
        st.caption("The coordinates of this map came with the data.")
    elif trust:
        st.caption(
            f"How far to trust this {made} map (k = 10): trustworthiness {trust['trustworthiness']:.3f} "
            f"(1 = no false neighbours), continuity {trust['continuity']:.3f} (1 = none torn away), "
            f"{trust['preservation']:.0%} of each sample's nearest neighbours stay among its nearest on the map."
            + (f" {MOST:,} samples were laid out, the others put between their neighbours." if placed else "")
        )


def gallery_panel(
    spec: Spec,
    study: Study,
    detections: Sequence[Detection],
    votes: views.Votes,
    within: NDArray[np.bool_] | None,
    focus: int | None,
    verdict: Verdict | None = None,
) -> tuple[Spec, int | None]:
    """Thumbnails of the selection or of the most suspicious samples; returns the view and a clicked position."""
    classes = ["", *study.observed.classes]
    by_slug = {d.slug: d for d in detections}
    st.markdown("##### " + ("The selection" if within is not None else "The samples"))
    a, b = st.columns(2, vertical_alignment="bottom")
    shows = [show for show in SHOWS if show not in KINDS or has_verdict(study)]
    first = spec.show if spec.show in shows else shows[0]
    show = a.selectbox("Show", shows, key=begin("show", first, shows), format_func=SHOWS.__getitem__)
    chosen = spec.label if spec.label in classes else ""
    label = b.selectbox(
        "Given label", classes, key=begin("label", chosen, classes), format_func=lambda name: name or "any"
    )
    a, b, c = st.columns([4, 4, 3], vertical_alignment="bottom")
    sorts, cards = ["", *by_slug], registry.methods("detector")
    sort = a.selectbox(
        "By detector",
        sorts,
        key=begin("sort", spec.sort if spec.sort in sorts else "", sorts),
        format_func=lambda s: cards[s].card.name if s else "all that are on",
    )
    judging = [by_slug[sort]] if sort in by_slug else list(detections)
    counted = votes if sort not in by_slug else replace(votes, flagged=votes.flags[sort])
    order = views.gallery_order(study, judging, counted, show=show, label=label, within=within, verdict=verdict)

    pages = max(1, -(-len(order) // PER_PAGE))
    listed = (study.key, show, label, sort, len(order))
    if st.session_state.setdefault("_listed", listed) != listed:
        st.session_state["_listed"], st.session_state["page"] = listed, 1  # another list begins on its first page
    begin("page", min(spec.page, pages), range(1, pages + 1))
    page = int(b.number_input(f"Page of {pages:,}", 1, pages, key="page"))
    c.download_button(
        "CSV",
        data=lambda: exports.to_csv(study.table(detections, votes.flags, verdict).iloc[np.sort(order)]),
        file_name="chaffinch-selection.csv",
        mime="text/csv",
        icon=":material/download:",
        width="stretch",
        help="Ids, labels, verdict, scores and flags of all samples listed here.",
        on_click="ignore",
    )
    spec = replace(spec, show=show, label=label, sort=sort, page=page)
    st.caption(f"{len(order):,} samples, {PER_PAGE} a page")
    if not len(order):
        st.info("Nothing matches. Widen the selection, or choose another list.", icon=":material/filter_alt_off:")
        return spec, None
    names = study.observed.classes
    unseen = (lambda i: "") if study.observed.images is not None else study.name_of  # without a picture, its id
    tiles = []
    for i in order[(page - 1) * PER_PAGE : page * PER_PAGE].tolist():
        foreign = verdict is not None and KINDS[verdict.kinds[i]] == "ood"  # no class would be right
        advice = KIND_WORDS["ood"] if foreign else hint(study, i, judging)
        tone = "flag" if votes.flagged[i] else ""
        if spec.colour == "kind" and study.truth is not None:
            tone = KINDS[study.truth.kind[i]]
        elif verdict is not None and (spec.colour == "verdict" or show in KINDS):
            tone = KINDS[verdict.kinds[i]]
            if show == "mislabelled" and verdict.labels[i] != study.observed.labels[i]:
                advice = f"→ {names[verdict.labels[i]]}"
        tiles.append(Tile(i, names[study.observed.labels[i]], advice or unseen(i), tone))
    return spec, gallery(tiles, cached.sheets(study), key="gallery", selected=focus)


def hint(study: Study, i: int, detections: Sequence[Detection]) -> str:
    """What the first detector with an opinion would call the sample, if not its given label."""
    for found in detections:
        if found.suggestions is not None and found.suggestions[i] != study.observed.labels[i]:
            return f"→ {study.observed.classes[found.suggestions[i]]}"
    return ""


def inspector(study: Study, seen: views.Inspection) -> tuple[bool, int | None]:
    """One sample, large: its labels, what each detector says, its neighbours. Returns (closed?, clicked neighbour)."""
    with st.container(border=True, key="inspector"):
        head, close = st.columns([6, 1], vertical_alignment="center")
        head.markdown(f"##### Filed under {plain(seen.given)}")
        closed = close.button("Close", icon=":material/close:", key="close-inspector", help="Close the inspector")
        left, right = st.columns([2, 3])
        if study.observed.images is not None:
            left.image(picture_png(study.observed.images[seen.position], 224), width="stretch")
        found = cached.checks(study)
        right.html(told(seen) + why(() if found is None else checks.reasons(study, found, seen.position)))
        _course(study, seen.position)
        clicked = None
        if seen.neighbours:
            st.caption("Nearest neighbours, most similar first")
            tiles = neighbour_tiles(seen.neighbours, seen.given)
            clicked = gallery(tiles, cached.sheets(study), key="neighbours", tile=56)
    return closed, clicked


def _course(study: Study, position: int) -> None:
    """How a classifier learnt this sample, where the study has the record of a training."""
    if (found := views.course(study, position)) is None:
        return
    st.caption(f"How {plain(found.trainer)} learnt it (run {plain(found.run)})")
    chart(learning.course(found.loss, found.usual, found.flagged, found.turns), "course")
    told = "Grey: the middle half of all pictures."
    if found.flagged.any():
        told += f" Flagged in {int(found.flagged.sum())} of {len(found.flagged)} epochs."
    if found.trust is not None and found.trust[-1] < 1:
        told += f" Its new label was trusted {found.trust[-1]:.0%} at the end."
    st.caption(told)


def neighbour_tiles(near: Sequence[tuple[int, str, float]], given: str) -> list[Tile]:
    """Neighbours (position, label, similarity) as thumbnails; those under another label than the given are marked."""
    return [Tile(j, label, f"cos {sim:.2f}", "" if label == given else "differs") for j, label, sim in near]


def why(reasons: Sequence[checks.Reason]) -> str:
    """Why the checks list a sample, a line each, as HTML; nothing if they do not."""
    lines = "".join(f"<div>{escape(reason.words)}</div>" for reason in reasons)
    style = (
        "<style>.cf-why{margin-top:.35rem;font-size:.9rem}.cf-why div{padding-left:.7rem;margin:0 0 .2rem;"
        "border-left:3px solid color-mix(in srgb,currentColor 45%,transparent);overflow-wrap:anywhere}</style>"
    )
    return f'{style}<div class="cf-why">{lines}</div>' if lines else ""


def told(seen: views.Inspection, cuts: Mapping[str, str] | None = None) -> str:
    """Everything about one sample as HTML: its labels, the verdict, each detector (and, by slug, where it cuts)."""
    return _facts(seen) + _chances(seen) + _bars(seen, cuts or {})


def _facts(seen: views.Inspection) -> str:
    rows = [("Given label", seen.given), ("Id", seen.id)]
    if seen.true is not None and seen.kind is not None:
        rows[1:1] = [("True label", seen.true), ("True kind", seen.kind)]
    if seen.pull is not None:
        rows.insert(-1, ("Pull in training", f"harder than {seen.pull:.0%} of the pictures"))
    cells = "".join(f"<span>{name}</span><b>{escape(value)}</b>" for name, value in rows)
    return (
        "<style>.cf-facts{display:grid;grid-template-columns:auto 1fr;gap:.1rem .8rem;font-size:.85rem;"
        "margin-bottom:.6rem}.cf-facts span{opacity:.75}.cf-facts b{font-weight:600;overflow-wrap:anywhere}</style>"
        f'<div class="cf-facts">{cells}</div>'
    )


def _chances(seen: views.Inspection) -> str:
    """The verdict on one sample: the three probabilities, and the label it probably should have."""
    if seen.probable is None:
        return ""
    label, sureness = seen.probable
    words = ("clean", "wrong label", "foreign")
    bar = "".join(
        f'<i style="width:{chance:.1%};background:{KIND_COLOURS[kind]}"></i>'
        for kind, chance in zip(KINDS, seen.chances, strict=True)
    )
    told = " · ".join(f"{word} {chance:.0%}" for word, chance in zip(words, seen.chances, strict=True))
    return (
        '<div class="cf-bar"><div><b>verdict</b>'
        f"<span>if it is in a class: {escape(label)} ({sureness:.0%})</span></div>"
        f'<div class="cf-track">{bar}</div><div><span>{told}</span></div></div>'
    )


def _bars(seen: views.Inspection, cuts: Mapping[str, str]) -> str:
    """Each detector's rank as a bar: how many of all samples are less suspicious."""
    rows = []
    for r in seen.readings:
        colour = KIND_COLOURS["flag"] if r.flagged else "var(--st-gray-color, #8a94a0)"
        verdict = "flagged" if r.flagged else "not flagged"
        advice = f", suggests {escape(r.suggestion)}" if r.suggestion and r.suggestion != seen.given else ""
        rows.append(
            f'<div class="cf-bar"><div><b>{escape(r.slug)}</b><span>{verdict}{advice}</span></div>'
            f'<div class="cf-track"><i style="width:{r.rank:.1%};background:{colour}"></i></div>'
            f"<div><span>more suspicious than {r.rank:.1%} of all</span><span>score {r.score:.3g}"
            + ("" if r.chance is None else f" = chance {r.chance:.0%}")
            + "</span></div>"
            + (f"<div><span>cut: {escape(cuts[r.slug])}</span></div></div>" if r.slug in cuts else "</div>")
        )
    return (
        "<style>.cf-bar{font-size:.82rem;margin-bottom:.7rem}.cf-bar>div{display:flex;flex-wrap:wrap;"
        "justify-content:space-between;gap:0 .6rem}.cf-bar span{opacity:.75}.cf-track{height:.55rem;margin:.15rem 0;"
        "background:color-mix(in srgb,currentColor 12%,transparent);border-radius:3px;overflow:hidden}"
        ".cf-bar>.cf-track{flex-wrap:nowrap;justify-content:start;gap:0}.cf-track i{display:block;height:100%}</style>"
        + ("".join(rows) or "<p>Switch a detector on to see its scores.</p>")
    )

"""The pieces of the Compare page: linked maps, table, curves, agreement, overlaps, disagreement, noise, stability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from .. import comparison, exports, registry, views
from ..card import KINDS
from ..comparison import Contrast
from ..data import OOD
from ..figures import comparison as figures
from ..metrics.verdict import calibration_error, reliability, three_way
from ..spec import Cut, Spec
from ..study import Detection, Study
from . import cached
from .explore import PER_PAGE, hint, hover_texts, thinned
from .gallery import Tile, gallery
from .pickers import CUTS
from .scatter import Colours, MapEvent, inside, scatter_map
from .shell import begin, chart, keep, plain

MOST_MAPS = 4
MOST_BARS = 14
SIDES = {"any": "any noise", "mislabelled": "wrong labels", "ood": "foreign pictures"}
MODES = {
    "but": "Flagged by one, not by the other",
    "only": "Flagged by one alone",
    "exactly": "The bar picked in the chart",
    "rank": "Far more suspicious to one than to the other",
}
COLUMNS = {
    "detector": ("Detector", 160, ""),
    "auroc_any": ("AUC any", 78, "AUROC: chance that a noisy sample scores above a clean one; 0.5 is guessing."),
    "auroc_mislabelled": ("AUC wrong", 90, "AUROC: chance that a wrongly labelled sample scores above a clean one."),
    "auroc_ood": ("AUC foreign", 96, "AUROC: chance that a foreign picture scores above any other sample."),
    "ap_any": ("Avg. prec.", 84, "Precision averaged over all cuts, any noise; guessing gives the share of noise."),
    "precision": ("Precision", 78, "Share of the flagged samples that are noisy."),
    "recall": ("Recall", 62, "Share of the noisy samples that are flagged."),
    "f1": ("F1", 62, "Harmonic mean of precision and recall."),
    "balanced_accuracy": ("Balanced", 82, "Balanced accuracy: mean of recall and clean kept; 0.5 is guessing."),
    "clean_kept": ("Clean kept", 86, "Share of the clean samples that are not flagged."),
    "agreement": ("Agreement", 92, "Mean rank correlation with the other detectors that are on, -1 to 1."),
    "flagged": ("Flagged", 76, "How many samples its cut flags."),
    "seconds": ("Seconds", 70, "How long the detector itself took; features, neighbours and probe not included."),
}


def name_of(slug: str) -> str:
    """The usual name of a detector."""
    return str(registry.get("detector", slug).card.name)


def offer_second(spec: Spec, study: Study) -> None:
    """With fewer than two detectors on there is nothing to compare: say so, and offer one."""
    on = [c.detector for c in spec.detectors]
    slug = comparison.second(study, on)
    st.info("Comparing takes two detectors at least; switch another one on.", icon=":material/compare_arrows:")
    if slug is None:
        return

    def add() -> None:
        st.session_state[f"on-{slug}"] = True
        keep(replace(spec, detectors=(*spec.detectors, Cut(slug))))

    st.button(f"Add {name_of(slug)}", key="add-second", type="primary", icon=":material/add:", on_click=add)
    st.caption(plain(registry.get("detector", slug).card.summary))


def pick_maps(spec: Spec) -> Spec:
    """Which detectors get a map, where more are on than fit."""
    on = [c.detector for c in spec.detectors]
    if len(on) <= MOST_MAPS:
        return replace(spec, compared="")
    before = [slug for slug in spec.compared.split(",") if slug in on][:MOST_MAPS] or on[:MOST_MAPS]
    held = st.session_state.get("compared", before)
    if not set(held) <= set(on):  # one of them was switched off
        st.session_state["compared"] = [slug for slug in held if slug in on]
    chosen = st.multiselect(
        f"Maps of (at most {MOST_MAPS})",
        on,
        key=begin("compared", before),
        format_func=name_of,
        max_selections=MOST_MAPS,
        placeholder=f"the first {MOST_MAPS} that are on",
    )
    return replace(spec, compared=",".join(chosen) if chosen != on[:MOST_MAPS] else "")


def maps(
    spec: Spec, study: Study, detections: Sequence[Detection], votes: views.Votes, *, kind: str, focus: int | None
) -> tuple[MapEvent, NDArray[np.bool_] | None]:
    """One map a detector, coloured by its suspicion, with one camera and one selection; and what that selects."""
    if not study.can_map():
        st.info("No pictures and no features, so there are no maps; all that follows works without.")
        return MapEvent(None, None), None
    wanted = [slug for slug in spec.compared.split(",") if slug]
    shown = [d for d in detections if d.slug in wanted] if wanted else list(detections[:MOST_MAPS])
    xy, event = study.map(kind), MapEvent(None, None)
    drawn = thinned(study, shown, votes.count > 0, spec.seed, max(1, len(shown)))
    width = 2 if len(shown) == MOST_MAPS else max(1, len(shown))
    for start in range(0, len(shown), width):
        for column, found in zip(st.columns(width), shown[start : start + width], strict=False):
            look = views.colouring(study, detections, votes, found.slug)
            with column:
                st.markdown(f"**{plain(name_of(found.slug))}**")
                seen = scatter_map(
                    xy,
                    Colours(look.values, look.names, look.colours, "Suspicion rank", span=(0, 1)),
                    marked=votes.flags[found.slug],
                    shown=drawn.shown,
                    rest=True,
                    hover=hover_texts(study, drawn.shown),
                    sheets=cached.sheets(study),
                    key=f"map-{found.slug}",
                    height=400,
                    focus=focus,
                    outline=views.read_outline(spec.outline),
                    group="compare",
                )
            event = MapEvent(seen.clicked if event.clicked is None else event.clicked, seen.polygon)
    within = None if event.polygon is None else inside(xy, event.polygon)
    words = "Move, zoom or draw an outline on one map, and the others follow."
    if within is not None:
        words = f"{int(within.sum()):,} samples are selected; the gallery below lists only these. Escape clears."
    st.caption(f"{words} {drawn.words}".strip())
    return event, within


def table(study: Study, detections: Sequence[Detection], votes: views.Votes) -> None:
    """Figures of every detector, sortable, and as a CSV file."""
    rows = comparison.table(study, detections, votes.flags)
    head, save = st.columns([6, 1], vertical_alignment="bottom")
    head.markdown("##### Figures")
    save.download_button(
        "CSV",
        data=lambda: exports.to_csv(rows),
        file_name="chaffinch-comparison.csv",
        mime="text/csv",
        icon=":material/download:",
        width="stretch",
        help="All figures of this table, and those per kind of noise that it leaves out.",
        on_click="ignore",
    )
    shown = rows.assign(detector=rows["detector"].map(name_of)).astype({"flagged": int})
    formats = {"flagged": "localized", "seconds": "%.2f"}
    st.dataframe(
        shown,
        hide_index=True,
        column_order=[name for name in COLUMNS if name in shown],
        column_config={
            name: st.column_config.NumberColumn(title, width=width, help=words, format=formats.get(name, "%.3f"))
            for name, (title, width, words) in COLUMNS.items()
            if name != "detector"
        }
        | {"detector": st.column_config.TextColumn("Detector", width=COLUMNS["detector"][1], pinned=True)},
    )
    if study.truth is None:
        st.caption("The truth is not known here, so no figure says who is right; agreement and stability are hints.")
    with st.expander("What other cuts would cost"):
        _cuts(study, detections)
    for slug, problem in votes.problems.items():
        st.warning(plain(f"{slug}: {problem}"), icon=":material/warning:")


def _cuts(study: Study, detections: Sequence[Detection]) -> None:
    rows = comparison.cut_costs(study, detections)
    names = {"cut": "Cut", "share": "Share of all"} | {name: title for name, (title, _, _) in COLUMNS.items()}
    percent = st.column_config.NumberColumn
    st.dataframe(
        rows.assign(detector=rows["detector"].map(name_of), cut=rows["cut"].map(CUTS)),
        hide_index=True,
        column_config={
            name: percent(names[name], format="percent")
            for name in ("share", "precision", "clean_kept", "recall", "f1")
            if name in rows
        }
        | {
            "detector": names["detector"],
            "cut": names["cut"],
            "flagged": percent(names["flagged"], format="localized"),
        },
    )
    if study.truth is None:
        st.caption("Precision and clean kept are what the verdict expects, since the truth is not known.")


def curves(spec: Spec, study: Study, detections: Sequence[Detection], votes: views.Votes) -> Spec:
    """ROC and precision-recall curves against the truth, where it is known."""
    if study.truth is None:
        return spec
    kind = study.truth.kind
    st.markdown("##### How well each ranks the noise")
    first = spec.curves if spec.curves in SIDES else "any"
    chosen = st.segmented_control(
        "Noise that is looked for",
        list(SIDES),
        key=begin("curves", first, list(SIDES)),
        format_func=SIDES.__getitem__,
        label_visibility="collapsed",
    )
    find = chosen or first
    lines = comparison.curves(kind, detections, votes.flags, find)
    if not lines:
        st.info(f"Nothing to draw: the truth knows no {SIDES[find]}, or nothing else.", icon=":material/info:")
        return replace(spec, curves=find)
    base = comparison.chance(kind, find)
    left, right = st.columns(2)
    with left:
        roc = figures.curves(
            [(f"{name_of(c.slug)} ({c.auroc:.3f})", *c.roc, c.at_roc) for c in lines],
            x="share of the others flagged", y="share of the noise caught", chance=(np.array([0, 1]), np.array([0, 1])),
        )  # fmt: skip
        st.markdown("**ROC**, area in brackets", help="The nearer to the upper left corner the better.")
        chart(roc, "roc")
    with right:
        recall = figures.curves(
            [(f"{name_of(c.slug)} ({c.ap:.3f})", *c.recall, c.at_recall) for c in lines],
            x="share of the noise caught (recall)", y="share of flags that are right (precision)",
            chance=(np.array([0, 1]), np.array([base, base])),
        )  # fmt: skip
        st.markdown("**Precision and recall**, average precision in brackets", help="The nearer to the top the better.")
        chart(recall, "recall")
    st.caption("Dots: where each cuts now (the sidebar moves them). Grey: guessing.")
    return replace(spec, curves=find)


def agreement(detections: Sequence[Detection], votes: views.Votes) -> None:
    """Heat map of how far every two detectors agree, in their order or in their flags."""
    st.markdown("##### Do they agree?")
    what = st.segmented_control(
        "Agreement in",
        ["order", "flags"],
        key=begin("agreement", "order"),
        format_func={"order": "in their order", "flags": "in their flags"}.__getitem__,
        label_visibility="collapsed",
        help="Order: Spearman's rank correlation of the scores, -1 to 1. Flags: of the samples that either flags, "
        "the share that both flag (Jaccard), 0 to 1.",
    )
    names = [name_of(d.slug) for d in detections]
    if what == "flags":
        chart(figures.agreement(comparison.flag_overlap(votes.flags), names, low=0), "agreement-flags")
        st.caption("Of the samples that either flags, the share that both flag. 1: the same flags.")
    else:
        chart(figures.agreement(comparison.rank_agreement(detections), names), "agreement-order")
        st.caption("Rank correlation of the scores. 1: the same order, 0: unrelated, -1: reversed.")


def overlaps(spec: Spec, study: Study, votes: views.Votes) -> Spec:
    """Who flags the same samples; a click on a bar lists exactly those."""
    st.markdown("##### Who flags the same samples?")
    found = comparison.overlaps(votes.flags, None if study.truth is None else study.truth.kind)
    if not found:
        st.info("No detector flags anything with its present cut.", icon=":material/filter_alt_off:")
        return spec
    bars = [(o.slugs, o.count, o.kinds) for o in found[:MOST_BARS]]
    sizes = {slug: int(flags.sum()) for slug, flags in votes.flags.items()}
    figure = figures.upset(bars, sizes, {slug: name_of(slug) for slug in sizes})
    picked = chart(figure, "overlaps", on_select="rerun", selection_mode="points")
    rest = found[MOST_BARS:]
    more = f" Left out: {len(rest)} rarer, with {sum(o.count for o in rest):,} samples in all." if rest else ""
    st.caption(f"Each bar: samples that the dotted detectors flag and no other. A click lists them below.{more}")
    points = picked["selection"]["points"] if picked else []
    key = points[0].get("customdata") if points else None
    if key != st.session_state.get("_bar") and isinstance(key, str):
        spec = replace(spec, contrast=f"exactly:{key}")
        st.session_state["contrast-mode"] = "exactly"
    st.session_state["_bar"] = key
    return spec


def disagreement(
    spec: Spec,
    study: Study,
    detections: Sequence[Detection],
    votes: views.Votes,
    within: NDArray[np.bool_] | None,
    focus: int | None,
) -> tuple[Spec, int | None]:
    """The samples on which detectors disagree; returns the view and a clicked position."""
    on = [d.slug for d in detections]
    st.markdown("##### Where they disagree")
    contrast = _contrast(Contrast.parse(spec.contrast, on), on)
    order = comparison.disagreement(contrast, detections, votes.flags, within)
    pages = max(1, -(-len(order) // PER_PAGE))
    listed = (study.key, str(contrast), len(order))
    if st.session_state.setdefault("_contrasted", listed) != listed:
        st.session_state["_contrasted"], st.session_state["contrast-page"] = listed, 1
    left, right = st.columns([5, 1], vertical_alignment="bottom")
    left.caption(plain(_told(contrast, len(order), within is not None)))
    page = 1
    if pages > 1:
        begin("contrast-page", 1, range(1, pages + 1))
        page = int(right.number_input(f"Page of {pages:,}", 1, pages, key="contrast-page"))
    spec = replace(spec, contrast=str(contrast))
    if not len(order):
        st.info("Nothing matches. Choose another pair, or another list.", icon=":material/filter_alt_off:")
        return spec, None
    by_slug = {d.slug: d for d in detections}
    those, others = contrast.sides(on)
    judging = [by_slug[slug] for slug in (*those, *others)]
    tiles = judged_tiles(study, order[(page - 1) * PER_PAGE : page * PER_PAGE], judging)
    return spec, gallery(tiles, cached.sheets(study), key="contrast-gallery", selected=focus)


def judged_tiles(study: Study, positions: NDArray[np.int64], judging: Sequence[Detection]) -> list[Tile]:
    """Thumbnails with the given label, what the first detector that has an opinion suggests, and the kind if known."""
    return [
        Tile(
            i,
            study.observed.classes[study.observed.labels[i]],
            hint(study, i, judging) or ("" if study.observed.images is not None else study.name_of(i)),
            "" if study.truth is None else KINDS[study.truth.kind[i]],
        )
        for i in positions.tolist()
    ]


def _contrast(now: Contrast, on: Sequence[str]) -> Contrast:
    """Choose the disagreement."""
    modes = [mode for mode in MODES if mode != "exactly" or mode == now.mode]
    pairs = [slug for slug in now.slugs if slug in on] + [slug for slug in on if slug not in now.slugs]
    a, b, c = st.columns([2, 2, 2], vertical_alignment="bottom")
    mode = a.selectbox("List", modes, key=begin("contrast-mode", now.mode, modes), format_func=MODES.__getitem__)
    if mode == "exactly":
        b.markdown(plain("Flagged by " + " and ".join(name_of(slug) for slug in now.slugs) + ", by no other"))
        return now
    one = b.selectbox(
        "By" if mode == "rank" else "Flagged by", on, key=begin("contrast-a", pairs[0], on), format_func=name_of
    )
    if mode == "only":
        return Contrast(mode, (one,))
    rest = [slug for slug in on if slug != one]
    start = pairs[1] if pairs[1] in rest else rest[0]
    words = "than by" if mode == "rank" else "but not by"
    other = c.selectbox(words, rest, key=begin("contrast-b", start, rest), format_func=name_of)
    return Contrast(mode, (one, other))


def _told(contrast: Contrast, count: int, selected: bool) -> str:
    """What the gallery lists, in words."""
    order = "the widest gap between their ranks first"
    return f"{count:,} samples{' of the selection' if selected else ''}, {order}"


def honesty(study: Study) -> None:
    """How right the verdict is, and whether its probabilities can be taken at their word; where the truth is known."""
    if study.truth is None or not study.knows_verdict():
        return
    verdict, kind = study.verdict(), study.truth.kind
    st.markdown(
        "##### Is the verdict honest?",
        help="Of all samples to which it gives a probability of 80 %, about 80 % should be so: then the line runs "
        "along the diagonal.",
    )
    left, right = st.columns([3, 2], gap="medium")
    with left:
        present = {name: i for i, name in enumerate(KINDS) if (kind == i).any()}
        lines = {name: reliability(verdict.proba[:, i], kind == i) for name, i in present.items()}
        chart(figures.reliability(lines), "reliability")
    with right:
        found = three_way(verdict.proba, kind)
        error = calibration_error(verdict.proba.max(axis=1), verdict.kinds == kind)
        rows = [(f"F1, {figures.KIND_WORDS[name]}", value) for name, value in found["f1"].items() if value is not None]
        rows += [("mean of these (macro-F1)", found["macro_f1"])]
        st.table(pd.DataFrame([(name, f"{value:.3f}") for name, value in rows], columns=["Verdict", ""]), border=False)
        st.caption(
            f"On average its certainty is {error:.1%} away from how often it is right. It believes that "
            f"{verdict.rates['mislabelled']:.1%} are wrongly labelled and {verdict.rates['ood']:.1%} foreign; "
            f"{np.mean(kind == 1):.1%} and {np.mean(kind == OOD):.1%} are."
        )


def noise(study: Study) -> None:
    """Which class is filed under which: as estimated, and as it is where that is known."""
    classes, given = study.observed.classes, study.observed.labels
    shown: dict[str, NDArray[np.float64]] = {}
    verdict = study.verdict() if study.knows_verdict() else None
    if verdict is not None:
        shown["Estimated"] = comparison.noise_matrix(given, verdict.labels, verdict.proba[:, 2], len(classes))
    if study.truth is not None:
        ood = study.truth.kind == OOD
        shown["True"] = comparison.noise_matrix(given, study.truth.labels, ood, len(classes))
    if not shown:
        return
    st.markdown(
        "##### Which class is filed under which?",
        help="Each row is a given label and adds up to 100 %. Grey: the label is right. Counts are under the pointer.",
    )
    top = max(figures.largest(matrix) for matrix in shown.values())
    for column, (title, matrix) in zip(st.columns(2), shown.items(), strict=False):
        with column:
            st.markdown(f"**{title}**")
            chart(figures.noise(matrix, classes, top=top), f"noise-{title}")


def stability(spec: Spec, study: Study, detections: Sequence[Detection], votes: views.Votes) -> None:
    """How much each detector's result changes when it sees only a part of the samples; measured on request."""
    st.markdown(
        "##### How stable is each?",
        help="Each runs again on three random 80 % of the samples. A result that changes much with the sample is not "
        "to be trusted, whether the truth is known or not.",
    )
    slugs = [d.slug for d in detections]
    known = comparison.stability_known(study, slugs)
    ready = [d for d in detections if d.slug in known]
    if len(known) < len(slugs) and st.button("Measure stability", key="measure-stability", icon=":material/repeat:"):
        bar = st.progress(0.0, text="Computing what the detectors share …")

        def report(what: str, share: float) -> None:
            bar.progress(share, text=f"Running {what} …")

        found, problems = comparison.stability(study, detections, votes.flags, spec.detectors, report=report)
        bar.empty()
    else:
        found, problems = comparison.stability(study, ready, votes.flags, spec.detectors)
    for slug, problem in problems.items():
        st.warning(plain(f"{slug}: {problem}"), icon=":material/block:")
    if found:
        _steady(found)
    else:
        st.caption("Runs each detector on three random 80 % of the samples; the result is kept.")


def _steady(found: Sequence[comparison.Stability]) -> None:
    rows: list[dict[str, Any]] = []
    for s in found:
        (order, order_sd), (flags, flags_sd) = comparison.spread(s.ranks), comparison.spread(s.flags)
        row = {"detector": name_of(s.slug), "order": order, "order_sd": order_sd, "flags": flags, "flags_sd": flags_sd}
        rows.append(row)
    number = st.column_config.NumberColumn
    st.dataframe(
        pd.DataFrame(rows),
        hide_index=True,
        column_config={
            "detector": st.column_config.TextColumn("Detector", pinned=True),
            "order": number("Same order", help="Mean rank correlation with the full run; 1 = the same.", format="%.3f"),
            "order_sd": number("±", help="Standard deviation over the three subsets.", format="%.3f"),
            "flags": number(
                "Same flags", help="Mean share of either run's flags that both raise; 1 = the same.", format="%.3f"
            ),
            "flags_sd": number("± ", help="Standard deviation over the three subsets.", format="%.3f"),
        },
    )

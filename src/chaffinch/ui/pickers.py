"""The sidebar: widgets made from the registry and the data; together they are a Spec."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import streamlit as st

from .. import registry, views
from ..base.errors import InputError
from ..base.text import shown
from ..data.archives import unpack
from ..data.fashion_web import FLIPS, Draw
from ..data.sources import recognise
from ..spec import RULES, Cut, Spec
from ..study import OWN_FEATURES, Detection, Study, default_detectors, training_runs
from ..workspace import Workspace
from . import cached
from .shell import begin, keep, plain

BUNDLED = "fashion-web"
LISTED = 50
"""Classes, and warnings, that the sidebar names."""


def dataset_and_encoder(spec: Spec) -> Spec:
    """Pick the dataset, its noise, and the encoder."""
    with st.sidebar:
        st.markdown("#### Dataset")
        name = _dataset(spec.dataset)
        usual = cached.usual_encoder(name)
        alone = usual == OWN_FEATURES  # there are no pictures that an encoder could look at
        spec = replace(spec, encoder="") if alone else spec
        chosen = spec.encoder
        if name != spec.dataset and usual != cached.usual_encoder(spec.dataset):
            st.session_state.pop("encoder", None)  # pictures of another kind, so the choice begins anew
            chosen = ""
        names = cached.embedding_names()
        own = [] if name.startswith(BUNDLED) else [OWN_FEATURES]
        options = list(dict.fromkeys([*names, *own, chosen or usual]))  # an unknown one is explained, not hidden
        help = "What turns pictures into features; type to search. The page Losses puts two of them side by side."
        if alone:
            options, help = [usual], "An encoder turns pictures into features; these data have come with features only."
        encoder = st.selectbox(
            "Encoder",
            options,
            key=begin("encoder", chosen or usual, options),
            format_func=lambda slug: "features in the data" if slug == OWN_FEATURES else slug,
            help=help,
        )
        if encoder in names:
            st.caption(plain(names[encoder]))
    if name != spec.dataset or encoder != (spec.encoder or usual):
        encoder = "" if encoder == usual else encoder
        beside = spec.beside_outline if name == spec.dataset else ""
        spec = replace(
            spec, dataset=name, encoder=encoder, sample="", label="", outline="", beside_outline=beside, page=1,
            run=spec.run if name == spec.dataset else "",
        )  # fmt: skip
        if name:
            keep(spec)
            st.rerun()  # what was drawn above speaks of the dataset before
    if not name:
        st.info("Enter the path of your data in the sidebar, or drop a zip archive there: a folder for each class.")
        st.stop()
    return spec


def _dataset(current: str) -> str:
    sources = {"bundled": "fashion-web (bundled)", "own": "Data of your own"}
    bundled = current.partition(":")[0] == BUNDLED
    source = st.selectbox(
        "Dataset",
        list(sources),
        key=begin("source", "bundled" if bundled else "own"),
        format_func=sources.__getitem__,
        label_visibility="collapsed",
    )
    if source == "own":
        return _own("" if bundled else current)
    draw = Draw()
    with contextlib.suppress(InputError):  # the page explains what is wrong with it; a new draw mends it
        draw = Draw.parse(current.partition(":")[2] if bundled else "")
    with st.expander(f"Noise: {draw.noise:.0%}, {draw.ood:.0%} of it foreign"), st.form("draw", border=False):
        noise = st.slider("Noisy pictures", 0, 100, round(draw.noise * 100), 5, format="%d%%")
        ood = st.slider("of them out-of-distribution", 0, 100, round(draw.ood * 200) // 2, format="%d%%")
        flips = st.selectbox("Wrong labels are", FLIPS, index=FLIPS.index(draw.flips))
        seed = int(st.number_input("Seed of the draw", 0, 2**31 - 1, draw.seed))
        if st.form_submit_button("Draw again", width="stretch"):
            kept = draw.ood if ood == round(draw.ood * 200) // 2 else ood / 100
            return str(replace(draw, noise=noise / 100, ood=kept, flips=flips, seed=seed))
    return current if bundled else BUNDLED


def _own(current: str) -> str:
    """A path to type, or an archive to drop, which then stands there as a path."""
    place = st.container()  # the archive is unpacked first, since it fills the field above it
    dropped = st.file_uploader(
        "or drop a zip archive",
        "zip",
        key="archive",
        help="With a sub-folder of pictures for each class, or a table beside its pictures. It is unpacked into the "
        "workspace of chaffinch.",
    )
    if dropped is not None and st.session_state.get("_unpacked") != dropped.file_id:
        st.session_state["_unpacked"] = dropped.file_id
        try:
            st.session_state["file"] = unpack(dropped, Workspace().folder("archives"))
        except InputError as error:
            st.error(plain(str(error)), icon=":material/error:")
    path = current.partition(":")[2]
    return recognise(
        place.text_input(
            "Folder or file",
            key=begin("file", path if current and recognise(path) == current else current),
            placeholder="/path/to/pictures",
            help="A folder with a sub-folder for each class; a table (.csv, .parquet) with label and image; arrays "
            "(.npz); or a folder written by save_to_disk. 'chaffinch detect --help' says what each may hold.",
        ).strip()
    )


def about(study: Study) -> None:
    """What was found in the dataset: where it comes from, its classes, and what was left out."""
    dataset = study.dataset
    if told := "; ".join(filter(None, (dataset.note, _sight(study)))):
        st.sidebar.caption(plain(told))
    if not dataset.name.startswith(BUNDLED):
        counts = np.bincount(study.observed.labels, minlength=len(study.observed.classes))
        with st.sidebar.expander(_count(len(counts), "class", "classes")):
            largest = np.argsort(-counts, kind="stable")[:LISTED].tolist()
            st.caption(_listed([f"{study.observed.classes[c]}: {counts[c]:,}" for c in largest], len(counts)))
    if troubles := (*dataset.warnings, *dataset.undecoded):
        with st.sidebar.expander(_count(len(troubles), "warning", "warnings"), icon=":material/warning:"):
            st.caption(_listed(troubles[:LISTED], len(troubles)))
    if study.advice:
        st.sidebar.info(plain(study.advice), icon=":material/lightbulb:")
    if study.encoder == OWN_FEATURES:
        st.sidebar.caption("The features that came with the data are used; no encoder is needed.")


def _sight(study: Study) -> str:
    """What the encoder makes of the pictures before it looks at them, if anything."""
    images = study.observed.images
    if images is None or study.encoder == OWN_FEATURES:
        return ""
    channels, *size = study.card().get("sizes", {}).get("shape") or [0]
    if not size or [channels, *size] == [1 if images.ndim == 3 else 3, *images.shape[1:3]]:
        return ""
    return f"{study.encoder} sees pictures in {'grey' if channels == 1 else 'colour'} at {size[1]} × {size[0]}"


def _count(number: int, one: str, more: str) -> str:
    return f"{number:,} {one if number == 1 else more}"


def _listed(lines: Sequence[str], total: int) -> str:
    """One line each, as markdown, and how many more there are."""
    rest = [f"… and {total - len(lines):,} more"] if total > len(lines) else []
    return "  \n".join(plain(line) for line in [*map(shown, lines), *rest])


GROUPS = {
    "Find wrong labels": {"mislabelled"},
    "Find foreign pictures": {"ood"},
    "Find both": {"mislabelled", "ood"},
}
CUTS = {
    "rate": "as many as there is noise",
    "own": "the method's own rule",
    "mixture": "upper part of two",
    "contradiction": "where it would relabel",
    "budget": "a share of all",
    "score": "above a score",
}


def awaits_verdict(study: Study) -> bool:
    """Is there a verdict to come? Where cuts follow its estimate, flags have to wait for it."""
    refused = f"{study.key}-verdict" in st.session_state.get("_refused", {})
    return study.features is not None and not refused and not study.knows_verdict()


def has_verdict(study: Study) -> bool:
    """Is there a verdict, now or soon? Not without features, nor where it was refused."""
    return awaits_verdict(study) or study.knows_verdict()


def detectors(spec: Spec, study: Study) -> Spec:
    """A switch for each detector, those that are on first, each with the cut it makes."""
    spec = _begun(spec, study)
    cuts = {c.detector: c for c in spec.detectors}
    every = registry.methods("detector")
    on = [slug for slug in every if st.session_state.get(f"on-{slug}", slug in cuts)]
    chosen: list[Cut] = []
    with st.sidebar:
        st.markdown("#### Detectors")
        for slug in on:
            if _switch(slug, study, slug in cuts):
                cut = cuts.get(slug, Cut(slug))
                ready = study.knows(slug) and not awaits_verdict(study)
                chosen.append(_cut(cut, study.detect(slug), study) if ready else cut)
        votes = spec.votes
        if len(chosen) > 1:
            votes = st.slider(
                "Flagged when at least … agree",
                1,
                len(chosen),
                key=begin("votes", min(spec.votes, len(chosen)), range(1, len(chosen) + 1)),
                help="1: any of the detectors that are on; more: only where they agree.",
            )
        for title, finds in GROUPS.items():
            rest = [slug for slug, cls in every.items() if slug not in on and cls.card.finds == finds]
            if rest:
                with st.expander(title):
                    for slug in rest:
                        _switch(slug, study, False)
        run = _record(spec, study)
    spec = replace(spec, detectors=tuple(chosen), votes=votes)
    if run != spec.run:
        keep(replace(spec, run=run))
        st.rerun()  # what detectors read is another study
    return spec


def _begun(spec: Spec, study: Study) -> Spec:
    """Another dataset begins with the detectors that can run on it, unless somebody has chosen some."""
    dataset, usual = st.session_state.get("_usual", ("", Spec().detectors))
    if dataset == spec.dataset:
        return spec
    here = default_detectors(study)
    st.session_state["_usual"] = spec.dataset, here
    if spec.detectors != usual:
        return spec
    for cut in {*usual, *here}:
        st.session_state[f"on-{cut.detector}"] = cut in here
    return replace(spec, detectors=here)


def _record(spec: Spec, study: Study) -> str:
    """Whose record of a training detectors read, where there is a choice."""
    options = ["", *training_runs(study.workspace, study.dataset.digest)]
    if len(options) == 1:
        return ""
    return st.selectbox(
        "Record of a training",
        options,
        key=begin("run", spec.run if spec.run in options else "", options),
        format_func=lambda name: name or "a quick head on the features",
        help="Some detectors read what a classifier said of every picture while it learnt. `chaffinch train` leaves "
        "such a record; the inspector shows the course of a picture in it.",
    )


def _switch(slug: str, study: Study, on: bool) -> bool:
    """One that cannot run here says what it needs, and can be switched off only."""
    card, missing, key = registry.get("detector", slug).card, study.lacking(slug), begin(f"on-{slug}", on)
    help = f"**{slug}** {card.summary} *Fails when:* {card.fails_when}"
    if missing:
        help = f"*Not here:* {plain(str(missing))}.  \n{help}"
    if disabled := missing is not None and not st.session_state[key]:
        st.session_state[key] = False  # set here, or else Streamlit undoes the click that switched it off
    return st.toggle(card.name, key=key, help=help, disabled=disabled)


def _cut(cut: Cut, found: Detection, study: Study) -> Cut:
    """Where the detector cuts, and what that costs."""
    slug = cut.detector
    rules = [rule for rule in CUTS if rule != "contradiction" or found.suggestions is not None]
    current = "budget" if cut.budget is not None else "score" if cut.score is not None else cut.rule
    with st.container(border=True, key=f"cut-{slug}"):
        rule = st.selectbox(
            f"Cut of {slug}",
            rules,
            key=begin(f"rule-{slug}", current if current in rules else RULES[0], rules),
            format_func=CUTS.__getitem__,
            label_visibility="collapsed",
            help="Where suspicion becomes a flag. As many as there is noise: by the verdict's estimate. Upper part of "
            "two: a mixture of two bells on the scores. Where it would relabel: it suggests another label.",
        )
        if rule == "budget":
            start = round((float(found.own.mean()) if cut.budget is None else cut.budget) * 100, 1)
            share = st.slider(
                f"Budget of {slug}", 0.0, 100.0, step=0.1, format="%.1f%%",
                key=begin(f"budget-{slug}", start), label_visibility="collapsed",
            )  # fmt: skip
            cut = Cut(slug, budget=round(share / 100, 4))
        elif rule == "score" and found.scores.min() < found.scores.max():
            low, high = float(found.scores.min()), float(found.scores.max())
            start = found.own_threshold if cut.score is None else min(max(cut.score, low), high)
            value = st.slider(
                f"Score of {slug}", low, high, step=(high - low) / 500, format="%.3g",
                key=begin(f"score-{slug}-{study.key[:6]}", start), label_visibility="collapsed",
            )  # fmt: skip
            cut = Cut(slug, score=max(low, float(f"{value:.6g}")))
        else:
            cut = Cut(slug, rule=rule if rule in RULES else RULES[0])
        try:
            st.caption(_cost(views.cost(study, found.flags(cut))))
        except InputError as error:
            st.caption(plain(str(error)))
        if note := found.info.get("note"):
            st.caption(f":material/info: {plain(note)}")
    return cut


def _cost(cost: views.Cost) -> str:
    """What a cut flags, and how much of that is wrong, in words."""
    told = f"flags {cost.flagged:,} ({cost.share:.1%})"
    if cost.precision is None:
        return told
    source = "" if cost.known else "by the verdict, about "
    kept = "" if cost.kept is None else f", {cost.kept:.0%} of the clean ones stay"
    return f"{told}: {source}{cost.precision:.0%} of them noisy{kept}"

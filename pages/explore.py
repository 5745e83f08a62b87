"""What is in this dataset, and what looks wrong?"""

from dataclasses import replace

import streamlit as st

from chaffinch import views
from chaffinch.ui import cached, explore, jobs, pickers, shell

shell.enter("pages/explore.py")

with shell.explained():
    before = shell.current_spec()
    spec = pickers.dataset_and_encoder(before)
    study = cached.study(spec)
    pickers.about(study)
    if not study.has_features():
        shell.keep(spec)
        st.subheader("These pictures have to be embedded first")
        st.caption("This happens once for a draw and an encoder; the result is kept.")
        jobs.prepare(study, spec)
        st.stop()
    spec = pickers.detectors(spec, study)
    known = explore.known_detections(study, spec.detectors)
    found = list(known.values())
    votes = views.vote(len(study), found, spec.detectors, spec.votes)
    verdict = explore.known_verdict(study)
    focus = study.position(spec.sample)

    top = st.container()
    left, right = st.columns([3, 2], gap="medium")
    with left:
        spec = explore.map_controls(spec, study)
        kind = spec.map if study.has_map(spec.map) or not study.can_map() else "pca"
        event, within = explore.draw_map(spec, study, found, votes, kind=kind, focus=focus, verdict=verdict)
        if kind != spec.map:
            st.caption("PCA is shown while UMAP is being computed.")
            jobs.prepare(study, spec)
        explore.map_footer(study, kind, focus)
        spec = replace(spec, outline=views.spell_outline(event.polygon))
    with top:
        explore.strip(study, votes, within)
        explore.verdict_strip(verdict, within)
    with right:
        beside = st.container()
        spec, picked = explore.gallery_panel(spec, study, found, votes, within, focus, verdict)
        clicked = picked if event.clicked is None else event.clicked
        with beside:
            if focus is not None:
                closed, near = explore.inspector(study, views.inspect(study, focus, found, votes, verdict))
                spec = replace(spec, sample="") if closed else spec
                clicked = near if near is not None else clicked
    if clicked is not None:
        spec = replace(spec, sample=study.name_of(clicked))
    shell.keep(spec)
    if spec.sample != before.sample:
        st.rerun()
    explore.compute_missing(study, spec.detectors, known)

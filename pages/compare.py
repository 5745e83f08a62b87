"""Which detector should I believe?"""

from dataclasses import replace

import streamlit as st

from chaffinch import views
from chaffinch.ui import cached, compare, explore, jobs, pickers, shell

shell.enter("pages/compare.py")

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

    st.markdown("#### Which detector should I believe?")
    if len(found) > 1:
        spec = compare.pick_maps(spec)
        kind = spec.map if study.has_map(spec.map) or not study.can_map() else "pca"
        event, within = compare.maps(spec, study, found, votes, kind=kind, focus=focus)
        spec = replace(spec, outline=views.spell_outline(event.polygon))
        if kind != spec.map:
            st.caption("PCA is shown while UMAP is being computed.")
            jobs.prepare(study, spec)
        compare.table(study, found, votes)
        spec = compare.curves(spec, study, found, votes)
        left, right = st.columns([2, 3], gap="medium")
        with left:
            compare.agreement(found, votes)
        with right:
            spec = compare.overlaps(spec, study, votes)
        beside = st.container()
        spec, picked = compare.disagreement(spec, study, found, votes, within, focus)
        clicked = picked if event.clicked is None else event.clicked
        with beside:
            if focus is not None:
                closed, near = explore.inspector(study, views.inspect(study, focus, found, votes, verdict))
                spec = replace(spec, sample="") if closed else spec
                clicked = near if near is not None else clicked
        compare.noise(study)
        compare.honesty(study)
        compare.stability(spec, study, found, votes)
        if clicked is not None:
            spec = replace(spec, sample=study.name_of(clicked))
    elif len(spec.detectors) < 2:
        compare.offer_second(spec, study)
    shell.keep(spec)
    if spec.sample != before.sample:
        st.rerun()
    explore.compute_missing(study, spec.detectors, known)

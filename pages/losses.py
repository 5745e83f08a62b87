"""What does the training loss do to the map?"""

from dataclasses import replace

import streamlit as st

from chaffinch.ui import cached, explore, jobs, losses, pickers, shell, training

shell.enter("pages/losses.py")

with shell.explained():
    before = shell.current_spec()
    spec = pickers.dataset_and_encoder(before)
    study = cached.study(spec)
    pickers.about(study)
    if study.observed.images is None:
        shell.keep(spec)
        st.info("There are no pictures in this dataset for an encoder to see. Choose another one in the sidebar.")
        st.stop()
    if not study.has_features():
        shell.keep(spec)
        st.subheader("These pictures have to be embedded first")
        st.caption("This happens once for a draw and an encoder; the result is kept.")
        jobs.prepare(study, spec)
        training.section(spec, study)
        st.stop()
    spec = pickers.detectors(spec, study)
    focus = study.position(spec.sample)

    st.markdown("#### What does the training loss do to the map?")
    spec = losses.pick(spec, study)
    spec = explore.map_controls(spec, study)
    left, right = losses.sides(spec, study)
    both = losses.ready(left, right)
    spec, within, clicked = losses.maps(spec, left, right, focus)
    if focus is not None:
        closed, near = losses.inspector(both, focus)
        spec = replace(spec, sample="") if closed else spec
        clicked = near if near is not None else clicked
    if right is not None and right in both:
        losses.numbers(spec, left, right)
    losses.curves(left, right)
    if right is not None and right in both:
        picked = losses.differences(spec, left, right, within=within, focus=focus)
        clicked = picked if clicked is None else clicked
    picked = losses.pulled(left, right, focus)
    clicked = picked if clicked is None else clicked
    losses.formulas(left, right)
    if clicked is not None:
        spec = replace(spec, sample=study.name_of(clicked))
    shell.keep(spec)
    training.section(spec, study)
    if spec.sample != before.sample:
        st.rerun()
    for side in both:
        explore.compute_missing(side.study, spec.detectors, side.known)

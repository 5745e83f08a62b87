"""What becomes of each suspicious sample?"""

from dataclasses import replace

import streamlit as st

from chaffinch import reviews, views
from chaffinch.ui import cached, explore, jobs, pickers, review, shell

shell.enter("pages/review.py")

with shell.explained():
    before = shell.current_spec()
    spec = pickers.dataset_and_encoder(before)
    if not spec.dataset:
        st.info("Enter the path of an .npz archive in the sidebar: labels, and one of images, features, pred_probs.")
        st.stop()
    study = cached.study(spec)
    if not study.has_features():
        shell.keep(spec)
        st.subheader("These pictures have to be embedded first")
        st.caption("This happens once for a draw and an encoder; the result is kept.")
        jobs.prepare(study, spec)
        st.stop()
    pickers.about(study)
    spec = pickers.detectors(spec, study)
    known = explore.known_detections(study, spec.detectors)
    found = list(known.values())
    votes = views.vote(len(study), found, spec.detectors, spec.votes)
    verdict = explore.known_verdict(study)

    spec, together, who = review.head(spec, study, pickers.has_verdict(study))
    if not pickers.awaits_verdict(study):
        at = review.desk(study, found, verdict, who)
        order = reviews.queue(at.proba, at.codes, spec.queue, at.skipped)
        review.tell()
        review.progress(at)
        review.conflict(at)
        if together:
            review.many(at, order, spec.queue)
        elif (clicked := review.one(spec, at, found, votes, order)) is not None:
            spec = replace(spec, sample=study.name_of(clicked))
        st.divider()
        left, right = st.columns([2, 3], gap="medium")
        with left:
            review.recent(at)
        with right:
            review.lessons(at, votes)
        review.export(spec, at, found, votes)
        review.room(study)
    shell.keep(spec)
    if spec.sample != before.sample:
        st.rerun()
    explore.compute_missing(study, spec.detectors, known)

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
        checked = review.checked(spec, study)
        at = review.desk(study, found, verdict, who, checked)
        order = reviews.queue(at.proba, at.codes, spec.queue, at.skipped, at.urgency(spec.queue))
        review.tell()
        review.progress(at, spec.queue)
        review.conflict(at)
        if checked is None and spec.queue in reviews.CHECKED:
            st.caption("Looking for copies, leaks and odd pictures; the other queues are open meanwhile.")
        elif together:
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

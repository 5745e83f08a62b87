"""Is an accurate detection all you need? Six steps, told with results of our own."""

import streamlit as st

from chaffinch.ui import cached, lesson, shell, trial

shell.enter("pages/lesson.py")

with shell.explained():
    spec = shell.current_spec()
    st.title("Is an accurate detection all you need?")
    st.markdown(lesson.OPENING)
    found = cached.lesson_results()
    if found is None:
        st.info(lesson.NOTHING, icon=":material/hourglass:")
    else:
        lesson.contents()
        spec, view = lesson.choose(spec, found)
        shell.keep(spec)
        lesson.the_set(view)
        lesson.one_line(view)
        lesson.the_detector(view)
        lesson.the_surprise(view)
        lesson.the_culprits(view)
        lesson.the_alternation(view)
        lesson.numbers(view)
    trial.section()

"""The selection shared by maps of the same samples at different places: what counts, and when it is dropped."""

from types import SimpleNamespace

import numpy as np
import pytest

from chaffinch.ui import scatter
from chaffinch.ui.scatter import link

LEFT = np.array([[0, 0], [1, 1], [5, 5], [6, 6]], float)
RIGHT = LEFT[::-1].copy()
NEAR = [[-1, -1], [2, -1], [2, 2], [-1, 2]]


@pytest.fixture(autouse=True)
def session(monkeypatch):
    state = {}
    monkeypatch.setattr(scatter, "st", SimpleNamespace(session_state=state))
    return state


def ask(left=LEFT, right=RIGHT):
    return link("pair", {"left": left, "right": right}, {})


def draw(session, key, points, made):
    session.setdefault("left", {})
    session.setdefault("right", {})
    session[key] = {"outline": {"id": f"{key}{made}", "made": made, "points": points}}


def test_nothing_is_selected_at_first(session):
    found = ask()
    assert (found.key, found.within, found.held, found.newest) == (None, None, None, 0)


def test_the_newest_outline_counts_whatever_map_it_is_on(session):
    ask()
    draw(session, "left", NEAR, 5)
    found = ask()
    assert found.key == "left"
    assert found.within.tolist() == [True, True, False, False]
    draw(session, "right", NEAR, 9)
    found = ask()
    assert (found.key, found.newest) == ("right", 9)
    assert found.within.tolist() == [False, False, True, True]  # the same place, other samples
    draw(session, "left", [], 12)  # cleared on the other one
    assert ask().key is None
    assert ask().newest == 12


def test_it_stays_while_the_other_map_changes_and_goes_with_its_own(session):
    ask()
    draw(session, "left", NEAR, 5)
    assert ask().key == "left"
    found = ask(right=RIGHT + 1)
    assert found.key == "left"
    assert found.within.tolist() == [True, True, False, False]
    assert ask(left=LEFT * 2, right=RIGHT + 1).key is None
    assert ask().key is None, "it does not come back"


def test_a_link_selects_on_the_right(session):
    found = link("pair", {"left": LEFT, "right": RIGHT}, {"left": None, "right": np.array(NEAR, float)})
    assert found.key == "right"
    assert found.within.tolist() == [False, False, True, True]


def test_a_link_waits_for_a_map_that_is_not_ready(session):
    first = {"left": None, "right": np.array(NEAR, float)}
    assert link("pair", {"left": LEFT}, first).key is None
    session["left"] = {}
    assert link("pair", {"left": LEFT, "right": RIGHT}, first).key == "right"


def test_a_cleared_selection_does_not_come_back_from_the_link(session):
    first = {"left": None, "right": np.array(NEAR, float)}
    link("pair", {"left": LEFT}, first)
    draw(session, "left", [], 3)
    assert link("pair", {"left": LEFT, "right": RIGHT}, first).key is None

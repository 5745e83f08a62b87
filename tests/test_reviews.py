"""Decisions: none is lost, none overwrites another unseen, undo is exact; and what is learnt from them is right."""

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.reviews import (
    CHECKED,
    CHOICES,
    ENOUGH,
    Choice,
    Conflict,
    Reviews,
    advise,
    alike,
    coded,
    precision,
    progress,
    queue,
    recalibrate,
    suggest,
    wilson,
)


@pytest.fixture
def reviews(tmp_path) -> Reviews:
    return Reviews(tmp_path / "here" / "reviews.sqlite")


def said(reviews: Reviews, dataset: str = "d") -> dict[str, str]:
    """The decisions in force, in words."""
    return {k: str(s.decision) for k, s in reviews.states(dataset).items() if s.decision}


class TestDeciding:
    def test_nothing_is_there_before_the_first(self, reviews):
        assert reviews.states("d") == {}
        assert reviews.history("d", "a") == []
        assert not reviews.path.parent.exists(), "reading makes nothing"

    def test_a_decision_is_kept_with_who_when_and_why(self, reviews):
        before = time.time()
        reviews.decide("d", [Choice("a", "relabel", "bee")], " ann ", "it has stripes")
        d = Reviews(reviews.path).states("d")["a"].decision
        assert (d.choice, d.label, d.who, d.reason, str(d)) == (
            "relabel",
            "bee",
            "ann",
            "it has stripes",
            "relabel → bee",
        )

        assert before - 1 <= datetime.fromisoformat(d.at).timestamp() <= time.time() + 1

    def test_datasets_are_kept_apart(self, reviews):
        reviews.decide("d", [Choice("a", "keep")], "ann")
        reviews.decide("e", [Choice("a", "drop")], "ann")
        assert (said(reviews, "d"), said(reviews, "e")) == ({"a": "keep"}, {"a": "drop"})

    def test_a_later_decision_replaces_an_earlier_one_and_the_history_keeps_both(self, reviews):
        (first,) = reviews.decide("d", [Choice("a", "keep")], "ann")
        reviews.decide("d", [Choice("a", "drop", based_on=first.revision)], "bob")
        assert said(reviews) == {"a": "drop"}
        assert [(row["choice"], row["who"]) for row in reviews.history("d", "a")] == [("keep", "ann"), ("drop", "bob")]

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda: Choice("a", "burn"), "sample a: decide one of keep, relabel, drop, unsure, not 'burn'"),
            (lambda: Choice("a", "keep", "bee"), "a label belongs to 'relabel'"),
            (lambda: Choice("a", "relabel"), "a label belongs to 'relabel'"),
        ],
    )
    def test_bad_choices(self, make, message):
        with pytest.raises(InputError, match=message):
            make()

    def test_a_name_is_needed_and_each_sample_once(self, reviews):
        with pytest.raises(InputError, match="say who decides"):
            reviews.decide("d", [Choice("a", "keep")], "  ")
        with pytest.raises(InputError, match="twice"):
            reviews.decide("d", [Choice("a", "keep"), Choice("a", "drop")], "ann")
        assert said(reviews) == {}

    def test_a_damaged_and_a_newer_file_are_explained(self, reviews):
        reviews.path.parent.mkdir()
        reviews.path.write_bytes(b"not a database, by any means" * 50)
        for ask in (lambda: reviews.states("d"), lambda: reviews.decide("d", [Choice("a", "keep")], "ann")):
            with pytest.raises(InputError, match=r"reviews\.sqlite cannot be used .*move it away"):
                ask()
        reviews.path.unlink()
        reviews.decide("d", [Choice("a", "keep")], "ann")
        db = sqlite3.connect(reviews.path)
        db.execute("PRAGMA user_version = 2")
        db.close()
        with pytest.raises(InputError, match="newer chaffinch"):
            reviews.decide("d", [Choice("b", "keep")], "ann")

    def test_a_folder_that_cannot_be_made_is_explained(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(InputError, match=r"reviews\.sqlite cannot be used"):
            Reviews(tmp_path / "file" / "reviews.sqlite").decide("d", [Choice("a", "keep")], "ann")


class TestConflicts:
    def test_a_decision_based_on_an_old_state_is_refused_with_what_was_said(self, reviews):
        reviews.decide("d", [Choice("a", "relabel", "bee")], "bob")
        with pytest.raises(Conflict, match=r"sample a has changed.*bob decided relabel → bee at 2") as caught:
            reviews.decide("d", [Choice("a", "drop")], "ann")
        assert said(reviews) == {"a": "relabel → bee"}
        (now,) = caught.value.found
        reviews.decide("d", [Choice("a", "drop", based_on=now.revision)], "ann")
        assert said(reviews) == {"a": "drop"}

    def test_a_withdrawn_decision_is_a_change_too(self, reviews):
        (first,) = reviews.decide("d", [Choice("a", "keep")], "bob")
        reviews.undo("d", "bob")
        with pytest.raises(Conflict, match="it was withdrawn"):
            reviews.decide("d", [Choice("a", "drop", based_on=first.revision)], "ann")

    def test_together_means_all_or_nothing(self, reviews):
        reviews.decide("d", [Choice("b", "keep")], "bob")
        with pytest.raises(Conflict):
            reviews.decide("d", [Choice("a", "drop"), Choice("b", "drop"), Choice("c", "drop")], "ann")
        assert said(reviews) == {"b": "keep"}

    def test_of_many_at_once_exactly_one_wins(self, reviews):
        reviews.decide("d", [Choice("x", "keep")], "zoe")
        barrier, won, lost = threading.Barrier(8), [], []

        def go(name: str) -> None:
            barrier.wait()
            try:
                reviews.decide("d", [Choice("a", "drop")], name)
                won.append(name)
            except Conflict:
                lost.append(name)

        threads = [threading.Thread(target=go, args=(f"p{i}",)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        assert (len(won), len(lost)) == (1, 7)
        assert reviews.states("d")["a"].decision.who == won[0]


class TestUndo:
    def test_undo_restores_what_stood_before(self, reviews):
        (first,) = reviews.decide("d", [Choice("a", "keep")], "ann")
        (second,) = reviews.decide("d", [Choice("a", "relabel", "bee", based_on=first.revision)], "ann")
        (now,) = reviews.undo("d", "ann")
        assert now.decision == first.decision
        assert now.revision > second.revision
        (now,) = reviews.undo("d", "ann")
        assert now.decision is None
        assert reviews.undo("d", "ann") == []
        assert [row["undoes"] for row in reviews.history("d", "a")] == [None, None, second.revision, first.revision]

    def test_undo_is_of_ones_own(self, reviews):
        reviews.decide("d", [Choice("a", "keep")], "ann")
        reviews.decide("d", [Choice("b", "drop")], "bob")
        assert [s.sample for s in reviews.undo("d", "ann")] == ["a"]
        assert said(reviews) == {"b": "drop"}
        assert reviews.undo("d", "ann") == []

    def test_what_was_decided_together_is_undone_together(self, reviews):
        reviews.decide("d", [Choice("a", "keep")], "ann")
        reviews.decide("d", [Choice(s, "drop") for s in "bcd"], "ann")
        assert sorted(s.sample for s in reviews.undo("d", "ann")) == ["b", "c", "d"]
        assert said(reviews) == {"a": "keep"}

    def test_an_older_one_by_its_batch(self, reviews):
        (first,) = reviews.decide("d", [Choice("a", "keep")], "ann")
        reviews.decide("d", [Choice("b", "drop")], "ann")
        reviews.undo("d", "ann", first.decision.batch)
        assert said(reviews) == {"b": "drop"}
        assert reviews.undo("d", "ann", first.decision.batch) == [], "it is undone already"

    def test_what_others_decided_since_is_left_alone(self, reviews):
        a, _ = reviews.decide("d", [Choice("a", "drop"), Choice("b", "drop")], "ann")
        reviews.decide("d", [Choice("a", "keep", based_on=a.revision)], "bob")
        assert [s.sample for s in reviews.undo("d", "ann")] == ["b"]
        assert said(reviews) == {"a": "keep"}
        with pytest.raises(Conflict, match="bob decided keep"):
            reviews.undo("d", "ann", a.decision.batch)
        assert said(reviews) == {"a": "keep"}

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["keep", "relabel", "undo"])), max_size=14))
    def test_any_course_of_deciding_and_undoing_is_that_of_a_stack(self, tmp_path_factory, steps):
        """One person: the file agrees with plain lists in memory."""
        reviews = Reviews(tmp_path_factory.mktemp("r") / "reviews.sqlite")
        stack: list[tuple[str, str]] = []
        for sample, choice in steps:
            if choice == "undo":
                reviews.undo("d", "ann")
                stack = stack[:-1]
                continue
            state = reviews.states("d").get(sample)
            label = "bee" if choice == "relabel" else ""
            reviews.decide("d", [Choice(sample, choice, label, state.revision if state else 0)], "ann")
            stack.append((sample, choice))
        expected = dict(stack)
        assert {k: s.decision.choice for k, s in reviews.states("d").items() if s.decision} == expected


WRITER = """
import sys
from pathlib import Path
from chaffinch.reviews import Choice, Reviews
reviews, who = Reviews(Path(sys.argv[1])), sys.argv[2]
for i in range(100_000):
    reviews.decide("d", [Choice(f"{who}-{i}", "keep")], who)
    print(i, flush=True)
"""


def writer(path, who: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), who], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("after", [1, 7, 40])
def test_a_killed_process_loses_nothing_that_was_acknowledged(reviews, after):
    process = writer(reviews.path, "ann")
    for _ in range(after):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest = [line for line in process.stdout.read().split("\n") if line.strip().isdigit()]
    process.wait(30)
    acknowledged = after + len(rest)
    there = {int(k.partition("-")[2]) for k in reviews.states("d")}
    assert there >= set(range(acknowledged - (1 if rest else 0)))  # its last line may be cut
    assert len(there) <= acknowledged + 1
    reviews.decide("d", [Choice("next", "drop")], "bob")
    assert said(reviews)["next"] == "drop"


def test_two_processes_write_side_by_side(reviews):
    processes = [writer(reviews.path, who) for who in ("ann", "bob")]  # both find no file: the first makes it
    for process in processes:
        for _ in range(25):
            assert process.stdout.readline().strip().isdigit()
    for process in processes:
        process.kill()
        process.stdout.close()
        process.wait(30)
    states = reviews.states("d")
    assert {f"{who}-{i}" for who in ("ann", "bob") for i in range(25)} <= set(states)
    revisions = [s.revision for s in states.values()]
    assert len(set(revisions)) == len(revisions)


class TestQueue:
    proba = np.array([[0.9, 0.1, 0], [0.1, 0.8, 0.1], [0.2, 0.1, 0.7], [0.05, 0.05, 0.9], [0.4, 0.6, 0]])

    def test_likeliest_noise_first_decided_ones_last(self):
        codes = np.full(5, -1, np.int8)
        assert queue(self.proba, codes).tolist() == [3, 1, 2, 4, 0]
        codes[3] = codes[4] = 0
        assert queue(self.proba, codes).tolist() == [1, 2, 0, 3, 4]
        assert queue(self.proba, codes, skipped=[1]).tolist() == [2, 0, 1, 3, 4]

    def test_one_kind_by_its_own_probability(self):
        codes = np.full(5, -1, np.int8)
        assert queue(self.proba, codes, "mislabelled").tolist() == [1, 4]
        assert queue(self.proba, codes, "ood").tolist() == [3, 2]

    def test_back_to_the_unsure(self):
        codes = np.array([3, -1, 0, 3, 1], np.int8)
        assert queue(self.proba, codes, "unsure").tolist() == [3, 0]

    @pytest.mark.parametrize("show", CHECKED)
    def test_what_a_check_lists_in_the_order_of_its_urgency(self, show):
        codes, urgency = np.array([-1, -1, 0, -1, -1], np.int8), np.array([3.0, 0, 9, 1, 2])
        assert queue(self.proba, codes, show, [0], urgency).tolist() == [4, 3, 0, 2]
        assert queue(self.proba, codes, show).tolist() == [], "nobody has looked yet"

    def test_suggestions_never_repeat_the_given_label(self):
        found = suggest(np.array([0, 1, 2]), [np.array([1, 1, 2]), np.array([2, 0, 2])])
        assert found.tolist() == [1, 0, -1]

    def test_alike_is_same_kind_same_suggestion_and_near(self):
        proba = np.array([[0.1, 0.9, 0], [0.15, 0.85, 0], [0.4, 0.6, 0], [0.1, 0, 0.9], [0.1, 0.9, 0], [0.1, 0.9, 0]])
        codes, suggestions = np.full(6, -1, np.int8), np.array([2, 2, 2, 2, 1, 2])
        assert alike(0, np.arange(6), proba, suggestions, codes) == [1, 5]
        codes[5] = 0
        assert alike(0, np.arange(6), proba, suggestions, codes) == [1]

    def test_foreign_ones_need_no_common_suggestion(self):
        proba = np.array([[0.1, 0, 0.9], [0.15, 0, 0.85], [0.1, 0.9, 0]])
        assert alike(0, np.arange(3), proba, np.array([0, 1, 0]), np.full(3, -1, np.int8)) == [1]

    def test_codes_leave_out_samples_of_elsewhere(self, reviews):
        reviews.decide("d", [Choice("b", "drop"), Choice("gone", "keep")], "ann")
        assert coded(reviews.states("d"), {"a": 0, "b": 1}).tolist() == [-1, 2]

    def test_progress_by_kind(self):
        codes = np.array([-1, 0, -1, 2, -1], np.int8)
        kinds = np.asarray(self.proba.argmax(axis=1), np.int8)
        assert progress(kinds, codes) == {"mislabelled": (1, 2), "ood": (1, 2)}


@settings(deadline=None)
@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(hits_n):
    from scipy.stats import binomtest

    hits, n = hits_n
    expected = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_wilson_of_nothing_is_everything():
    assert wilson(0, 0) == (0.0, 1.0)


def made(rng, a: float, b: float, n: int = 4000):
    """P(noisy) of a verdict, and the truth under logit p' = a + b logit p."""
    noise = rng.beta(0.6, 1.0, n)
    truth = 1 / (1 + np.exp(-(a + b * np.log(noise / (1 - noise)))))
    return noise, truth, rng.random(n) < truth


def decided(noise, noisy, most: int):
    """Codes after the ``most`` likeliest were decided."""
    codes = np.full(len(noise), -1, np.int8)
    rows = np.argsort(-noise)[:most]
    codes[rows] = np.where(noisy[rows], 2, 0)
    return codes


class TestWhatDecisionsTeach:
    def test_without_decisions_the_verdict_stands(self):
        noise = np.random.default_rng(0).random(50)
        codes = np.full(50, -1, np.int8)
        np.testing.assert_allclose(recalibrate(noise, codes).proba, noise, atol=1e-9)
        codes[:] = CHOICES.index("unsure")
        np.testing.assert_allclose(recalibrate(noise, codes).proba, noise, atol=1e-9)

    def test_the_fit_is_the_maximum_of_its_posterior(self):
        from scipy.optimize import minimize

        rng = np.random.default_rng(1)
        noise, _, noisy = made(rng, -1.0, 0.7, 300)
        codes = decided(noise, noisy, 120)
        rows = codes >= 0
        x, y = np.log(noise / (1 - noise)), noisy.astype(float)

        def loss(w):
            p = 1 / (1 + np.exp(-(w[0] + w[1] * x[rows])))
            told = -(y[rows] * np.log(p) + (1 - y[rows]) * np.log(1 - p)).sum()
            return told + w[0] ** 2 / 2 + (w[1] - 1) ** 2 / (2 * 0.5**2)

        a, b = minimize(loss, [0, 1], tol=1e-12).x
        np.testing.assert_allclose(recalibrate(noise, codes).proba, 1 / (1 + np.exp(-(a + b * x))), atol=1e-5)

    def test_a_verdict_that_is_too_sure_is_corrected(self):
        rng = np.random.default_rng(2)
        noise, truth, noisy = made(rng, -1.0, 0.6)
        codes = decided(noise, noisy, 1200)
        rest = codes < 0
        corrected = recalibrate(noise, codes)
        actual = noisy[rest].sum()
        assert abs(corrected.proba[rest].sum() - actual) < 0.35 * abs(noise[rest].sum() - actual)

    def test_the_interval_of_what_is_left_holds_it_about_nine_times_in_ten(self):
        rng, held = np.random.default_rng(3), 0
        for _ in range(200):
            noise, _, noisy = made(rng, rng.normal(0, 0.7), rng.normal(1, 0.3), 800)
            codes = decided(noise, noisy, 200)
            rest, corrected = codes < 0, recalibrate(noise, codes)
            left, sd = corrected.expect(rest)
            held += abs(noisy[rest].sum() - left) <= 1.645 * sd
            advice, before = advise(noise, codes, corrected), noise[rest].sum()
            assert advice.left == left
            assert advice.low == pytest.approx(max(0, min(left - 1.645 * sd, before)))
            assert advice.high == pytest.approx(min(max(left + 1.645 * sd, before), rest.sum()))
        assert 0.83 < held / 200 < 0.97

    def test_advice_by_hand(self):
        noise = np.array([0.9, 0.5, 0.25, 0.05])
        codes = np.full(4, -1, np.int8)
        advice = advise(noise, codes, recalibrate(noise, codes))
        assert (advice.rest, advice.ahead, advice.stop) == (4, 4, False)
        assert advice.left == pytest.approx(1.7)
        assert advice.more == 3, "0.05 left is under a twentieth of 1.7; 0.3 is not"
        assert ENOUGH == 0.05

    def test_it_says_stop_when_the_noise_is_found(self):
        noise = np.concatenate([np.full(300, 0.97), np.full(3000, 0.001)])
        codes = np.full(3300, -1, np.int8)
        assert not advise(noise, codes, recalibrate(noise, codes)).stop
        codes[:300] = 2
        after = advise(noise, codes, recalibrate(noise, codes))
        assert after.stop
        assert after.more == 0

    def test_all_decided_leaves_nothing(self):
        noise, codes = np.array([0.9, 0.1]), np.array([2, 0], np.int8)
        advice = advise(noise, codes, recalibrate(noise, codes))
        assert (advice.rest, advice.left, advice.soon, advice.more, advice.stop) == (0, 0.0, 0.0, 0, True)

    def test_precision_counts_what_was_seen_and_expects_the_rest(self):
        noise = np.full(10, 0.5)
        codes = np.array([1, 2, 0, 3, -1, -1, -1, 2, -1, -1], np.int8)
        flags = np.array([1, 1, 1, 1, 1, 1, 0, 0, 0, 0], bool)
        corrected = recalibrate(noise, codes)
        found = precision(flags, codes, corrected)
        assert (found.flagged, found.decided, found.noisy) == (6, 3, 2)
        assert (found.low, found.high) == wilson(2, 3)
        assert found.expected == pytest.approx((2 + 3 * corrected.proba[4]) / 6)
        nothing = precision(np.zeros(10, bool), codes, corrected)
        assert (nothing.flagged, nothing.expected, nothing.low, nothing.high) == (0, None, 0.0, 1.0)

"""The lesson's figures and sentences: each says what the numbers say, and something else when they go the other way."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_lesson import ACCURACY, row, story
from made_lesson import results as made

from chaffinch import lesson as core
from chaffinch.base.errors import InputError
from chaffinch.base.training_run import begin
from chaffinch.data import CLEAN, MISLABELLED, OOD, open_dataset
from chaffinch.experiment import PLANS, run_folder
from chaffinch.lesson import Course, Gap, Story, Trial
from chaffinch.metrics.detection import auroc

KIND = np.array([CLEAN] * 6 + [MISLABELLED] * 2 + [OOD] * 4, np.int8)


def compare(accuracies: dict[str, tuple[float, ...]], found: dict[str, float] | None = None) -> dict:
    """Results of trainers with one accuracy a seed."""
    return made([row(t, 0.6, s, a, (found or {}).get(t)) for t, many in accuracies.items() for s, a in enumerate(many)])


def test_a_gap_is_a_difference_of_means_with_the_spread_of_such_a_difference():
    found = compare({"lsa": (0.80, 0.82), "mixup": (0.83, 0.85)})
    gap = core.gap(found, 0.6, "lsa", "mixup", "accuracy_last")
    assert gap.points == pytest.approx(-3)
    assert gap.spread == pytest.approx(100 * np.hypot(*[np.std([0.8, 0.82], ddof=1)] * 2))
    assert gap.clear
    assert gap.words == "81.0 ± 1.4 against 84.0 ± 1.4 %"
    assert gap.told("A", "B") == f"A ends 3.0 points below B ({gap.words}), more than the seeds' spread (2.0)"
    assert "above B" in Gap(1.0, 2.0, "").told("A", "B")
    assert "less than the seeds' spread (2.0)" in Gap(1.0, 2.0, "").told("A", "B")
    assert "this may be chance" in Gap(9.0, None, "").told("A", "B")
    assert not Gap(9.0, None, "").clear
    assert core.gap(found, 0.6, "lsa", "pls", "accuracy_last") is None
    assert core.gap(found, 0.2, "lsa", "mixup", "accuracy_last") is None


@pytest.mark.parametrize(
    ("plane", "says"),
    [
        ((0.75, 0.76), "points below **no detection** (mixup) (75.5 ± 0.7 against 80.5 ± 0.7 %), more than"),
        ((0.75, 0.76), "leaving out what it flags costs more than it saves"),
        ((0.80, 0.812), "less than the seeds' spread"),
        ((0.80, 0.812), "gains nothing that counts"),
        ((0.85, 0.86), "here the paper's surprise does not show"),
        ((0.85,), "this may be chance"),
    ],
)
def test_the_surprise_is_told_as_it_is(plane, says):
    first, *_ = core.surprise(compare({"mixup": (0.80, 0.81), "lsa": plane}), 0.6, "accuracy_last")
    assert says in first
    words = ("costs more", "gains nothing", "does not show")
    assert sum(word in first for word in words) == (len(plane) > 1)


@pytest.mark.parametrize(
    ("plane", "quality", "says"),
    [
        ((0.75, 0.76), 0.97, ("better than", "yet it ends")),
        ((0.85, 0.86), 0.97, ("better than", "and it ends")),
        ((0.85, 0.86), 0.70, ("no better than", "yet it ends")),
        ((0.75, 0.76), 0.70, ("no better than", "and it ends")),
    ],
)
def test_the_plane_is_held_against_small_loss(plane, quality, says):
    found = compare({"small-loss": (0.80, 0.81), "lsa": plane}, {"small-loss": 0.85, "lsa": quality})
    (told,) = core.surprise(found, 0.6, "accuracy_last")
    assert all(word in told for word in says)
    assert f"AUROC {quality:.3f} against 0.850" in told
    assert f"It keeps {1.75 - quality:.0%} of the clean pictures, small loss 90%" in told


def test_alternating_is_held_against_the_better_of_the_two_and_pls_lsa_against_pls():
    found = compare({"small-loss": (0.80,), "lsa": (0.81,), "alternate": (0.79,), "pls": (0.8,), "pls-lsa": (0.84,)})
    both, full = core.surprise(found, 0.6, "accuracy_last")
    assert "**Alternating** the two ends 2.0 points below the better of the two alone (plane only)" in both
    assert "**PLS-LSA** (alternating) ends 4.0 points above **PLS**" in full
    assert core.surprise(compare({"oracle": (0.9,)}), 0.6) == []


def test_the_levels_at_which_the_claims_hold_are_counted():
    told = core.overall(made())
    assert "nothing beyond the seeds' spread on no detection at 4 of 4" in told
    assert "PLS-LSA is ahead of PLS by more than the spread at 4 of 4" in told
    other = compare({"mixup": (0.80, 0.81), "lsa": (0.9, 0.91), "pls": (0.8, 0.81), "pls-lsa": (0.7, 0.71)})
    assert "at 0 of 1 noise levels" in core.overall(other)
    assert "spread at 0 of 1." in core.overall(other)
    assert "not been compared" in core.overall(compare({"oracle": (0.9,)}))


@pytest.mark.parametrize(
    ("value", "says"),
    [(0.991, "**almost** linearly"), (0.9, "**largely, though not cleanly,**"), (0.6, "**not** linearly"),
     (None, "nothing to separate")],
)  # fmt: skip
def test_the_best_line_is_told_as_it_is(value, says):
    assert says in core.line_told(story(told={"auroc_best_line": value, "looks": 1, "seed": 0}))


@pytest.mark.parametrize(
    ("one", "other", "says"),
    [
        (0.97, 0.8, ("better than", "nearly perfect")),
        (0.9, 0.95, ("worse than", "good, not perfect")),
        (0.7, 0.7, ("as well as", "far from perfect")),
    ],
)
def test_the_plane_and_its_seeds_are_told_as_they_are(one, other, says):
    told = core.detectors_told({"auroc_ood": one, "wrong_found": 0.1}, {"auroc_ood": other, "wrong_found": 0.9})
    assert all(word in told for word in says)
    assert "it flags 10%, the rule 90%" in told
    assert "Of the wrong" not in core.detectors_told(
        {"auroc_ood": one, "wrong_found": None}, {"auroc_ood": other, "wrong_found": None}
    )
    assert "no foreign" in core.detectors_told({"auroc_ood": None}, {"auroc_ood": None})


def test_detection_counts_each_kind():
    flags = np.array([1, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 0], bool)
    found = core.detection(flags.astype(np.float32), flags, KIND)
    assert found["foreign_found"] == 0.75
    assert found["wrong_found"] == 0.5
    assert found["clean_kept"] == pytest.approx(5 / 6)
    assert found["precision"] == pytest.approx(4 / 5)
    assert found["auroc_ood"] == pytest.approx(auroc(flags.astype(float), KIND == OOD))
    clean = core.detection(np.zeros(6, np.float32), np.zeros(6, bool), KIND[:6])
    assert clean["foreign_found"] is clean["wrong_found"] is clean["auroc_ood"] is clean["precision"] is None


def test_the_cut_lies_between_the_flagged_and_the_others():
    scores = np.array([1.0, 2, 4, 5], np.float32)
    assert core.cut(scores, scores > 3) == 3
    assert core.cut(scores, scores > 9) == 5
    assert core.cut(scores, scores > 0) == 1


def test_the_line_is_turned_a_quarter_to_either_side():
    told = story()
    kind = open_dataset(told.dataset).truth.kind
    seen = core.turn(told.plane, kind, step=45, steps=10)
    assert seen.degrees.tolist() == [-90, -45, 0, 45, 90]
    for a, angle in enumerate(seen.degrees):
        assert seen.auroc[a] == pytest.approx(auroc(core.turned(told.plane, angle), kind == OOD))
    assert seen.auroc.argmax() == 2
    np.testing.assert_allclose(seen.shares.sum(2), 1)
    assert np.isnan(core.turn(told.plane, np.zeros(len(kind), np.int8), step=90).auroc).all()


def test_culprits_are_clean_kept_by_small_loss_and_ordered():
    told, data = story(), open_dataset(story().dataset)
    kind, y, names = data.truth.kind, data.observed.labels, data.observed.classes
    seen = core.describe(told, kind, y, names)
    assert (np.diff(told.lost[seen.positions]) <= 0).all()
    assert len(seen.positions) == 14
    assert seen.share == pytest.approx(14 / (kind == CLEAN).sum())
    assert seen.simpler == seen.simpler_inside == 1
    for code, name in enumerate(names):
        inside = (y[seen.positions] == code).mean()
        assert seen.classes[name] == pytest.approx((inside, (y[kind == CLEAN] == code).mean()))
    text = " ".join(core.culprits_told(told, seen))
    assert "**14 clean pictures**" in text
    assert "**simpler** than other clean pictures: in 100% of all pairs" in text
    assert "(100% within the same class)" in text


@pytest.mark.parametrize(
    ("chance", "inside", "says"),
    [
        (0.7, 0.68, "**simpler** than other clean pictures: in 70% of all pairs the culprit has less to see (68%"),
        (0.7, 0.5, "within the same class it is 50%, so it is rather a matter of which classes"),
        (0.52, 0.6, "**not simpler** than"),
        (0.3, 0.31, "**busier** than"),
    ],
)
def test_culprits_are_told_as_they_are(chance, inside, says):
    told, data = story(), open_dataset(story().dataset)
    seen = core.describe(told, data.truth.kind, data.observed.labels, data.observed.classes)
    changed = replace(seen, simpler=chance, simpler_inside=inside, classes={"Coat": (0.5, 0.2), "Dress": (0.5, 0.8)})
    text = " ".join(core.culprits_told(told, changed))
    assert says in text
    assert "largest class among them is Coat: 50%, more than its share of all clean pictures (20%)" in text
    even = replace(changed, classes={"Coat": (0.5, 0.5), "Dress": (0.5, 0.5)})
    assert "about its share" in core.culprits_told(told, even)[-1]


def test_no_culprits_or_few_are_told():
    data = open_dataset(story().dataset)

    def text(told: Story) -> str:
        seen = core.describe(told, data.truth.kind, data.observed.labels, data.observed.classes)
        return " ".join(core.culprits_told(told, seen))

    none = np.zeros(240, np.float32)
    assert "There are none: in 4 late looks" in text(story(lost=none))
    assert "no late epoch" in text(story(lost=none, told={"looks": 0}))
    few = none.copy()
    few[np.flatnonzero(data.truth.kind == CLEAN)[:3]] = 1
    assert "too few to say" in text(story(lost=few))
    everybody = (data.truth.kind == CLEAN).astype(np.float32)
    assert "too few to say" in text(story(lost=everybody))  # nobody is left to compare with


def test_the_course_counts_what_is_flagged_of_each_kind():
    told = story()
    kind = open_dataset(told.dataset).truth.kind
    seen = core.course(told, kind)
    assert seen.flagged[0].tolist() == [0, 0, 0]
    assert seen.flagged[2].tolist() == pytest.approx([14 / (kind == CLEAN).sum(), 0, 1])
    assert seen.flagged[3].tolist() == [0, 1, 1]
    assert np.isnan(core.course(told, np.zeros(240, np.int8)).flagged[:, 1:]).all()


def test_an_epoch_is_told_in_a_sentence():
    flagged = np.array([[0.0, 0, 0], [0.1, 0.5, np.nan]])
    seen = Course(("", "lsa"), flagged, np.array([0.7, np.nan]))
    assert core.epoch_told(seen, 0) == "**Epoch 1 of 2:** nothing is flagged yet. Accuracy afterwards: 70.0%."
    assert core.epoch_told(seen, 1) == (
        "**Epoch 2 of 2:** it is the turn of **the plane**; 10% of the clean pictures, 50% of the wrong labels are "
        "flagged."
    )


def test_what_a_turn_brings_back_is_told():
    told = story()
    kind = open_dataset(told.dataset).truth.kind
    plane, rule, back = core.turns_told(told, kind)  # small loss throws no clean picture away
    kept = 1 - 14 / (kind == CLEAN).sum()
    assert f"2 epochs of **the plane**, {kept:.0%} of the clean pictures are kept and 100% of the foreign" in plane
    assert "2 epochs of **small loss**, 100% of the clean" in rule
    assert "the plane throws away, the next turn of small loss brings back **100%**." in back


def test_what_is_brought_back_is_counted_both_ways():
    kind = np.array([CLEAN] * 4, np.int8)
    flags = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]], bool)
    seen = story(turns=("lsa", "small-loss", "lsa"), flags=flags)
    *_, back, again = core.turns_told(seen, kind)
    assert "that the plane throws away, the next turn of small loss brings back **50%**" in back
    assert "that small loss throws away, the next turn of the plane brings back **50%**" in again
    assert core.turns_told(story(turns=("", ""), flags=np.zeros((2, 4), bool)), kind) == []
    (only,) = core.turns_told(story(turns=("", "lsa"), flags=flags[:2]), kind)
    assert "50% of the clean pictures are kept." in only


def test_results_and_levels():
    found = json.loads(json.dumps(made()))
    assert core.plan_of(found) == PLANS["lesson"]
    assert core.levels(found, [0.9]) == [0.2, 0.4, 0.6, 0.8, 0.9]
    assert core.cell(found, "lsa", 0.6)["accuracy_last"] == pytest.approx(ACCURACY["lsa"] - 0.058)
    assert core.cell(found, "lsa", 0.5) == {}
    assert core.cost(found) == (84 * 360 + 720, ["CPU"])
    assert core.percent(0.8422, 0.003) == "84.2 ± 0.3"
    assert core.percent(0.8422) == "84.2"
    assert core.percent(None) == "–"


def test_a_story_is_stored_and_found(tmp_path):
    told = story()
    told.save(tmp_path / "lesson-0.6.npz")
    (tmp_path / "lesson-x.npz").write_bytes(b"")
    assert list(core.stories(folder=tmp_path)) == [0.6]
    again = Story.load(tmp_path / "lesson-0.6.npz")
    np.testing.assert_array_equal(again.flags, told.flags)
    np.testing.assert_allclose(again.plane, told.plane, atol=0.01)
    assert (again.turns, again.told, again.dataset) == (told.turns, told.told, told.dataset)
    with pytest.raises(InputError, match="not a story"):
        Story.load(tmp_path / "lesson-x.npz")


def test_the_best_line_separates_and_the_rest_is_uncorrelated():
    rng = np.random.default_rng(0)
    foreign = np.arange(300) % 3 == 0
    X = rng.normal(size=(300, 6)).astype(np.float32)
    X[foreign, 0] += 4
    plane, best = core.best_line(X, foreign)
    assert best > 0.98
    assert auroc(plane[:, 0].astype(float), foreign) > 0.98
    np.testing.assert_allclose(plane.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(plane.std(0), 1, atol=1e-4)
    assert abs(np.corrcoef(plane.T)[0, 1]) < 1e-4


def test_detail_is_the_mean_difference_of_neighbours():
    images = np.zeros((2, 4, 4), np.uint8)
    images[1, :, ::2] = 90
    np.testing.assert_allclose(core.detail(images), [0, 45])
    np.testing.assert_allclose(core.detail(np.repeat(images[..., None], 3, axis=3)), [0, 45])


TRIAL = Trial(0.4, ("mixup", "pls-lsa"), 300, 4, 2)


def test_a_trial_is_a_command_and_back():
    command = TRIAL.command(Path("/x/live"))
    assert command[:2] == ("experiment", "lesson")
    assert command[-2:] == ("--out", "/x/live")
    assert Trial.of(list(command)) == TRIAL
    plan = TRIAL.plan
    assert (plan.noises, plan.seeds, plan.samples, plan.epochs, plan.start_epochs) == ((0.4,), (0,), 300, 4, 2)


def test_progress_is_read_from_the_runs(tmp_path):
    assert core.progress(TRIAL, tmp_path) == ({}, None)
    rest = {"loss": 1.0, "seconds": 3.0, "parts": {}, "detector": "", "note": ""}
    epochs = [{"epoch": e, "accuracy": 0.5 + e / 10, **rest} for e in range(3)]
    about = {"trainer": "mixup", "dataset": "d", "dataset_digest": "x", "epochs": 4, "n": 100}
    begin(run_folder(TRIAL.plan, ("mixup", 0.4, 0), tmp_path), about, epochs)
    curves, left = core.progress(TRIAL, tmp_path)
    assert curves == {"mixup": [0.5, 0.6, 0.7]}
    assert left == pytest.approx(5 * 3)

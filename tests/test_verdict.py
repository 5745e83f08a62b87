"""The verdict on planted noise: how right, how honest, what it may not depend on, its parts against slow references."""

import tracemalloc
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import ortho_group, spearmanr
from sklearn.datasets import load_digits

from chaffinch import verdict
from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.base.neighbors import unit_rows
from chaffinch.data import CLEAN, MISLABELLED, OOD
from chaffinch.metrics.verdict import calibration_error, claims, three_way
from chaffinch.verdict import ceiling, judge

KINDS = ("clean", "mislabelled", "ood")


def planted(X, true, classes, flips, rng, *, next_class=False, follow=False):
    """Given labels: wrong for a share of the classes' samples, any for OOD (as often as the classes are: follow)."""
    n = len(true)
    foreign = rng.choice(true[true >= 0], n) if follow else rng.integers(0, classes, n)
    wrong = (true >= 0) & (rng.random(n) < flips)
    away = 1 if next_class else rng.integers(1, classes, n)
    y = np.where(true < 0, foreign, np.where(wrong, (true + away) % classes, true))
    kind = np.where(true < 0, OOD, np.where(y == true, CLEAN, MISLABELLED)).astype(np.int8)
    return SimpleNamespace(X=X.astype(np.float32), y=y, true=true, kind=kind, classes=classes)


def digits(flips, ood, n=1500, seed=0, sizes=None, **how):
    """Digits 0 to 6 are the classes, 7 to 9 are OOD."""
    rng = np.random.default_rng(seed)
    X, digit = load_digits(return_X_y=True)
    foreign = rng.permutation(np.flatnonzero(digit > 6))[: int(n * ood)]
    own = rng.permutation(np.flatnonzero(digit < 7))[: n - len(foreign)]
    if sizes:
        own = np.concatenate([own[digit[own] == k][:size] for k, size in enumerate(sizes)])
    rows = rng.permutation(np.concatenate([own, foreign]))
    return planted(X[rows], np.where(digit[rows] < 7, digit[rows], -1), 7, flips, rng, **how)


def blurred(d, spread):
    """The same under Gaussian noise; a pixel of a digit is 0 to 16."""
    d.X += np.random.default_rng(9).normal(0, spread, d.X.shape).astype(np.float32)
    return d


def blobs(flips, ood, n=600, classes=4, spread=0.8, seed=0):
    """Caps around the axes of a sphere; OOD is scattered over as many axes more."""
    rng = np.random.default_rng(seed)
    true = np.where(rng.random(n) < ood, -1, rng.integers(0, classes, n))
    X = 4 * np.eye(classes, 2 * classes + 4)[true] + spread * rng.normal(size=(n, 2 * classes + 4))
    X[true < 0] = 1.5 * rng.normal(size=((true < 0).sum(), X.shape[1])) * (np.arange(X.shape[1]) >= classes)
    return planted(X, true, classes, flips, rng)


CASES = {
    "flips 20 %": lambda: digits(0.2, 0.2),
    "flips 40 %": lambda: digits(0.4, 0.15),
    "flips 60 %": lambda: digits(0.6, 0.25),
    "asymmetric": lambda: digits(0.35, 0.15, next_class=True),
    "flips only": lambda: digits(0.4, 0.0, n=1200),
    "OOD only": lambda: digits(0.0, 0.3),
    "long tail": lambda: digits(0.2, 0.12, n=1700, sizes=(170, 150, 130, 90, 70, 50, 40), follow=True),
    "weak features": lambda: blurred(digits(0.2, 0.15), 5),
    "blobs": lambda: blobs(0.2, 0.2),
    "clean": lambda: digits(0.0, 0.0, n=1200),
}


@cache
def data(case):
    return CASES[case]()


@cache
def judged(case):
    return judge(data(case).X, data(case).y, data(case).classes)


@cache
def best(case):
    return ceiling(data(case).X, data(case).y, data(case).true, data(case).classes)


def macro_f1(proba, kind):
    return three_way(proba, kind)["macro_f1"]


# --- how right


@pytest.mark.parametrize(
    ("case", "floor"),
    [
        ("flips 20 %", 0.94),
        ("flips 40 %", 0.9),
        ("flips 60 %", 0.78),
        ("asymmetric", 0.94),
        ("flips only", 0.96),
        ("OOD only", 0.96),
        ("long tail", 0.90),
        ("weak features", 0.82),
        ("blobs", 0.93),
    ],
)
def test_right_and_ahead_of_a_probe_that_disagrees_with_the_label(case, floor):
    d, v = data(case), judged(case)
    found = macro_f1(v.proba, d.kind)
    probe = linear_probe(d.X, d.y, d.classes).pred_probs.argmax(axis=1)
    simple = macro_f1(np.eye(3)[np.where(probe == d.y, CLEAN, MISLABELLED)], d.kind)
    assert found > floor
    assert found > simple
    assert found <= macro_f1(best(case), d.kind) + 0.005
    assert "weak" not in v.info


@pytest.mark.parametrize("case", list(CASES))
def test_rates_are_near_the_truth(case):
    d, v = data(case), judged(case)
    assert v.rates["mislabelled"] == pytest.approx((d.kind == MISLABELLED).mean(), abs=0.04)
    assert v.rates["ood"] == pytest.approx((d.kind == OOD).mean(), abs=0.05)
    assert v.rates["mislabelled"] == pytest.approx(v.proba[:, MISLABELLED].mean())
    assert v.rates["ood"] == pytest.approx(v.proba[:, OOD].mean())


@pytest.mark.parametrize("case", list(CASES))
def test_probabilities_are_probabilities_and_can_be_taken_at_their_word(case):
    d, v = data(case), judged(case)
    assert v.proba.shape == (len(d.y), 3)
    assert np.isfinite(v.proba).all()
    assert v.proba.min() >= 0
    np.testing.assert_allclose(v.proba.sum(axis=1), 1)
    np.testing.assert_allclose(v.noise, v.proba[:, MISLABELLED] + v.proba[:, OOD])
    np.testing.assert_array_equal(v.kinds, v.proba.argmax(axis=1))
    assert calibration_error(*claims(v.proba, d.kind)) < 0.06
    assert max(calibration_error(*claims(v.proba, d.kind, name)) for name in KINDS) < 0.08
    assert v.info["expected_accuracy"] == pytest.approx((v.kinds == d.kind).mean(), abs=0.06)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("OOD only", "clean")])
def test_the_probable_label_is_the_true_one_of_most_mislabelled_samples(case):
    d, v = data(case), judged(case)
    wrong = d.kind == MISLABELLED
    assert (v.labels == d.true)[wrong].mean() > (0.8 if case == "weak features" else 0.87)
    assert 1 / d.classes - 1e-9 <= v.sureness.min()
    assert v.sureness.max() <= 1 + 1e-9
    inside = d.kind != OOD
    assert calibration_error(v.sureness[inside], (v.labels == d.true)[inside]) < 0.08


@pytest.mark.parametrize("case", list(CASES))
def test_transition_is_near_the_planted_one(case):
    d, T = data(case), judged(case).transition
    assert T.shape == (d.classes + 1, d.classes)
    assert T.min() > 0
    np.testing.assert_allclose(T.sum(axis=1), 1)
    counts = np.zeros_like(T)
    np.add.at(counts, (d.true, d.y), 1)  # -1 = OOD is the last row
    kept = np.diag(counts) / counts[:-1].sum(axis=1)
    np.testing.assert_allclose(np.diag(T), kept, atol=0.12)
    assert judged(case).info["label_noise"] == pytest.approx((1 - np.diag(T)).tolist())


def test_asymmetric_flips_show_in_the_transition():
    T = judged("asymmetric").transition[:-1]
    np.testing.assert_array_equal((T - np.diag(np.diag(T))).argmax(axis=1), (np.arange(7) + 1) % 7)


def test_hardly_anything_clean_is_flagged():
    v = judged("clean")
    assert (v.kinds != CLEAN).mean() <= 0.02
    assert v.rates["mislabelled"] + v.rates["ood"] < 0.03
    assert (judge(blobs(0, 0).X, blobs(0, 0).y, 4).kinds != CLEAN).mean() <= 0.02


def test_few_samples_do_not_drive_the_rounds_apart():
    """Regression: under a heavy penalty the class shares of the folds outweighed the features, and rounds diverged."""
    for flips, ood, n, seed in ((0.3, 0, 100, 1), (0.2, 0.2, 300, 2), (0, 0, 20, 1)):
        d = blobs(flips, ood, n=n, seed=seed)
        assert macro_f1(judge(d.X, d.y, d.classes).proba, d.kind) > 0.93


def test_many_classes_with_few_samples_each():
    """Regression: the link, a weight for each pair of classes, learnt single labels by heart."""
    d = blobs(0.15, 0.2, n=1000, classes=20, seed=2)
    assert macro_f1(judge(d.X, d.y, 20).proba, d.kind) > 0.88


# --- rates that are known


@pytest.mark.parametrize("told", [{"mislabelled": 0.3}, {"ood": 0.05}, {"mislabelled": 0.25, "ood": 0.3}])
def test_told_rates_are_met(told):
    d = data("blobs")
    v = judge(d.X, d.y, d.classes, **told)
    for name, rate in told.items():
        assert v.rates[name] == pytest.approx(rate, abs=1e-3)
    np.testing.assert_allclose(v.proba.sum(axis=1), 1)
    np.testing.assert_array_equal(v.labels, judged("blobs").labels)
    assert v.transition.tobytes() == judged("blobs").transition.tobytes()


def test_told_that_there_is_none():
    d = data("blobs")
    assert judge(d.X, d.y, d.classes, ood=0.0).proba[:, OOD].max() == 0
    nothing = judge(d.X, d.y, d.classes, mislabelled=0.0, ood=0.0)
    assert (nothing.proba == [1, 0, 0]).all()


def test_told_the_truth_is_more_honest():
    """Wide blobs reach into OOD, so that its share is overestimated; knowing it mends that."""
    d = blobs(0.2, 0.15, n=1500, spread=1.8)
    guessed, told = judge(d.X, d.y, d.classes), judge(d.X, d.y, d.classes, ood=float((d.kind == OOD).mean()))
    error = [calibration_error(*claims(v.proba, d.kind, "ood")) for v in (told, guessed)]
    assert error[0] < error[1]
    assert macro_f1(told.proba, d.kind) > macro_f1(guessed.proba, d.kind) - 0.03


def test_a_told_rate_picks_the_most_suspicious():
    """All are almost surely clean; which are least so must survive the rounding."""
    d = data("clean")
    more = judge(d.X, d.y, d.classes, mislabelled=0.3).proba[:, MISLABELLED]
    assert more.mean() == pytest.approx(0.3, abs=1e-3)
    assert len(np.unique(more)) > 0.9 * len(more)


# --- what it may and may not depend on


def test_same_seed_same_bits_another_seed_differs_a_little():
    d, v = data("blobs"), judged("blobs")
    again, other = judge(d.X, d.y, d.classes), judge(d.X, d.y, d.classes, seed=1)
    for name in ("proba", "labels", "sureness", "transition"):
        assert getattr(again, name).tobytes() == getattr(v, name).tobytes()
    assert again.info == v.info
    assert (other.proba != v.proba).any()
    assert spearmanr(other.noise, v.noise).statistic > 0.95


def test_only_directions_count():
    d, v = data("blobs"), judged("blobs")
    rng = np.random.default_rng(0)
    turned = d.X @ ortho_group.rvs(d.X.shape[1], random_state=0)
    for X in (37.0 * d.X, d.X * rng.uniform(0.1, 10, (len(d.X), 1)), turned, turned.astype(np.float64)):
        np.testing.assert_allclose(judge(X, d.y, d.classes).proba, v.proba, atol=0.02)


def test_the_order_of_rows_hardly_matters():
    d = data("flips 20 %")
    order = np.random.default_rng(0).permutation(len(d.y))
    v = judge(d.X[order], d.y[order], d.classes)
    assert macro_f1(v.proba, d.kind[order]) == pytest.approx(macro_f1(judged("flips 20 %").proba, d.kind), abs=0.03)
    assert spearmanr(v.noise, judged("flips 20 %").noise[order]).statistic > 0.95


def test_the_names_of_the_classes_hardly_matter():
    d = data("blobs")
    v = judge(d.X, 3 - d.y, d.classes)
    assert spearmanr(v.noise, judged("blobs").noise).statistic > 0.95
    assert (v.labels == 3 - judged("blobs").labels).mean() > 0.95


def regressions(d, seed=0):
    rng = np.random.default_rng(seed)
    unit = unit_rows(d.X)
    return verdict._Folds(verdict._Kernel(unit, 256, rng)(unit), d.y, 5, rng)


def test_a_given_label_is_no_evidence_for_itself():
    """With the folds held, another label at one place leaves what is said of that place before seeing its label."""
    d = data("blobs")
    ridge = regressions(d)
    before = verdict._learn(ridge, d.y, d.classes, 5, lambda share: None)
    own, moved = [], []
    for i in np.flatnonzero(d.kind == CLEAN)[:60:12]:
        y = d.y.copy()
        y[i] = (y[i] + 1) % d.classes
        after = verdict._learn(ridge, y, d.classes, 5, lambda share: None)
        moved.append(np.abs(after.prior - before.prior).max())
        own.append(np.abs(after.prior[i] - before.prior[i]).max())
    assert max(own) < 0.003
    assert max(moved) > 0.003, "others do hear of it"


def test_labels_of_a_fold_do_not_enter_its_regression():
    d = data("blobs")
    ridge = regressions(d)
    target = np.eye(d.classes)[d.y]
    scores, _ = ridge.fit([target[seen] for seen, _ in ridge.rows], 1.0)
    held = ridge.rows[2][1]
    target[held] = np.random.default_rng(0).random((len(held), d.classes))
    again, _ = ridge.fit([target[seen] for seen, _ in ridge.rows], 1.0)
    assert again[held].tobytes() == scores[held].tobytes()
    assert (again != scores).any()


# --- large, weak, degenerate, wrong


def test_more_samples_than_it_is_fitted_on():
    d, v = data("flips 20 %"), judged("flips 20 %")
    part = judge(d.X, d.y, d.classes, most=800)
    assert part.info["note"] == "fitted on 800 of 1,500 samples and applied to all"
    assert part.info["fitted_on"] == 800
    assert "weak" not in part.info
    assert macro_f1(part.proba, d.kind) == pytest.approx(macro_f1(v.proba, d.kind), abs=0.05)
    assert (part.kinds == v.kinds).mean() > 0.95
    assert (part.labels == v.labels).mean() > 0.9
    assert judge(d.X, d.y, d.classes, most=800).proba.tobytes() == part.proba.tobytes()


@pytest.mark.parametrize(("n", "classes"), [(100, 2), (300, 10), (1000, 5), (1000, 20)])
def test_features_that_say_nothing_are_named(n, classes):
    rng = np.random.default_rng(0)
    v = judge(rng.normal(size=(n, 32)).astype(np.float32), rng.integers(0, classes, n), classes, most=900)
    assert v.info["weak"] is True
    assert "hardly more about the given labels than chance" in v.info["note"]
    assert ("fitted on" in v.info["note"]) == (n == 1000)
    assert abs(v.info["label_gain"]) < 0.05


def test_memory_of_samples_it_is_not_fitted_on_does_not_grow_with_classes():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(80_000, 4)).astype(np.float32), rng.integers(0, 60, 80_000)
    tracemalloc.start()
    judge(X, y, 60, most=200, rounds=1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 70e6  # P(z | x, y) of all would take 39 MB, and several of its kind were held


def test_few_samples_a_class_are_told():
    d = data("flips 20 %")
    few = slice(100 * d.classes - 1)
    found = judge(d.X[few], d.y[few], d.classes)
    assert "are few: its rates may be far off" in found.info["note"]
    assert "weak" not in found.info
    assert "note" not in judge(d.X[: 100 * d.classes], d.y[: 100 * d.classes], d.classes).info


def test_features_that_cannot_tell_the_classes_apart_are_named():
    d = blurred(digits(0.2, 0.15), 20)
    v = judge(d.X, d.y, d.classes)
    assert v.info["label_gain"] > 0.03
    assert v.info["weak"] is True
    assert "leave open which class" in v.info["note"]
    assert (v.kinds == d.kind).mean() < 0.6, "rightly so"


@pytest.mark.parametrize("flips", [0.4, 0.55])
def test_heavy_noise_under_good_features_is_trusted(flips):
    d = blobs(flips, 0.0, n=1500)
    v = judge(d.X, d.y, d.classes)
    assert "weak" not in v.info
    assert macro_f1(v.proba, d.kind) > 0.9


def sane(v, n, classes):
    assert v.proba.shape == (n, 3)
    assert np.isfinite(v.proba).all()
    np.testing.assert_allclose(v.proba.sum(axis=1), 1)
    assert np.isfinite(v.sureness).all()
    assert np.isfinite(v.transition).all()
    assert v.labels.shape == (n,)
    assert v.labels.dtype == np.int64
    assert v.labels.min() >= 0
    assert v.labels.max() < classes
    assert np.isfinite([v.info["expected_accuracy"], v.info["label_gain"], *v.rates.values()]).all()


def test_degenerate_features():
    d = blobs(0.1, 0.0, n=200)
    zero = d.X.copy()
    zero[::9] = 0
    for X in (zero, np.zeros_like(d.X), np.ones_like(d.X), d.X[:, :1], np.abs(d.X[:, :1]), d.X[:, :0]):
        sane(judge(X, d.y, d.classes), 200, d.classes)
    sane(judge(np.random.default_rng(0).normal(size=(200, 900)), d.y, d.classes), 200, d.classes)
    whole = judge((10 * d.X).astype(int), d.y, d.classes)
    assert (whole.kinds == judge(d.X, d.y, d.classes).kinds).mean() > 0.95


def test_duplicated_rows():
    d = blobs(0.0, 0.0, n=60)
    X, y = np.repeat(d.X, 6, axis=0), np.repeat(d.y, 6)
    y[::6] = (y[::6] + 1) % d.classes  # one of every six copies disagrees with the rest
    v = judge(X, y, d.classes)
    sane(v, 360, d.classes)
    assert macro_f1(v.proba, np.where(np.arange(360) % 6, CLEAN, MISLABELLED)) > 0.95


def test_a_class_of_one_sample_and_a_class_of_none():
    d = blobs(0.1, 0.1)
    y = d.y.copy()
    y[0] = 4
    v = judge(d.X, y, 6)
    sane(v, 600, 6)
    assert macro_f1(v.proba, d.kind) > 0.85
    missing = judge(d.X, d.y, 9)
    sane(missing, 600, 9)
    assert macro_f1(missing.proba, d.kind) == pytest.approx(macro_f1(judge(d.X, d.y, 4).proba, d.kind), abs=0.05)
    assert missing.labels.max() < 4


def test_smallest_and_most_classes():
    for n, classes in ((20, 2), (21, 4), (40, 40)):
        rng = np.random.default_rng(n)
        sane(judge(rng.normal(size=(n, 30)), np.arange(n) % classes, classes), n, classes)
    d = blobs(0.0, 0.0, n=800, classes=100)
    v = judge(d.X, d.y, 100, rounds=2)
    sane(v, 800, 100)
    assert (v.kinds == CLEAN).mean() > 0.95


def test_progress_rises_to_one():
    seen = []
    judge(blobs(0, 0, n=60).X, blobs(0, 0, n=60).y, 4, progress=seen.append)
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert 0 < seen[0] < seen[-1] == 1.0


X, Y = blobs(0.1, 0.1, n=60).X, blobs(0.1, 0.1, n=60).y


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": X[:50]}, "60 labels, got \\(50, 12\\)"),
        ({"X": X[:, 0]}, "must be \\(N, D\\)"),
        ({"X": np.where(np.arange(60)[:, None] == 41, np.nan, X)}, "row 41 holds NaN or infinity \\(1 rows"),
        ({"X": np.where(np.arange(60)[:, None] == 55, np.inf, X), "most": 30}, "row 55 holds NaN"),
        ({"y": Y.astype(float)}, "whole numbers"),
        ({"y": Y[:, None]}, "whole numbers, got \\(60, 1\\)"),
        ({"y": np.where(np.arange(60) == 7, 4, Y)}, "row 7: label 4 is not one of the classes 0 to 3"),
        ({"y": np.where(np.arange(60) == 3, -1, Y)}, "row 3: label -1"),
        ({"y": np.zeros(60, int)}, "at least two classes"),
        (
            {"n_classes": 10_000},
            "10,000 classes are too many to judge; it takes at most 1,000. Join or leave out classes",
        ),
        ({"X": X[:19], "y": Y[:19]}, "19 samples are too few"),
        ({"mislabelled": 1.0}, "mislabelled must be a share"),
        ({"mislabelled": -0.1}, "mislabelled must be a share"),
        ({"ood": float("nan")}, "ood must be a share"),
        ({"mislabelled": 0.5, "ood": 0.5}, "leave something clean"),
        ({"rounds": 0}, "rounds must be at least 1, got 0"),
        ({"folds": 1}, "folds must be at least 2"),
        ({"landmarks": 0}, "landmarks must be at least 1"),
        ({"most": 19}, "most must be at least 20"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        judge(**{"X": X, "y": Y, "n_classes": 4, **changes})


def test_the_ceiling_checks_its_input_too():
    with pytest.raises(InputError, match="row 9 holds NaN"):
        ceiling(np.where(np.arange(60)[:, None] == 9, np.nan, X), Y, Y, 4)


# --- its parts


def test_kernel_is_the_gaussian_of_all_samples_where_all_are_landmarks():
    unit = unit_rows(blobs(0, 0.3, n=80).X)
    kernel = verdict._Kernel(unit, 80, np.random.default_rng(0))
    Z = kernel(unit).astype(float)
    np.testing.assert_array_equal(Z[:, -1], 1)
    squares = ((unit[:, None] - unit) ** 2).sum(axis=2)
    width = np.median(squares[np.triu_indices(80, 1)])
    np.testing.assert_allclose(Z[:, :-1] @ Z[:, :-1].T, np.exp(-squares / width), atol=1e-3)


def test_regressions_against_loops():
    rng = np.random.default_rng(0)
    Z, y, penalty = rng.normal(size=(30, 4)).astype(np.float32), rng.integers(0, 3, 30), 2.0
    ridge = verdict._Folds(Z, y, 3, rng)
    targets = [rng.random((len(seen), 2)) for seen, _ in ridge.rows]
    scores, inner = ridge.fit(targets, penalty)

    def weights(rows, target):
        return np.linalg.solve(Z[rows].T @ Z[rows] + penalty * np.eye(4), Z[rows].T @ target)

    assert sorted(np.concatenate([held for _, held in ridge.rows])) == list(range(30))
    for (seen, held), target, left_out in zip(ridge.rows, targets, inner, strict=True):
        assert not set(seen) & set(held)
        assert np.ptp(np.bincount(y[held], minlength=3) - np.bincount(y, minlength=3) / 3) <= 2
        np.testing.assert_allclose(scores[held], Z[held] @ weights(seen, target), atol=1e-4)
        for j in range(len(seen)):
            others = np.delete(np.arange(len(seen)), j)
            np.testing.assert_allclose(left_out[j], Z[seen[j]] @ weights(seen[others], target[others]), atol=1e-4)


def test_links_are_where_their_losses_are_least():
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(200, 3)), rng.dirichlet(np.ones(3), 200)
    link = verdict._Link.matching(scores, targets)
    likelihood = rng.random((200, 3))
    pull = 10 + 100 * 12 / 200

    def matching_loss(weights):
        p = verdict._Link(link.mean, link.sd, weights)(scores)
        return -(targets * np.log(p)).sum() + (weights[:-1] ** 2).sum() / 2

    def explaining_loss(weights):
        p = verdict._Link(link.mean, link.sd, weights)(scores)
        return -np.log((p * likelihood).sum(axis=1)).sum() + pull / 2 * ((weights - link.weights)[:-1] ** 2).sum()

    told = link.explaining(scores, likelihood)
    np.testing.assert_allclose(told(scores).sum(axis=1), 1)
    for loss, found in ((matching_loss, link.weights), (explaining_loss, told.weights)):
        least = loss(found)
        for _ in range(20):
            assert loss(found + rng.normal(0, 0.05, found.shape)) > least - 1e-3
    assert explaining_loss(told.weights) < explaining_loss(link.weights) - 0.1


def test_posterior_is_the_rule_of_bayes():
    rng = np.random.default_rng(0)
    prior, T, y = rng.dirichlet(np.ones(4), 20), rng.dirichlet(np.ones(3), 4), rng.integers(0, 3, 20)
    posterior = verdict._posterior(prior, T, y)
    kinds = verdict._kinds(posterior, y)
    for i in range(20):
        joint = [prior[i, z] * T[z, y[i]] for z in range(4)]
        np.testing.assert_allclose(posterior[i], np.array(joint) / sum(joint))
        clean, foreign = joint[y[i]] / sum(joint), joint[3] / sum(joint)
        np.testing.assert_allclose(kinds[i], [clean, 1 - clean - foreign, foreign])
    tiny = verdict._kinds(np.array([[1.0, 1e-30, 1e-40]]), np.array([0]))
    assert tiny.tolist() == [[1.0, 1e-30, 1e-40]]


@pytest.mark.parametrize(("certain", "counted"), [(30, 30), (5, 20), (60, 60)])
def test_transition_is_counted_on_those_certain_of_their_class(certain, counted):
    """Sixty samples a class: the certain ones count, and where they are few, the twenty most certain."""
    chance = np.concatenate([np.linspace(0.99, 0.8, certain), np.linspace(0.6, 0.5, 60 - certain)])
    p = np.zeros((120, 3))
    p[:60, 0], p[60:, 1], p[:, 2] = chance, 0.95, 0.02
    p[:60, 1], p[60:, 0] = 0.98 - chance, 0.03
    y, shares = np.repeat([0, 1], 60), np.array([0.5, 0.5])
    right = verdict._count(p, y, shares)
    for wrong, heard in ((slice(counted - 1, counted), True), (slice(counted, 60), False)):
        other = y.copy()
        other[wrong] = 1
        assert (verdict._count(p, other, shares)[0, 1] > right[0, 1]) == heard


def test_transition_from_counts_draws_single_classes_to_the_median():
    counts = np.array([[900.0, 50, 50], [80, 800, 120], [2, 0, 0], [10, 10, 10]])
    free, drawn = verdict._pooled(counts, pull=0.0), verdict._pooled(counts, pull=200.0)
    np.testing.assert_allclose(free.sum(axis=1), 1)
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    np.testing.assert_allclose(1 - np.diag(free), [0.1, 0.2, 0.98])
    # the median sample is of the second class, whose rate is .2
    np.testing.assert_allclose(1 - np.diag(drawn), [140 / 1200, 240 / 1200, 42 / 202])
    assert drawn[1, 2] > drawn[1, 0]
    assert drawn.min() > 0

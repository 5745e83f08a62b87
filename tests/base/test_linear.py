import tracemalloc
import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from chaffinch.base import linear
from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe


def digits(rate=0.0, n=None, seed=0):
    """Digits with a share of labels moved to another class; which ones are wrong."""
    X, truth = load_digits(return_X_y=True)
    X, truth = X[:n], truth[:n]
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(truth)) < rate
    y = np.where(wrong, (truth + rng.integers(1, 10, len(truth))) % 10, truth)
    return X.astype(np.float32), y, wrong


def blobs(n=300, dim=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return (rng.normal(size=(classes, dim))[y] + rng.normal(size=(n, dim))).astype(np.float32), y


def peer(X, y, fold, classes, c=1.0, **settings):
    """Out-of-sample probabilities of scikit-learn with the same folds and scaling."""
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    p = np.zeros((len(y), classes))
    for k in np.unique(fold):
        seen = fold != k
        model = LogisticRegression(C=c, **settings).fit(Z[seen], y[seen])
        p[np.ix_(~seen, model.classes_)] = model.predict_proba(Z[~seen])
    return p


def auroc(p, y, wrong):
    return roc_auc_score(wrong, 1 - p[np.arange(len(y)), y])


@pytest.mark.parametrize("penalty", [1.0, 30.0])
def test_agrees_with_scikit_learn_when_both_converge(penalty):
    X, y, _ = digits(0.3, n=700)
    fold = np.arange(len(y)) % 4
    ours = linear_probe(X, y, 10, folds=fold, penalty=penalty, tolerance=1e-11, max_steps=500)
    theirs = peer(X, y, fold, 10, 1 / penalty, tol=1e-8, max_iter=5000)
    np.testing.assert_allclose(ours.pred_probs, theirs, atol=2e-3)


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_ranks_wrong_labels_as_well_as_scikit_learn(rate):
    X, y, wrong = digits(rate)
    ours = auroc(linear_probe(X, y, 10).pred_probs, y, wrong)
    theirs = auroc(peer(X, y, linear._folds(y, 5, 0), 10, max_iter=1000), y, wrong)
    assert ours >= theirs - 0.003
    assert ours > 0.98


def test_a_label_does_not_touch_the_predictions_of_its_own_fold():
    X, y = blobs(200)
    fold = np.arange(200) % 5
    other = y.copy()
    other[7] = (y[7] + 1) % 3
    before, after = (linear_probe(X, labels, 3, folds=fold, penalty=1.0).logits for labels in (y, other))
    np.testing.assert_array_equal(before[fold == 2], after[fold == 2])  # not one bit
    for k in (0, 1, 3, 4):
        assert np.abs(before[fold == k] - after[fold == k]).max() > 1e-3


def test_pure_noise_is_not_memorised():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(200, 60)).astype(np.float32), rng.integers(0, 2, 200)
    out = linear_probe(X, y, 2, penalty=1.0)
    weights, bias = out.head
    assert (out.pred_probs.argmax(1) == y).mean() < 0.62
    assert ((X @ weights.T + bias).argmax(1) == y).mean() > 0.7


def test_same_seed_same_bits_other_seed_other_folds():
    X, y, _ = digits(0.3, n=500)
    a, b, c = (linear_probe(X, y, 10, seed=seed) for seed in (4, 4, 5))
    for one, two in ((a.pred_probs, b.pred_probs), (a.logits, b.logits), *zip(a.head, b.head, strict=True)):
        np.testing.assert_array_equal(one, two)
    assert np.abs(a.logits - c.logits).max() > 1e-3


def test_folds_are_dealt_evenly_within_each_class():
    y = np.repeat([0, 1, 2, 3], [103, 57, 20, 3])
    fold = linear._folds(y, 5, seed=1)
    for label in range(4):
        counts = np.bincount(fold[y == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    assert np.ptp(np.bincount(fold)) <= 1
    assert not np.array_equal(fold, linear._folds(y, 5, seed=2))


def test_order_of_samples_features_and_classes_does_not_matter():
    X, y = blobs(240, dim=8)
    fold, rng = np.arange(240) % 5, np.random.default_rng(1)
    rows, columns, names = rng.permutation(240), rng.permutation(8), np.array([2, 0, 1])
    settings = {"penalty": 1.0, "tolerance": 1e-9}
    plain = linear_probe(X, y, 3, folds=fold, **settings).pred_probs
    mixed = linear_probe(X[rows][:, columns], names[y][rows], 3, folds=fold[rows], **settings).pred_probs
    np.testing.assert_allclose(mixed[:, names], plain[rows], atol=1e-3)


def test_scale_and_origin_of_features_do_not_matter():
    X, y = blobs()
    moved = X.astype(np.float64) * [1, 1e-3, 1e3, 2, 3, 4] + [0, 5, -1e4, 100, 0, 1]
    settings = {"penalty": 1.0, "tolerance": 1e-9}
    a, b = linear_probe(X, y, 3, **settings), linear_probe(moved, y, 3, **settings)
    np.testing.assert_allclose(a.pred_probs, b.pred_probs, atol=2e-3)
    np.testing.assert_allclose(
        X @ a.head[0].T + a.head[1], moved @ b.head[0].T + b.head[1], atol=1e-2
    )  # heads are on the scale given


def test_the_head_is_the_model_of_all_samples():
    X, y, _ = digits(0.2, n=600)
    weights, bias = linear_probe(X, y, 10, penalty=1.0, tolerance=1e-11, max_steps=500).head
    Z = StandardScaler().fit_transform(X.astype(np.float64))
    model = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000).fit(Z, y)
    assert weights.shape == (10, 64)
    np.testing.assert_allclose(X @ weights.T + bias, model.decision_function(Z), atol=2e-2)


@pytest.mark.parametrize("penalty", [1.0, 100.0])
def test_the_head_alone_is_the_one_of_the_probe(penalty):
    X, y, _ = digits(0.2, n=600)
    settings = {"penalty": penalty, "tolerance": 1e-11, "max_steps": 500}
    W, b = linear.linear_head(X, y, 10, **settings)
    V, c = linear_probe(X, y, 10, **settings).head
    np.testing.assert_allclose(X @ W.T + b, X @ V.T + c, atol=2e-2)
    with pytest.raises(InputError, match="only one class is present"):
        linear.linear_head(X, np.zeros(len(X), int), 10, penalty=penalty)


def test_probabilities_are_the_softmax_of_centred_logits():
    X, y, _ = digits(0.2, n=500)
    out = linear_probe(X, y, 10)
    np.testing.assert_allclose(out.pred_probs.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(out.logits.sum(1), 0, atol=1e-3)
    e = np.exp(out.logits)
    np.testing.assert_allclose(out.pred_probs, e / e.sum(1, keepdims=True), atol=1e-12)
    assert out.pred_probs.dtype == out.logits.dtype == np.float64


def test_the_penalty_is_the_best_out_of_sample_one():
    X, y, _ = digits(0.4)
    losses = {}
    for penalty in linear.PENALTIES:
        p = linear_probe(X, y, 10, penalty=penalty).pred_probs
        losses[penalty] = -np.log(p[np.arange(len(y)), y] + 1e-12).mean()
    assert linear_probe(X, y, 10).penalty == min(losses, key=lambda penalty: losses[penalty])


@pytest.mark.parametrize("rate", [0.2, 0.4])
def test_the_given_labels_are_predicted_better_than_by_scikit_learn(rate):
    """Log loss is a proper score: lower means better calibrated, sharper, or both."""
    X, y, _ = digits(rate)
    fold, i = linear._folds(y, 5, 0), np.arange(len(y))
    ours = linear_probe(X, y, 10).pred_probs[i, y]
    theirs = peer(X, y, fold, 10, max_iter=1000)[i, y]
    assert -np.log(ours).mean() < -np.log(theirs).mean() - 0.05


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("penalty", [1e-3, 1.0, 100.0])
def test_few_passes_even_on_separable_data(monkeypatch, rate, penalty):
    passes, plain = [], linear._loss
    monkeypatch.setattr(linear, "_loss", lambda *a: passes.append(1) or plain(*a))
    X, y, _ = digits(rate)
    linear_probe(X, y, 10, penalty=penalty)
    assert len(passes) <= 40


def test_bad_steps_are_undone(monkeypatch):
    """Where L-BFGS points uphill, its step is taken back and the plain step follows."""
    X, y = blobs()
    good = linear_probe(X, y, 3, penalty=30.0, tolerance=1e-9).logits

    def uphill(gradient, curvature, pairs, scale):
        plain = gradient / curvature
        return np.where((scale == 1)[:, None], plain, -50 * plain).astype(np.float32)

    monkeypatch.setattr(linear, "_lbfgs", uphill)
    bad = linear_probe(X, y, 3, penalty=30.0, tolerance=1e-9, max_steps=600).logits
    np.testing.assert_allclose(bad, good, atol=1e-2)


def test_an_outlier_does_not_break_the_others():
    X, y = blobs()
    X[0] *= 1e5
    p = linear_probe(X, y, 3, penalty=1e-3).pred_probs
    assert np.isfinite(p).all()
    shares = np.bincount(y) / len(y)
    assert -np.log(p[np.arange(300), y] + 1e-300)[1:].mean() <= -np.log(shares[y]).mean() + 0.05


@pytest.mark.parametrize(
    "spoil",
    [
        lambda X: np.column_stack([X, np.full(len(X), 3.7)]),
        lambda X: np.column_stack([X, np.full(len(X), 1e6 + 0.1)]),
        lambda X: np.column_stack([X, X]),
        lambda X: np.zeros_like(X),
        lambda X: X[:, :0],
        lambda X: np.random.default_rng(0).normal(size=(len(X), 500)),
    ],
    ids=["constant", "large constant", "duplicate", "all zero", "no features", "more features than samples"],
)
def test_degenerate_features(spoil):
    X, y = blobs(120)
    X = spoil(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = linear_probe(X, y, 3)
    assert np.isfinite(out.pred_probs).all()
    assert np.isfinite(out.head[0]).all()
    assert out.head[0].shape == (3, X.shape[1])


def test_a_constant_feature_changes_nothing():
    X, y = blobs()
    plain = linear_probe(X, y, 3, penalty=1.0, tolerance=1e-9)
    more = linear_probe(np.column_stack([X, np.full(300, 7.0)]), y, 3, penalty=1.0, tolerance=1e-9)
    np.testing.assert_allclose(more.pred_probs, plain.pred_probs, atol=1e-3)
    assert (more.head[0][:, -1] == 0).all()


def test_rare_and_missing_classes():
    X, y = blobs(100)
    y[y == 2] = 0
    y[4] = 3  # one sample; classes 2 and 4 have none
    out = linear_probe(X, y, 5)
    assert out.pred_probs.shape == (100, 5)
    assert out.pred_probs[:, [2, 4]].max() < 0.05
    assert out.pred_probs[4, 3] < 0.05  # its model never saw that class
    few = linear_probe(X[:20], np.array([0] * 17 + [1] * 3), 2)  # fewer of class 1 than folds
    assert np.isfinite(few.logits).all()


@pytest.mark.parametrize("n", [2, 3, 4])
def test_fewer_samples_than_folds(n):
    X, _ = blobs(n)
    out = linear_probe(X, np.arange(n) % 2, 2)
    np.testing.assert_allclose(out.pred_probs.sum(1), 1)


def test_input_errors():
    X, y = blobs(60)
    with pytest.raises(InputError, match="only one class is present"):
        linear_probe(X, np.ones(60, int), 3)
    with pytest.raises(InputError, match="only one class is present"):
        linear_probe(X[:0], y[:0], 3)
    for value in (np.nan, np.inf):
        bad = X.copy()
        bad[17, 2] = value
        with pytest.raises(InputError, match="row 17 "):
            linear_probe(bad, y, 3)
    with pytest.raises(InputError, match="too large"):
        linear_probe(X * np.float32(1e25), y, 3)
    with pytest.raises(InputError, match="row 0: label"):
        linear_probe(X, np.where(np.arange(60) == 0, 3, y), 3)
    with pytest.raises(InputError, match="whole numbers"):
        linear_probe(X, y.astype(float), 3)
    with pytest.raises(InputError, match="must be"):
        linear_probe(X[:, 0], y, 3)
    with pytest.raises(InputError, match="two folds"):
        linear_probe(X, y, 3, folds=1)
    with pytest.raises(InputError, match="one fold"):
        linear_probe(X, y, 3, folds=np.zeros(60, int))
    with pytest.raises(InputError, match="folds must be"):
        linear_probe(X, y, 3, folds=np.arange(5))
    with pytest.raises(InputError, match="penalty"):
        linear_probe(X, y, 3, penalty=0.0)


def test_progress_rises_to_one():
    X, y, _ = digits(0.2, n=400)
    seen = []
    linear_probe(X, y, 10, progress=seen.append)
    assert len(seen) > 5
    assert seen == sorted(seen)
    assert seen[0] >= 0
    assert seen[-1] == 1


def test_memory_grows_with_samples_not_with_the_square_of_weights():
    X, y = blobs(8000, dim=100, classes=60)  # a Hessian of all weights would take 288 MB
    linear_probe(X[:500], y[:500], 60)  # imports
    tracemalloc.start()
    linear_probe(X, y, 60)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6

"""The Intrinsic Strategy: the sheet's set-up and unit case, the rule in loops, learnt noise, bad input."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.detectors.tacred_intrinsic import IntrinsicStrategy


def relations(seed):
    """Four positive clusters of 300 and 3000 broad negatives in 16 dimensions; 15 % of the positives filed as 0."""
    rng = np.random.default_rng(seed)
    centres = 1.6 * rng.normal(size=(4, 16))  # at a distance that gives the classifier about as many misses as there
    truth = np.repeat([1, 2, 3, 4, 0], [300, 300, 300, 300, 3000])
    X = np.vstack([c + 0.7 * rng.normal(size=(300, 16)) for c in centres] + [1.6 * rng.normal(size=(3000, 16))])
    wrong = (truth > 0) & (rng.random(4200) < 0.15)
    return X, truth, np.where(wrong, 0, truth), wrong


def certain(y, n_classes=2, sure=0.8):
    """Probabilities (N, C) of a classifier that says y."""
    return (
        np.full((len(y), n_classes), (1 - sure) / (n_classes - 1)) * (1 - np.eye(n_classes)[y])
        + sure * np.eye(n_classes)[y]
    )


class TestSheet:
    def test_1_and_2_negatives_beside_misses_against_the_plain_baseline(self):
        found, baseline, misses = [], [], []
        for seed in range(4):
            X, _, y, wrong = relations(seed)
            p = linear_probe(X / np.linalg.norm(X, axis=1, keepdims=True), y, 5, folds=3, penalty=1.0).pred_probs
            plain = (y == 0) & (p.argmax(axis=1) > 0)
            models = [IntrinsicStrategy(k=k, negative=0).fit(X, y, pred_probs=p) for k in (1, 3, 5, 10)]
            found.append([(m.flags_.sum(), wrong[m.flags_].mean(), m.flags_[wrong].mean()) for m in models])
            baseline.append([plain.sum(), wrong[plain].mean(), plain[wrong].mean()])
            assert models[0].info_["seeds"] == [((y > 0) & (p.argmax(axis=1) == 0)).sum(), 0, 0, 0, 0]
            misses.append(models[0].info_["seeds"][0])
            assert models[0].info_["baseline"]["flagged"] == plain.sum()
            assert models[0].info_["baseline"]["shared"] == (plain & models[0].flags_).sum()
            assert not any(m.flags_[y > 0].any() for m in models)
        flagged, precision, recall = np.mean(found, axis=0).T
        assert np.mean(misses) == pytest.approx(15, abs=5)
        # the sheet's are of one draw, and it does not print where its clusters lie
        assert flagged == pytest.approx([11, 35, 53, 94], rel=0.6)
        assert precision == pytest.approx([0.909, 0.829, 0.679, 0.617], abs=0.17)
        assert recall == pytest.approx([0.06, 0.174, 0.216, 0.347], abs=0.1)
        assert (np.diff(precision) < 0).all()
        assert (np.diff(recall) > 0).all()
        assert precision.min() > 10 * 0.053, "the base rate"
        assert np.mean(baseline, axis=0) == pytest.approx([172, 0.965, 0.994], rel=0.1)

    def test_4_worked_by_hand(self):
        X = np.array([[1.0, 0, 0], [0.99, 0.14, 0], [0, 0, 1]])
        y = np.array([1, 0, 0])
        model = IntrinsicStrategy(k=1, negative=0).fit(X, y, pred_probs=certain(np.zeros(3, int)))
        np.testing.assert_array_equal(model.flags_, [False, True, False])
        np.testing.assert_array_equal(model.suggestions_, [1, 1, 0])
        assert model.scores_[1] > model.scores_[2] > model.scores_[0]

    def test_5_without_misses_nothing_is_flagged(self, blobs):
        p = certain(blobs.y, 4)
        model = IntrinsicStrategy().fit(blobs.X, blobs.y, pred_probs=p)
        assert not model.flags_.any()
        assert model.info_["seeds"] == [0, 0, 0, 0]
        np.testing.assert_array_equal(model.scores_, 1 - p[np.arange(400), blobs.y])
        assert "missed nothing" in model.info_["note"]


def in_loops(X, y, p, k, negative):
    """Cosines one by one."""
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    n, predicted = len(y), p.argmax(axis=1)
    excess, flags, labels = [None] * n, [False] * n, y.tolist()
    for c in set(y) if negative is None else [negative]:
        filed = [j for j in range(n) if y[j] == c]
        sure = np.mean([p[j, c] for j in filed])
        misses = [s for s in range(n) if y[s] != c and predicted[s] == c and (negative is not None or p[s, c] < sure)]
        if not misses:
            continue
        for s in misses:
            for j in sorted(filed, key=lambda j: -(unit[j] @ unit[s]))[:k]:
                flags[j] = True
        centre = np.mean([unit[j] for j in filed], axis=0)
        for j in filed:
            near = max(misses, key=lambda s: unit[j] @ unit[s])
            excess[j] = unit[j] @ unit[near] - unit[j] @ centre / np.linalg.norm(centre)
            if flags[j]:
                labels[j] = y[near]
    lowest = min(e for e in excess if e is not None)
    scores = [1 - p[j, y[j]] + (lowest if excess[j] is None else excess[j]) for j in range(n)]
    if negative is not None:
        below = min(scores[j] for j in range(n) if y[j] == negative)
        scores = [scores[j] if y[j] == negative else below - p[j, y[j]] for j in range(n)]
    return scores, flags, labels


@pytest.mark.parametrize("negative", [None, 0, 2])
@pytest.mark.parametrize("k", [1, 4])
def test_agrees_with_loops(blobs, k, negative):
    X, y, p = blobs.X[:120].astype(float), blobs.y[:120], blobs.p[:120]
    model = IntrinsicStrategy(k=k, negative=negative).fit(X, y, pred_probs=p)
    scores, flags, labels = in_loops(X, y, p, k, negative)
    np.testing.assert_allclose(model.scores_, scores, atol=1e-6)
    np.testing.assert_array_equal(model.flags_, flags)
    np.testing.assert_array_equal(model.suggestions_, labels)
    assert model.info_["flagged"] == np.bincount(y[model.flags_], minlength=4).tolist()


def test_neighbours_are_searched_among_the_negatives_only():
    """The miss itself, and positives nearer than any negative, would take the k places."""
    X = np.array([[1.0, 0], [1, 0.01], [1, 0.02], [1, 0.5], [0, 1]])
    y = np.array([1, 1, 1, 0, 0])
    p = certain(np.array([0, 1, 1, 0, 0]))
    np.testing.assert_array_equal(IntrinsicStrategy(k=1, negative=0).fit(X, y, pred_probs=p).flags_, [0, 0, 0, 1, 0])


def test_of_two_claims_the_closer_gives_the_label():
    X = np.array([[1.0, 0], [0.9, 0.2], [0, 1], [1, 0.1], [0.2, 1]])
    y = np.array([1, 2, 2, 0, 0])
    model = IntrinsicStrategy(k=2, negative=0).fit(X, y, pred_probs=certain(np.zeros(5, int), 3))
    assert model.flags_.tolist() == [False, False, False, True, True]
    assert model.suggestions_.tolist() == [1, 2, 2, 1, 2]
    assert model.info_["claimed_by_several"] == 2


def test_a_miss_that_is_itself_mislabelled_flags_no_clean_neighbours(blobs):
    """Sure misses are left out where every class is searched; with one class searched they count."""
    p = certain(blobs.truth, 4, sure=0.97)
    y = np.where(blobs.ood, blobs.truth, blobs.y)
    p[~blobs.wrong] = certain(blobs.truth, 4, sure=0.9)[~blobs.wrong]
    assert not IntrinsicStrategy().fit(blobs.X, y, pred_probs=p).flags_.any()
    assert IntrinsicStrategy(negative=1).fit(blobs.X, y, pred_probs=p).flags_[~blobs.wrong].any()


def test_similarity_gate(blobs):
    model = IntrinsicStrategy(k=5).fit(blobs.X, blobs.y, pred_probs=blobs.p)
    gated = IntrinsicStrategy(k=5, min_similarity=0.9).fit(blobs.X, blobs.y, pred_probs=blobs.p)
    np.testing.assert_array_equal(gated.scores_, model.scores_)
    assert not (gated.flags_ & ~model.flags_).any()
    assert 0 < gated.flags_.sum() < model.flags_.sum()
    assert not IntrinsicStrategy(min_similarity=1.1).fit(blobs.X, blobs.y, pred_probs=blobs.p).flags_.any()


def test_finds_planted_noise(blobs):
    model = IntrinsicStrategy().fit(blobs.X, blobs.y)
    inside = ~blobs.ood
    assert roc_auc_score(blobs.wrong[inside], model.scores_[inside]) > 0.98
    assert (~blobs.clean)[model.flags_].mean() > 0.6
    assert model.flags_[blobs.clean].mean() < 0.15


def test_adds_to_the_classifier_that_has_learnt_the_noise(digits):
    """A third of each class filed under the next one: the classifier half believes it."""
    data = digits(0.0)
    gains = []
    for seed in range(2):
        wrong = np.random.default_rng(seed).random(len(data.y)) < 0.3
        y = np.where(wrong, (data.y + 1) % 10, data.y)
        p = linear_probe(data.X, y, 10, penalty=10.0).pred_probs
        plain = roc_auc_score(wrong, 1 - p[np.arange(len(y)), y])
        gains.append(roc_auc_score(wrong, IntrinsicStrategy().fit(data.X, y, pred_probs=p).scores_) - plain)
    assert np.mean(gains) > 0.005


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_rotation_and_scale_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    X, y, p = rng.normal(size=(100, 4)), rng.integers(0, 3, 100), rng.dirichlet(np.ones(3), 100)
    model = IntrinsicStrategy().fit(X, y, pred_probs=p)
    order = rng.permutation(100)
    moved = IntrinsicStrategy().fit(X[order], y[order], pred_probs=p[order])
    np.testing.assert_allclose(moved.scores_, model.scores_[order], atol=1e-5)
    np.testing.assert_array_equal(moved.flags_, model.flags_[order])
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    turned = IntrinsicStrategy().fit(rng.uniform(0.1, 10, (100, 1)) * X @ turn, y, pred_probs=p)
    np.testing.assert_allclose(turned.scores_, model.scores_, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda X, y, p: (0 * X, y, p),
        lambda X, y, p: (X[np.arange(len(X)) // 7], y, p),
        lambda X, y, p: (X[:, :1], y, p),
        lambda X, y, p: (X, np.where(y == 1, 2, y), p),
        lambda X, y, p: (X, np.where(np.arange(len(y)) == 4, 1, 0), p),
        lambda X, y, p: (X, 0 * y, p),
        lambda X, y, p: (X, y, np.full_like(p, 1 / 3)),
        lambda X, y, p: (X[:2], y[:2], p[:2]),
    ],
    ids=["zero", "duplicates", "narrow", "missing", "single", "one class", "equal", "few"],
)
def test_degenerate_input_stays_finite(change):
    rng = np.random.default_rng(0)
    X, y, p = change(rng.normal(size=(60, 4)), rng.integers(0, 3, 60), rng.dirichlet(np.ones(3), 60))
    model = IntrinsicStrategy().fit(X, y, pred_probs=p)
    assert np.isfinite(model.scores_).all()
    assert set(model.suggestions_) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"k": 0}, "k must be at least 1, got 0"), ({"negative": 7}, "no sample is labelled 7, which negative names")],
)
def test_parameters(blobs, parameters, message):
    with pytest.raises(InputError, match=f"tacred-intrinsic: {message}"):
        IntrinsicStrategy(**parameters).fit(blobs.X, blobs.y, pred_probs=blobs.p)

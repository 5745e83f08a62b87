"""ViM: the sheet's numbers and contaminated digits, loops, identities of the head, traps, bad input."""

import math

import numpy as np
import pytest
from contaminated_digits import contaminated
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.linear import linear_probe
from chaffinch.base.neighbors import Neighbors, nearest
from chaffinch.base.seeds import seeds
from chaffinch.detectors.vim import Vim, origin, principal

W, B = np.array([[1.0, 0, 0], [0, 1, 0]]), np.array([1.0, -2])
X6 = np.array([(3, 2, 0.1), (2, 2, -0.1), (-1, 5, 0.2), (-1, 4, -0.2), (1, 3, 0), (0, 2, 1)])
Y6 = np.array([0, 0, 1, 1, 1, 0])
RESIDUAL = [0.049310, 0.211852, 0.170824, 0.219203, 0.084294, 0.961948]
S2 = [-3.582405, -1.176473, -1.539035, -0.189857, -1.568369, 7.187363]
S1 = [-3.049187, -2.212300, 2.826123, 1.803589, -0.832107, 0.595105]


def in_loops(X, W, b, dim, rows):
    """Residual, alpha and score with a singular value decomposition, one sample at a time."""
    A = X - (-np.linalg.pinv(W) @ b)
    directions = np.linalg.svd(A[rows], full_matrices=True)[2][dim:]
    residual = [math.sqrt(sum((v @ a) ** 2 for v in directions)) for a in A]
    z = [W @ x + b for x in X]
    alpha = sum(max(z[i]) for i in rows) / sum(residual[i] for i in rows)
    return alpha, [alpha * r - math.log(sum(math.exp(v) for v in row)) for r, row in zip(residual, z, strict=True)]


def random_set(seed=0, n=120, d=6, classes=3):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    X = 3 * rng.normal(size=(classes, d))[y] + rng.normal(size=(n, d)) * rng.uniform(0.2, 2, d)
    return X, y, (rng.normal(size=(classes, d)), rng.normal(size=classes))


@pytest.mark.parametrize(("dim", "alpha", "expected"), [(2, 8.836885, S2), (1, 1.969224, S1)])
def test_known_answer(dim, alpha, expected):
    model = Vim(dim=dim, fit_on="plain").fit(X6, Y6, head=(W, B))
    np.testing.assert_allclose(model.scores_, expected, atol=2e-6)
    assert model.info_["alpha"] == pytest.approx(alpha, abs=1e-6)
    assert in_loops(X6, W, B, dim, range(6))[0] == pytest.approx(alpha, abs=1e-6)


def test_known_space():
    o = origin(W, B)
    np.testing.assert_allclose(o, (-1, 2, 0))
    values, vectors = principal(X6, o, np.arange(6))
    np.testing.assert_allclose(values, (5.048149, 2.292352, 0.176166), atol=1e-6)
    np.testing.assert_allclose(np.abs((X6 - o) @ vectors[:, 2]), RESIDUAL, atol=1e-6)
    centred = X6 - X6.mean(axis=0)
    wrong = np.abs(centred @ np.linalg.eigh(centred.T @ centred)[1][:, 0])
    np.testing.assert_allclose(wrong[:3], (0.201853, 0.250558, 0.336735), atol=1e-6)  # the trap: about the mean


@pytest.mark.parametrize("fit_on", ["seeds", "plain"])
@pytest.mark.parametrize("dim", [0, 1, 3, 5])
def test_agrees_with_loops(fit_on, dim):
    X, y, head = random_set()
    near = nearest(X, 10)
    rows = seeds(y, near) if fit_on == "seeds" else np.arange(len(y))
    model = Vim(dim=dim, fit_on=fit_on).fit(X, y, head=head, neighbors=near)
    alpha, scores = in_loops(X, *head, dim, rows)
    assert model.info_["alpha"] == pytest.approx(alpha, rel=1e-9)
    np.testing.assert_allclose(model.scores_, scores, rtol=1e-7, atol=1e-8)


class TestIdentities:
    def test_logits_vanish_at_the_origin(self):
        X, _, (W_, b) = random_set()
        o = origin(W_, b)
        np.testing.assert_allclose(W_ @ o + b, 0, atol=1e-10)
        np.testing.assert_allclose(X @ W_.T + b, (X - o) @ W_.T, atol=1e-10)

    def test_but_not_with_more_classes_than_features_or_rows_that_sum_to_zero(self):
        rng = np.random.default_rng(0)
        tall, b = rng.normal(size=(5, 3)), rng.normal(size=5)
        assert np.abs(tall @ origin(tall, b) + b).max() > 0.1
        flat = rng.normal(size=(3, 6))
        flat -= flat.mean(axis=0)
        assert np.abs(flat @ origin(flat, b[:3]) + b[:3]).max() > 0.1
        centred = b[:3] - b[:3].mean()
        np.testing.assert_allclose(flat @ origin(flat, centred) + centred, 0, atol=1e-10)

    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 10**6))
    def test_rotating_features_and_head_together_and_row_order_change_nothing(self, seed):
        X, y, (W_, b) = random_set(seed)
        b = b + 20  # a mean logit above 0
        near, rng = nearest(X, 10), np.random.default_rng(seed)
        model = Vim().fit(X, y, head=(W_, b), neighbors=near)
        scores, dim = model.scores_, model.info_["dim"]
        Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
        turned = Vim().fit(X @ Q, y, head=(W_ @ Q, b), neighbors=near)
        np.testing.assert_allclose(turned.scores_, scores, rtol=1e-6, atol=1e-7)
        order = rng.permutation(len(y))
        moved = Neighbors(np.argsort(order)[near.indices[order]], near.similarity[order])
        again = Vim().fit(X[order], y[order], head=(W_, b), neighbors=moved)
        np.testing.assert_allclose(again.scores_, scores[order], rtol=1e-6, atol=1e-7)
        assert turned.info_["dim"] == again.info_["dim"] == dim


@pytest.mark.parametrize(
    ("kind", "fit_on", "expected"),
    [
        ("clustered", "plain", (0.95, 0.91, 0.86)),
        ("clustered", "seeds", (0.95, 0.96, 0.97)),
        ("diffuse", "plain", (1.0, 1.0, 1.0)),
        ("diffuse", "seeds", (1.0, 1.0, 1.0)),
    ],
)
def test_contaminated_digits_of_the_sheet(kind, fit_on, expected):
    found = []
    for share in (0.1, 0.3, 0.6):
        X, y, ood, _ = contaminated(kind, share, 0)
        head = LogisticRegression(max_iter=500).fit(X, y)
        model = Vim(dim=16, fit_on=fit_on).fit(X, y, head=(head.coef_, head.intercept_))
        found.append(roc_auc_score(ood, model.scores_))
    np.testing.assert_allclose(found, expected, atol=0.04)


def test_foreigners_shrink_their_own_residual():
    """Residual alone: .56 of 60 % clustered foreigners when they shape the principal space."""
    X, y, ood, _ = contaminated("clustered", 0.6, 0)
    o = origin(*linear_probe(X, y, 5).head)
    found = []
    for rows in (np.arange(900), seeds(y, nearest(X, 10))):
        R = principal(X, o, rows)[1][:, 16:]
        found.append(roc_auc_score(ood, np.linalg.norm((X - o) @ R, axis=1)))
    assert found[0] == pytest.approx(0.56, abs=0.06)
    assert found[1] > 0.85


class TestTraps:
    def test_negative_logits_do_not_turn_the_residual_round(self):
        """Class rows that sum to zero: then a constant added to all logits moves neither origin nor alpha."""
        X, y, (W_, b) = random_set()
        W_ = (W_ - W_.mean(axis=0)) / 10
        low, lower = (Vim(fit_on="plain").fit(X, y, head=(W_, b + shift)) for shift in (-50.0, -80.0))
        assert "logits were centred" in low.info_["note"]
        assert low.info_["alpha"] == pytest.approx(lower.info_["alpha"])
        np.testing.assert_allclose(lower.scores_ - low.scores_, 30)
        o = origin(W_, b)
        residual = np.linalg.norm((X - o) @ principal(X, o, np.arange(len(X)))[1][:, low.info_["dim"] :], axis=1)
        z = X @ W_.T + b - 50
        np.testing.assert_allclose(low.scores_ + np.log(np.exp(z).sum(axis=1)), low.info_["alpha"] * residual)
        assert low.info_["alpha"] > 0
        assert z.max(axis=1).mean() < 0, "the trap is set: the plain alpha is negative"

    def test_positive_logits_are_not_centred(self):
        assert "note" not in Vim(dim=2, fit_on="plain").fit(X6, Y6, head=(W, B)).info_

    def test_residual_is_never_empty(self):
        """The paper's 512 directions of 512 features would leave nothing: alpha infinite, scores NaN."""
        X, y, head = random_set()
        with pytest.raises(InputError, match="dim must be 0 to 5, less than the number of features, got 6"):
            Vim(dim=6).fit(X, y, head=head)
        many = (np.random.default_rng(0).normal(size=(20, 6)), np.ones(20))
        model = Vim(fit_on="plain").fit(X, y, head=many)
        assert model.info_["dim"] == 5
        assert np.isfinite(model.scores_).all()

    def test_dead_directions_are_no_residual(self):
        X, y, (W_, b) = random_set()
        dead = np.hstack([X, np.zeros((len(X), 4))])
        model = Vim(dim=8, fit_on="plain").fit(dead, y, head=(np.hstack([W_, np.zeros((3, 4))]), b + 20))
        assert model.info_["dim"] == 5
        assert "dim was cut from 8 to 5" in model.info_["note"]
        np.testing.assert_allclose(
            model.scores_, Vim(dim=5, fit_on="plain").fit(X, y, head=(W_, b + 20)).scores_, rtol=1e-6
        )

    def test_a_single_precision_head_with_rows_that_sum_to_zero(self):
        """Its last singular value is rounding; the inverse of that would throw the origin far away."""
        rng = np.random.default_rng(0)
        W_, b = rng.normal(size=(4, 12)), rng.normal(size=4)
        W_ -= W_.mean(axis=0)
        b -= b.mean()
        W32, b32 = W_.astype(np.float32).astype(float), (b + 1e-4).astype(np.float32).astype(float)
        assert np.linalg.norm(np.linalg.pinv(W32) @ b32) > 100, "the trap is set"
        np.testing.assert_allclose(origin(W32, b32), origin(W_, b), atol=1e-5)

    def test_features_go_in_as_the_head_knows_them(self):
        X, y, (W_, b) = random_set()
        near = nearest(X, 10)
        one, other = (Vim(dim=3).fit(Z, y, head=(W_, b + 20), neighbors=near).scores_ for Z in (X, 2 * X))
        assert np.abs(one - other).max() > 1

    def test_large_logits_do_not_overflow(self):
        X, y, (W_, b) = random_set()
        assert np.isfinite(Vim().fit(X, y, head=(1e4 * W_, b)).scores_).all()


def test_default_dim():
    X, y, (W_, b) = random_set(d=12)
    white, o = np.random.default_rng(0).normal(size=(400, 12)), np.zeros(3)
    y = np.arange(400) % 3
    assert Vim(fit_on="plain").fit(white, y, head=(W_, o)).info_["dim"] == 6, "at most half"
    flat = white * np.array([10, 9, 8, 7] + [1.0] * 8)
    assert Vim(fit_on="plain").fit(flat, y, head=(W_, o)).info_["dim"] == 4, "what holds 90 %"
    steep = white * np.array([100] + [1.0] * 11)
    assert Vim(fit_on="plain").fit(steep, y, head=(W_, o)).info_["dim"] == 3, "one for each class"


def test_finds_planted_foreigners_and_no_wrong_labels(blobs):
    model = Vim().fit(blobs.X, blobs.y)
    assert roc_auc_score(blobs.ood, model.scores_) > 0.98
    inside = ~blobs.ood
    assert 0.35 < roc_auc_score(blobs.wrong[inside], model.scores_[inside]) < 0.65
    assert blobs.ood[model.flags_].all()
    assert model.info_["fitted"] == np.rint(0.3 * np.bincount(blobs.y)).sum()


def test_alone_uses_the_probe(blobs):
    alone = Vim().fit(blobs.X, blobs.y)
    head = linear_probe(blobs.X, blobs.y, 4).head
    np.testing.assert_array_equal(alone.scores_, Vim().fit(blobs.X, blobs.y, head=head).scores_)


def test_budget_decides_how_many(blobs):
    model = Vim(budget=0.2).fit(blobs.X, blobs.y)
    assert model.flags_.sum() == 80
    assert model.info_["threshold"] == model.scores_[model.flags_].min() >= model.scores_[~model.flags_].max()


def test_odd_rows_stay_finite(blobs):
    X, y = blobs.X.copy(), blobs.y.copy()
    X[:20], X[20:40], y[7] = X[20], 0, 6
    assert np.isfinite(Vim().fit(X, y).scores_).all()
    rng = np.random.default_rng(0)
    wide, narrow = rng.normal(size=(30, 80)), rng.normal(size=(40, 1)) + np.arange(40)[:, None] % 2
    for X, y in ((wide, np.arange(30) % 3), (narrow, np.arange(40) % 2)):
        assert np.isfinite(Vim().fit(X, y).scores_).all()


def test_samples_that_are_all_the_same():
    with pytest.raises(InputError, match="all samples are the same to the head"):
        Vim(fit_on="plain").fit(np.ones((30, 4)), np.arange(30) % 3, head=(np.eye(3, 4), np.ones(3)))


def test_a_head_that_has_learnt_nothing(blobs):
    with pytest.raises(InputError, match="head gives all classes the same logit"):
        Vim().fit(blobs.X, blobs.y, head=(np.zeros((4, 12)), np.full(4, -1.0)))


@pytest.mark.parametrize("head", [(np.ones((4, 11)), np.ones(4)), (np.ones((4, 12)), np.ones(3))])
def test_a_head_of_other_features(blobs, head):
    with pytest.raises(InputError, match=r"head must be weights and biases \(C, 12\) and \(C,\)"):
        Vim().fit(blobs.X, blobs.y, head=head)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fit_on": "mcd"}, "fit_on must be one of seeds, trimmed, plain"),
        ({"h": -0.1}, "h must be a share above 0"),
        ({"dim": -1}, "dim must be 0 to 11"),
        ({"budget": 1.0}, "flags all 400 samples"),
    ],
)
def test_parameters_out_of_range(blobs, parameters, message):
    with pytest.raises(InputError, match=message):
        Vim(**parameters).fit(blobs.X, blobs.y)


def test_without_features(blobs):
    with pytest.raises(MissingEvidence, match="vim needs features"):
        Vim().fit(None, blobs.y)

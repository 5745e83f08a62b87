"""The energy model: MECO's numbers without torch and against it, Mahalanobis as its limit, what the network adds."""

import math

import numpy as np
import pytest
from contaminated_digits import contaminated
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from chaffinch.base.errors import InputError, MissingEvidence
from chaffinch.base.neighbors import nearest
from chaffinch.detectors import energy_model
from chaffinch.detectors.energy_model import EnergyModel, Model, draw, log_normaliser, track, train, whitening
from chaffinch.detectors.mahalanobis import Mahalanobis

QUICK = {"steps": 60}


def bent(dim=3, hidden=5, seed=0):
    """A model all of whose parameters say something."""
    rng = np.random.default_rng(seed)
    model = Model(dim, hidden, rng)
    model.parameters = [p + 0.3 * rng.normal(size=p.shape) for p in model.parameters]
    return model


def trained(x, hidden=0, seed=0, steps=300, gamma=0.1, trim=0.0):
    rng = np.random.default_rng(seed)
    model = Model(x.shape[1], hidden, rng)
    train(model, x, steps=steps, gamma=gamma, trim=trim, rng=rng)
    return model


class TestSheet:
    def test_average_in_logs(self):
        assert track(math.log(3), np.full(7, math.log(5)), 0.1) == pytest.approx(1.163150810, abs=1e-9)
        assert track(-np.inf, np.full(7, math.log(5)), 0.1) == pytest.approx(math.log(5))
        assert track(math.log(3), np.full(7, math.log(5)), 1.0) == pytest.approx(math.log(5))

    @pytest.mark.parametrize("size", [-1e4, 1e4])
    def test_everything_stays_in_logs(self, size):
        assert track(size, np.full(4, size + 1), 0.5) == pytest.approx(size + math.log((1 + math.e) / 2))

    def test_normaliser_of_a_tilted_gaussian(self):
        """f = .7 x - x^2/2: Z = 3.202521708."""
        model = Model(1, 0, np.random.default_rng(0))
        model.parameters[1] = np.array([0.7])
        log_z = log_normaliser(model, np.random.default_rng(1))
        assert math.exp(log_z) == pytest.approx(3.202521708, abs=0.03)

    def test_noise_has_the_density_it_says(self):
        from scipy.stats import multivariate_normal

        y, log_q = draw(20_000, 3, np.random.default_rng(0))
        np.testing.assert_allclose(np.cov(y.T), energy_model.INFLATION * np.eye(3), atol=0.05)
        want = multivariate_normal(np.zeros(3), energy_model.INFLATION * np.eye(3)).logpdf(y)
        np.testing.assert_allclose(log_q, want)

    def test_without_the_network_it_is_mahalanobis(self, blobs):
        """The sheet's sanity line: trained, not only started, as a Gaussian; s = d^2/2 + const."""
        y = np.zeros(400, int)
        model = EnergyModel(fit_on="plain", hidden=0, trim=0.0).fit(blobs.X, y)
        want = Mahalanobis(fit_on="plain", ridge=0.0).fit(blobs.X, y).scores_ / 2
        assert np.corrcoef(model.scores_, want)[0, 1] > 0.999
        assert np.polyfit(want, model.scores_, 1)[0] == pytest.approx(1, abs=0.05)

    def test_the_square_finds_moments_that_it_did_not_start_with(self):
        rng = np.random.default_rng(0)
        x = rng.normal(size=(3000, 2)) * [0.6, 1.1] + [0.5, -0.3]
        L, b = trained(x).parameters[:2]
        precision = L.T @ L
        np.testing.assert_allclose(precision, np.linalg.inv(np.cov(x.T)), atol=0.25)
        np.testing.assert_allclose(np.linalg.solve(precision, b), x.mean(axis=0), atol=0.05)

    def test_tracker_leaves_less_bias_than_none(self, monkeypatch):
        """Data N(.8, 1) and 8 noise samples a step: the mean of the model overshoots, less so with memory."""
        monkeypatch.setattr(energy_model, "NOISE", 8)
        monkeypatch.setattr(energy_model, "CLIP", 1.0)
        x = np.random.default_rng(0).normal(0.8, 1, (2000, 1))
        off = {1.0: [], 0.1: []}
        for gamma, found in off.items():
            for seed in range(3):
                L, b = trained(x, gamma=gamma, seed=seed, steps=600).parameters[:2]
                found.append(abs(b[0] / L[0, 0] ** 2 - x.mean()))
        assert np.mean(off[0.1]) < 0.7 * np.mean(off[1.0])


class TestModel:
    def test_agrees_with_loops(self):
        model, x = bent(), np.random.default_rng(1).normal(size=(6, 3))
        L, b, W, c, v = (p.tolist() for p in model.parameters)
        for row, found in zip(x.tolist(), model(x), strict=True):
            square = sum(sum(p * q for p, q in zip(line, row, strict=True)) ** 2 for line in L)
            net = sum(
                v[k] * math.tanh(c[k] + sum(p * q for p, q in zip(W[k], row, strict=True))) for k in range(len(v))
            )
            assert found == pytest.approx(net + sum(p * q for p, q in zip(b, row, strict=True)) - square / 2)

    def test_gradient_is_that_of_differences(self):
        model, rng = bent(), np.random.default_rng(1)
        x, weight = rng.normal(size=(6, 3)), rng.normal(size=6)
        gradient = model.forward(x)[1](weight)
        for part, slope in zip(model.parameters, gradient, strict=True):
            for where in np.ndindex(part.shape):
                found = []
                for step in (1e-6, -1e-6):
                    part[where] += step
                    found.append(weight @ model(x))
                    part[where] -= step
                assert slope[where] == pytest.approx((found[0] - found[1]) / 2e-6, abs=1e-6)

    def test_a_step_takes_the_gradient_of_the_training_loss_of_that_name(self, monkeypatch):
        """One step of Adam shows the sign of every derivative; torch and the loss of the same paper say the same."""
        torch = pytest.importorskip("torch")
        from chaffinch.losses import compositional

        monkeypatch.setattr(energy_model, "PRIOR", 0.0)
        x = np.random.default_rng(2).normal(size=(50, 3))
        model = bent()
        L, b, W, c, v = parts = [torch.tensor(p, requires_grad=True) for p in model.parameters]
        before = [p.copy() for p in model.parameters]

        def f(rows):
            rows = torch.tensor(rows)
            return rows @ b + (rows @ W.T + c).tanh() @ v - (rows @ L.T).square().sum(1) / 2

        y, log_q = draw(energy_model.NOISE, 3, np.random.default_rng(3))
        f_y = f(y)
        log_w = compositional.log_weights(f_y, torch.tensor(log_q), energy_model.CLIP)
        log_u = compositional.track(torch.tensor(-math.inf), log_w, 0.1)
        loss = compositional.meco(f(x), f_y, log_w, log_u).mean()
        slopes = torch.autograd.grad(loss, parts)
        losses, _ = train(model, x, steps=1, gamma=0.1, trim=0.0, rng=np.random.default_rng(3))
        assert losses == [pytest.approx(loss.item())]
        for new, old, slope in zip(model.parameters, before, slopes, strict=True):
            np.testing.assert_allclose(old - new, energy_model.RATE * np.sign(slope.numpy()), rtol=0.01)

    def test_far_away_is_improbable_whatever_the_network_says(self):
        x = np.random.default_rng(0).normal(size=(200, 2))
        model = trained(x, hidden=32, steps=100)
        rays = np.random.default_rng(1).normal(size=(50, 2))
        rays /= np.linalg.norm(rays, axis=1, keepdims=True)
        assert (model(30 * rays) < model(10 * rays)).all()
        assert model(10 * rays).max() < model(x).min()


def test_whitening():
    rng = np.random.default_rng(0)
    X = rng.gamma(2, size=(300, 6)) @ rng.normal(size=(6, 6))
    rows = np.arange(0, 300, 2)
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    centre, axes = whitening(X, rows, 4)
    x = (unit[rows] - centre) @ axes
    np.testing.assert_allclose(x.T @ x / len(x), np.eye(4), atol=1e-10)
    assert ((x**3).sum(axis=0) > 0).all()
    _, values, _ = np.linalg.svd(unit[rows] - unit[rows].mean(axis=0))
    np.testing.assert_allclose(np.linalg.norm(axes, axis=0), np.sqrt(150) / values[:4])


def ring(seed=0):
    """Clean samples on a ring, foreign ones scattered in its middle, where a Gaussian expects most; one class."""
    rng = np.random.default_rng(seed)
    ood = np.arange(620) < 20
    angle, radius = rng.uniform(0, 2 * np.pi, 620), 2 + 0.2 * rng.normal(size=620)
    plane = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    plane[ood] = 0.5 * rng.normal(size=(20, 2))
    return np.column_stack([plane, np.full(620, 6.0)]), np.zeros(620, int), ood


def test_the_network_finds_what_no_gaussian_can():
    """AUROC with seeds 0 to 2: .983, .981, .982; a Gaussian has .003."""
    X, y, ood = ring()
    model = EnergyModel(fit_on="plain", dim=2, steps=200).fit(X, y)
    assert roc_auc_score(ood, model.scores_) > 0.95
    assert roc_auc_score(ood, EnergyModel(fit_on="plain", dim=2, hidden=0, **QUICK).fit(X, y).scores_) < 0.05
    assert model.info_["gain"] > 0.4
    assert model.flags_[ood].mean() > 0.7
    assert model.flags_[~ood].mean() < 0.05


def test_trimming_keeps_a_few_foreigners_from_being_learnt():
    rng = np.random.default_rng(0)
    x = np.vstack([rng.normal(size=(970, 2)), [5.0, 0] + 0.2 * rng.normal(size=(30, 2))])
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    foreign = {}
    for trim in (0.0, 0.05):
        model = trained(x, hidden=32, trim=trim)
        foreign[trim] = np.median(model(x[:970])) - np.median(model(x[970:]))
    assert foreign[0.05] > foreign[0.0] + 1.5


def test_seeds_find_foreigners_that_are_as_dense_as_a_class():
    """Digits 5 to 9 under random labels among 0 to 4: likelihood on everything takes them for data."""
    found = {}
    for fit_on in ("plain", "seeds"):
        X, y, ood, _ = contaminated("clustered", 0.3, 0)
        found[fit_on] = roc_auc_score(ood, EnergyModel(fit_on=fit_on, steps=150).fit(X, y).scores_)
    assert found["seeds"] > 0.9
    assert found["plain"] < found["seeds"] - 0.1


def test_finds_planted_foreigners_and_lets_wrong_labels_be(blobs):
    model = EnergyModel().fit(blobs.X, blobs.y)
    inside = ~blobs.ood
    assert roc_auc_score(blobs.ood, model.scores_) > 0.97
    assert 0.35 < roc_auc_score(blobs.wrong[inside], model.scores_[inside]) < 0.7
    assert model.flags_[blobs.ood].mean() > 0.7
    assert model.flags_[inside].mean() < 0.15


def test_labels_choose_the_samples_and_nothing_else(blobs):
    near, swapped = nearest(blobs.X, 10), (blobs.y + 1) % 4
    for fit_on in ("plain", "seeds"):
        first, second = (
            EnergyModel(fit_on=fit_on, **QUICK).fit(blobs.X, y, neighbors=near) for y in (blobs.y, swapped)
        )
        np.testing.assert_array_equal(first.scores_, second.scores_)
    mixed = np.random.default_rng(0).permutation(blobs.y)
    assert not np.array_equal(EnergyModel(**QUICK).fit(blobs.X, mixed).scores_, second.scores_)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6))
def test_row_order_lengths_and_rotation_do_not_matter(seed):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, 150)
    X = 3 * rng.normal(size=(3, 4))[y] + rng.normal(size=(150, 4))
    scores = EnergyModel(fit_on="plain", **QUICK).fit(X, y).scores_
    order, rotation = rng.permutation(150), np.linalg.qr(rng.normal(size=(4, 4)))[0]
    moved = rng.uniform(0.1, 10, (150, 1)) * X @ rotation
    again = EnergyModel(fit_on="plain", **QUICK).fit(moved[order], y[order])
    np.testing.assert_allclose(again.scores_, scores[order], rtol=1e-6)


def test_batches_do_not_depend_on_row_order(blobs, monkeypatch):
    monkeypatch.setattr(energy_model, "BATCH", 30)
    order = np.random.default_rng(0).permutation(400)
    first = EnergyModel(fit_on="plain", **QUICK).fit(blobs.X, blobs.y)
    second = EnergyModel(fit_on="plain", **QUICK).fit(blobs.X[order], blobs.y[order])
    np.testing.assert_allclose(second.scores_, first.scores_[order], rtol=1e-6)


def test_same_seed_same_bits(blobs):
    first, second, other = (EnergyModel(seed=seed, **QUICK).fit(blobs.X, blobs.y) for seed in (1, 1, 2))
    assert first.scores_.tobytes() == second.scores_.tobytes()
    assert first.info_ == second.info_
    assert first.scores_.tobytes() != other.scores_.tobytes()
    assert np.corrcoef(first.scores_, other.scores_)[0, 1] > 0.95


def test_what_it_tells(blobs):
    model = EnergyModel(**QUICK).fit(blobs.X, blobs.y)
    info = model.info_
    assert info["fit_on"] == "seeds"
    assert info["fitted"] == np.rint(0.3 * np.bincount(blobs.y)).sum()
    assert info["dim"] == 12
    assert len(info["losses"]) == energy_model.PHASES
    assert info["losses"][-1] < info["losses"][0]
    assert info["threshold"] == model.scores_[model.flags_].min() > model.scores_[~model.flags_].max()
    assert 1 <= info["effective_noise"] <= energy_model.NOISE
    assert "note" not in info


def test_scores_are_negative_log_densities():
    """Nearly Gaussian samples: their mean is the entropy; the density, integrated over a grid, is 1."""
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(500, 2)), np.full(500, 9.0)])
    model = EnergyModel(fit_on="plain", dim=2, trim=0.0, **QUICK).fit(X, np.zeros(500, int))
    assert model.scores_.mean() == pytest.approx(1 + math.log(2 * math.pi), abs=0.1)
    f = bent(2)
    grid = np.stack(np.meshgrid(*[np.linspace(-12, 12, 400)] * 2), axis=-1).reshape(-1, 2)
    total = np.exp(f(grid) - log_normaliser(f, rng)).sum() * (24 / 399) ** 2
    assert total == pytest.approx(1, abs=0.03)


def test_many_samples_are_drawn_from(blobs, monkeypatch):
    monkeypatch.setattr(energy_model, "LARGE", 100)
    model = EnergyModel(fit_on="plain", **QUICK).fit(blobs.X, blobs.y)
    assert model.info_["fitted"] == 100
    assert model.info_["note"] == "trained on 100 samples drawn from 400"
    assert roc_auc_score(blobs.ood, model.scores_) > 0.8


def test_few_samples_bear_few_directions():
    rng = np.random.default_rng(0)
    y = np.arange(50) % 2
    X = rng.normal(size=(50, 90)) + 2 * rng.normal(size=(2, 90))[y]
    model = EnergyModel(fit_on="plain", **QUICK).fit(X, y)
    assert model.info_["dim"] == 10
    assert "50 samples to train on bear 10 directions, not 32" in model.info_["note"]


def test_worse_than_a_gaussian_is_told(blobs, monkeypatch):
    monkeypatch.setattr(energy_model, "RATE", 0.5)
    model = EnergyModel(steps=20).fit(blobs.X, blobs.y)
    assert model.info_["gain"] < 0
    assert "less likely than one Gaussian does" in model.info_["note"]


@pytest.mark.parametrize("dim", [1, 2])
def test_odd_rows_stay_finite(blobs, dim):
    X = np.hstack([blobs.X, np.zeros((400, 2)), blobs.X[:, :2]])  # dead channels, and copies
    X[:20], X[20:40] = X[20], 0
    assert np.isfinite(EnergyModel(**QUICK).fit(X, blobs.y).scores_).all()
    assert np.isfinite(EnergyModel(**QUICK).fit(X[:, :dim] - 1.5, blobs.y).scores_).all()


@pytest.mark.parametrize("X", [np.ones((30, 4)), np.zeros((30, 4)), np.linspace(1, 9, 30)[:, None]])
def test_samples_that_are_all_the_same(X):
    with pytest.raises(InputError, match=r"samples to train on are all the same"):
        EnergyModel(**QUICK).fit(X, np.arange(30) % 3)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"fit_on": "mcd"}, "fit_on must be one of seeds, trimmed, plain"),
        ({"dim": 0}, "dim must be from 1 to 64"),
        ({"dim": 65}, "dim must be from 1 to 64"),
        ({"hidden": -1}, "hidden must be 0"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"gamma": 0.0}, "gamma must be above 0 and up to 1"),
        ({"gamma": 1.5}, "gamma must be above 0 and up to 1"),
        ({"trim": -0.1}, "trim must be a share up to .5"),
        ({"trim": 0.6}, "trim must be a share up to .5"),
    ],
)
def test_parameters_out_of_range(blobs, parameters, message):
    with pytest.raises(InputError, match=message):
        EnergyModel(**parameters).fit(blobs.X, blobs.y)


def test_without_features(blobs):
    with pytest.raises(MissingEvidence, match="energy-model needs features"):
        EnergyModel().fit(None, blobs.y, neighbors=nearest(blobs.X, 10))


def test_no_class_to_choose_from(blobs):
    with pytest.raises(InputError, match="no class has two samples"):
        EnergyModel().fit(blobs.X, np.arange(400))

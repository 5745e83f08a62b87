"""RCAL: drawn features, filling up, the held features, rare classes of digits and stripes, lost classes, bad input.

What the sheet computes for outliers and borrowed means alone is in ``tests/detectors/test_rcal.py``.
"""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from chaffinch.base.errors import InputError
from chaffinch.data import NoisyDataset, Observed, Truth
from chaffinch.detectors.rcal import RepresentationCalibration
from chaffinch.encoders.checkpoint import Encoder, ModelCard
from chaffinch.encoders.network import build, to_tensor
from chaffinch.trainers.base import Batch, Net, Site
from chaffinch.trainers.rcal import RepresentationResampling, draw_features, missing_samples

SMALL = "preact-resnet-8-16-32"


@pytest.fixture(scope="module")
def start(stripes):
    """An encoder of random weights that has seen stripes, so that its features are alike in both modes."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        network = build(SMALL, 1)
        x = to_tensor(stripes(seed=9).observed.images)
        for _ in range(40):
            network(x)
    card = ModelCard(
        name="random", architecture=SMALL, channels=1, dim=32, loss="simclr", dataset="none", seed=0, epochs=0, batch=0,
        learning_rate=0.0, precision="float32", device="CPU", seconds=0.0,
    )  # fmt: skip
    return Encoder(network, card)


def long_tailed(stripes, sizes=(110, 60, 16), wrong=0.2, seed=0):
    """Stripes of which the third class is rare; a wrong label goes to another class in proportion to its size."""
    whole = stripes(3 * max(sizes), wrong=0.0, foreign=0.0, seed=seed)
    rng = np.random.default_rng(seed)
    true, share = whole.observed.labels, np.array(sizes) / sum(sizes)
    rows = rng.permutation(np.concatenate([np.flatnonzero(true == c)[:n] for c, n in enumerate(sizes)]))
    true = true[rows]
    given = true.copy()
    for i in np.flatnonzero(rng.random(len(true)) < wrong):
        chances = share * (np.arange(3) != true[i])
        given[i] = rng.choice(3, p=chances / chances.sum())
    observed = Observed(given, whole.observed.classes, whole.observed.ids[rows], whole.observed.images[rows])
    return NoisyDataset("tail", observed, Truth.of(given, true), whole.test)


def made(labels, features, classes=3, **parameters):
    """A trainer that is set up outside of a training."""
    trainer = RepresentationResampling(**parameters)
    body = build(SMALL, 1)
    trainer.build([Net(body, classes, trainer.make_heads(body.dim))])
    trainer.setup(Site(torch.as_tensor(labels), classes, body.dim, 10, 4, torch.Generator(), lambda: features))
    return trainer


def blobs(sizes=(60, 40, 10), dim=32, seed=0):
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(sizes)), sizes)
    return y, torch.as_tensor(3 * np.eye(dim)[y] + rng.normal(size=(len(y), dim))).float()


class TestDraw:
    def gaussians(self):
        rng = np.random.default_rng(0)
        A = rng.normal(size=(3, 4, 4))
        covariances = A @ A.transpose(0, 2, 1) + 0.5 * np.eye(4)
        return (
            torch.as_tensor(3 * rng.normal(size=(3, 4))),
            covariances,
            torch.as_tensor(np.linalg.cholesky(covariances)),
        )

    def test_6_moments(self):
        """The sheet's check 6: within 2 % of mean and covariance."""
        centres, covariances, factors = self.gaussians()
        rng = torch.Generator().manual_seed(0)
        for c in range(3):
            z, classes = draw_features(
                centres.float(), factors.float(), F.one_hot(torch.tensor(c), 3).float(), 100_000, rng
            )
            assert (classes == c).all()
            mean, covariance = z.double().mean(0), torch.as_tensor(np.cov(z.numpy().T))
            assert float((mean - centres[c]).norm() / centres[c].norm()) < 0.02
            expected = torch.as_tensor(covariances[c])
            assert float((covariance - expected).norm() / expected.norm()) < 0.02

    def test_in_loops(self):
        centres, _, factors = self.gaussians()
        missing = torch.tensor([1.0, 0.0, 3.0])
        z, classes = draw_features(centres.float(), factors.float(), missing, 20, torch.Generator().manual_seed(1))
        again = torch.Generator().manual_seed(1)
        expected = torch.multinomial(missing, 20, replacement=True, generator=again)
        torch.testing.assert_close(classes, expected)
        noise = torch.randn(20, 4, generator=again)
        for i, c in enumerate(expected.tolist()):
            own = [sum(float(factors[c, a, b]) * float(noise[i, b]) for b in range(4)) for a in range(4)]
            np.testing.assert_allclose(z[i], centres[c].numpy() + own, atol=1e-5)

    def test_classes_come_as_they_are_missing(self):
        centres, _, factors = self.gaussians()
        missing = torch.tensor([1.0, 0.0, 3.0])
        classes = draw_features(centres.float(), factors.float(), missing, 4000, torch.Generator().manual_seed(0))[1]
        counts = torch.bincount(classes, minlength=3)
        assert counts[1] == 0
        assert float(counts[2] / counts[0]) == pytest.approx(3, rel=0.15)


@pytest.mark.parametrize(
    ("fill", "expected"), [(1.0, [0, 50, 90, 0]), (0.5, [0, 0, 40, 0]), (2.0, [100, 150, 190, 0]), (0.0, [0, 0, 0, 0])]
)
def test_how_many_are_missing(fill, expected):
    """A class that nobody carries stays empty."""
    np.testing.assert_array_equal(missing_samples(np.array([100, 50, 10, 0]), fill), expected)


class TestSetup:
    def test_the_gaussians_are_those_of_the_kept(self):
        y, z = blobs()
        trainer = made(y, z, gamma=0.0)
        flags = RepresentationCalibration(gamma=0.0).fit(z.double().numpy(), y).flags_
        np.testing.assert_array_equal(trainer.flags.numpy(), flags)
        for c in range(3):
            mean = z[torch.as_tensor((y == c) & ~flags)].mean(0)
            torch.testing.assert_close(trainer.centres[c], mean, atol=1e-5, rtol=1e-4)
        assert trainer.missing.tolist() == [0, 20, 50]

    def test_3_rare_classes_lean_on_common_ones(self):
        """A few samples with much noise: their centre is drawn towards the common classes, by half at most."""
        rng = np.random.default_rng(0)
        y = np.repeat([0, 1, 2], [100, 100, 4])
        z = torch.as_tensor(rng.normal(size=(204, 32))).float()
        own = made(y, z, gamma=0.0).centres[2]
        half = made(y, z, gamma=0.5).centres[2]
        assert half.norm() < 0.6 * own.norm()
        common = made(y, z, gamma=0.0).centres[:2]
        torch.testing.assert_close(made(y, z, gamma=0.5).centres[:2], common)
        torch.testing.assert_close(made(y, z, gamma=0.5, tail=0.0).centres[2], own)

    def test_a_class_that_nobody_carries(self):
        y, z = blobs()
        y = np.where(y == 1, 3, y)
        trainer = made(y, z, classes=6)
        assert trainer.missing.tolist() == [0, 0, 50, 20]
        assert trainer.factors.isfinite().all()
        assert trainer.step(0, batch_of(trainer, range(20))).total.isfinite()

    @pytest.mark.parametrize("dim", [3, 32])
    def test_dead_features_and_single_samples(self, dim):
        y, z = blobs((30, 20, 1))
        z[:, dim:] = 0
        trainer = made(y, z)
        assert trainer.factors.isfinite().all()
        assert trainer.centres.isfinite().all()

    def test_equal_features(self):
        with pytest.raises(InputError, match="all features are equal"):
            made(np.arange(30) % 3, torch.ones(30, 32))

    def test_from_scratch_it_says_what_it_lacks(self, stripes, trained):
        with pytest.raises(InputError, match="reads the features of the encoder that it starts from"):
            trained(stripes(60), trainer="rcal")


def batch_of(trainer, rows):
    rows, rng = torch.as_tensor(rows), torch.Generator().manual_seed(0)
    x = torch.rand(len(rows), 1, 12, 12, generator=rng)
    views = dict.fromkeys(("weak", "strong", "contrast", "plain"), lambda: x)
    return Batch(rows, trainer.labels[rows], 0, 0, rng, **views)


class TestStep:
    def test_the_terms_add_up(self):
        trainer = made(*blobs(), beta=2.0)
        batch = batch_of(trainer, range(40))
        out = trainer.step(0, batch)
        size = round(40 * 70 / 110)
        expected = out.parts["mixtures"] + 2 * out.parts["distance"] + size / 40 * out.parts["drawn"]
        assert float(out.total.detach()) == pytest.approx(expected, rel=1e-5)
        with torch.no_grad():
            h = trainer.nets[0].body.features(batch.weak())
            torch.testing.assert_close(out.logits, trainer.nets[0].classify(h))
        square = np.mean([float(row @ row) for row in trainer.z])
        distance = np.mean([float(((h[i] - trainer.z[i]) ** 2).sum()) for i in range(40)]) / square
        assert out.parts["distance"] == pytest.approx(distance, rel=1e-5)

    def test_drawn_features_reach_the_classifier_alone(self):
        trainer = made(*blobs(), beta=0.0, alpha=0.0)
        batch = batch_of(trainer, range(12))
        trainer.missing.mul_(20)
        grads = []
        for filled in (True, False):
            if not filled:
                trainer.missing.zero_()
            trainer.zero_grad()
            out = trainer.step(0, batch)
            assert ("drawn" in out.parts) == filled
            out.total.backward()
            net = trainer.nets[0]
            grads.append((net.body.stem.weight.grad.clone(), net.classify.weight.grad.clone()))
        torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-4, atol=1e-6)
        assert (grads[0][1] - grads[1][1]).norm() > 0.01

    def test_many_missing_count_as_much_as_the_batch(self):
        trainer = made(*blobs((100, 5, 5)), beta=0.0)
        out = trainer.step(0, batch_of(trainer, range(30)))
        assert round(30 * 190 / 110) > 30
        assert float(out.total.detach()) == pytest.approx(out.parts["mixtures"] + out.parts["drawn"], rel=1e-5)


def test_7_drawn_features_help_rare_digits():
    """The sheet's check 7, on digits: 10 to 1, a fifth mislabelled, a linear classifier."""
    X, truth = load_digits(return_X_y=True)
    gains = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        order = rng.permutation(10)
        pools = [rng.permutation(np.flatnonzero(truth == c)) for c in order]
        sizes = [int(120 * 10 ** (-i / 9)) for i in range(10)]
        rows = np.concatenate([pool[:n] for pool, n in zip(pools, sizes, strict=True)])
        tests = np.concatenate([pool[120:] for pool in pools])
        y = truth[rows].copy()
        wrong = rng.random(len(y)) < 0.2
        y[wrong] = (y[wrong] + rng.integers(1, 10, wrong.sum())) % 10
        z = torch.as_tensor(X[rows] / 16).float()
        trainer = made(y, z, classes=10)
        drawn, classes = draw_features(
            trainer.centres, trainer.factors, trainer.missing, int(trainer.missing.sum()),
            torch.Generator().manual_seed(seed),
        )  # fmt: skip
        rare, recalls = np.isin(truth[tests], order[6:]), []
        for A, b in ((z, y), (torch.cat([z, drawn]), np.append(y, classes.numpy()))):
            said = LogisticRegression(max_iter=300).fit(A.numpy(), b).predict(X[tests] / 16)
            recalls.append((said == truth[tests])[rare].mean())
        gains.append(recalls[1] - recalls[0])
    assert min(gains) > 0.02
    assert np.mean(gains) > 0.05


@pytest.mark.parametrize("seed", range(2))
def test_rare_stripes_are_learnt(stripes, trained, start, seed):
    """What it promises: without drawing, the rare class is lost (an accuracy of two thirds) at this budget."""
    data = long_tailed(stripes, (80, 44, 14), seed=seed)
    recipe = {"trainer": "rcal", "epochs": 5, "learning_rate": 0.03, "seed": seed, "start": start}
    filled = trained(data, "filled", **recipe).epoch(-1)
    bare = trained(data, "bare", parameters={"fill": 0.0}, **recipe).epoch(-1)
    assert filled.accuracy > bare.accuracy + 0.15
    assert filled.flags[data.truth.kind == 1].mean() > 0.6
    assert filled.flags[data.truth.kind == 0].mean() < 0.4


def test_beta_holds_the_features(stripes, trained, start):
    """The sheet's check 5, in between its limits: the firmer, the nearer to the start."""
    data = stripes(150)
    runs = [trained(data, f"b{beta}", trainer="rcal", start=start, parameters={"beta": beta}) for beta in (0.0, 3.0)]
    free, held = (run.epoch(-1).parts["distance"] for run in runs)
    assert held < 0.6 * free


def test_what_is_recorded(stripes, trained, start):
    data = long_tailed(stripes, (60, 40, 12))
    run = trained(data, trainer="rcal", start=start, epochs=2)
    first, last = run.epoch(0), run.epoch(-1)
    assert last.detector == "rcal"
    np.testing.assert_array_equal(first.flags, last.flags)
    np.testing.assert_array_equal(first.scores, last.scores)
    assert 0 < last.flags.mean() < 0.5
    assert set(last.parts) == {"mixtures", "distance", "drawn"}


def test_resumes(stripes, resumes, start):
    resumes(long_tailed(stripes, (50, 30, 10)), start, trainer="rcal")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"beta": -1.0}, "beta must be 0 or more"),
        ({"fill": float("inf")}, "fill must be 0 or more and finite"),
        ({"gamma": 1.5}, "gamma must be between 0 and 1, got 1.5"),
        ({"tail": -0.1}, "tail must be between 0 and 1"),
        ({"borrowed": 0}, "borrowed must be at least 1, got 0"),
        ({"alpha": -1.0}, "alpha must be 0 or more"),
    ],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(InputError, match=message):
        RepresentationResampling(**parameters)

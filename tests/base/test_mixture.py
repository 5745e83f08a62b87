"""The two-component mixture: sheet numbers, the trap, clipping, an independent EM."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chaffinch.base.errors import InputError
from chaffinch.base.mixture import Mixture, fit_mixture

TRAP = Mixture(np.array([0.3, 0.35]), np.array([0.02, 0.2]), np.array([0.5, 0.5]))


def two_humps(n=1000, seed=0, share=0.3):
    rng = np.random.default_rng(seed)
    high = rng.random(n) < share
    return np.where(high, rng.normal(6, 1, n), rng.normal(1, 0.5, n)), high


def em_in_loops(values, rounds=200):
    """Expectation and maximisation from a split at the middle, with the floor on the variance."""
    low, high = min(values), max(values)
    xs = [(v - low) / (high - low) for v in values]
    means, variances, weights = [0.25, 0.75], [0.05, 0.05], [0.5, 0.5]
    for _ in range(rounds):
        shares = []
        for x in xs:
            d = [
                w / math.sqrt(v) * math.exp(-((x - m) ** 2) / 2 / v)
                for m, v, w in zip(means, variances, weights, strict=True)
            ]
            shares.append([d[0] / sum(d), d[1] / sum(d)])
        for c in (0, 1):
            total = sum(s[c] for s in shares)
            means[c] = sum(s[c] * x for s, x in zip(shares, xs, strict=True)) / total
            spread = sum(s[c] * (x - means[c]) ** 2 for s, x in zip(shares, xs, strict=True)) / total
            variances[c], weights[c] = spread + 5e-4, total / len(xs)
    return means, [math.sqrt(v) for v in variances], weights


def test_posterior_of_the_sheet():
    mixture = Mixture(np.array([0.1, 0.6]), np.array([0.05, 0.1]), np.array([0.7, 0.3]))
    np.testing.assert_allclose(mixture.posterior(np.array([0.2, 0.3, 0.35])), [0.0005, 0.8765, 0.9996], atol=5e-5)


def test_trap_of_the_sheet():
    """P(low) = 0 far below the lower mean and .912 at it: the plain posterior is not monotone, ours is."""
    low = 1 - TRAP.posterior(np.array([0.0, 0.1, 0.3]))
    np.testing.assert_allclose(low, [0, 0, 0.912], atol=5e-4)
    grid = np.linspace(0, 1, 501)
    assert np.diff(TRAP.posterior(grid)).min() < -0.05
    monotone = TRAP.monotone_posterior(grid)
    assert np.diff(monotone).min() >= 0
    assert monotone[0] < 0.1
    assert monotone[-1] > 0.999, "far above the higher mean there is no doubt"
    between = (grid >= 0.3) & (grid <= 0.35)
    np.testing.assert_array_equal(monotone[between], TRAP.posterior(grid)[between])


def test_trap_mirrored():
    """A narrow high component: the plain posterior falls again above it."""
    mirrored = Mixture(1 - TRAP.means[::-1], TRAP.sds[::-1], TRAP.weights)
    grid = np.linspace(0, 1, 501)
    assert np.diff(mirrored.posterior(grid)).min() < -0.05
    monotone = mirrored.monotone_posterior(grid)
    assert np.diff(monotone).min() >= 0
    np.testing.assert_allclose(monotone, 1 - TRAP.monotone_posterior(1 - grid), atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.tuples(st.floats(0.022, 0.5), st.floats(0.022, 0.5)),
    st.floats(0.01, 0.99),
)
def test_monotone_posterior_is_monotone_and_a_probability(means, sds, weight):
    mixture = Mixture(np.sort(means), np.array(sds), np.array([weight, 1 - weight]))
    grid = np.linspace(-0.2, 1.2, 300)
    p = mixture.monotone_posterior(grid)
    assert np.diff(p).min() >= -1e-12
    assert p.min() >= 0
    assert p.max() <= 1
    at_means = np.sort(means)
    np.testing.assert_allclose(mixture.monotone_posterior(at_means), mixture.posterior(at_means), atol=1e-9)


def test_one_value_at_a_time_gives_the_same():
    values, _ = two_humps(50)
    mixture = fit_mixture(values)
    alone = [mixture.monotone_posterior(np.array([v]))[0] for v in values]
    np.testing.assert_array_equal(mixture.monotone_posterior(values), alone)


def test_finds_two_humps():
    values, high = two_humps()
    mixture = fit_mixture(values)
    np.testing.assert_array_equal(mixture.monotone_posterior(values) > 0.5, values > 2.75)
    assert (mixture.monotone_posterior(values) > 0.5)[high].mean() > 0.99
    span = mixture.high - mixture.low
    np.testing.assert_allclose(mixture.low + span * mixture.means, [1, 6], atol=0.15)
    np.testing.assert_allclose(mixture.sds * span, [0.5, 1.0], atol=0.12)
    np.testing.assert_allclose(mixture.weights, [0.7, 0.3], atol=0.03)


def test_agrees_with_em_in_loops():
    values, _ = two_humps(400)
    ours = fit_mixture(values, outliers=0.0)
    means, sds, weights = em_in_loops(values.tolist())
    np.testing.assert_allclose(ours.means, means, atol=0.01)
    np.testing.assert_allclose(ours.sds, sds, atol=0.01)
    np.testing.assert_allclose(ours.weights, weights, atol=0.01)


def test_floor_of_the_spread():
    """reg_covar sets a floor of .02236 on the sd."""
    mixture = fit_mixture(np.repeat([0.0, 1.0], 50))
    np.testing.assert_allclose(mixture.sds, math.sqrt(5e-4), atol=1e-4)
    np.testing.assert_allclose(mixture.means, [0, 1], atol=1e-6)


@pytest.mark.parametrize("n", [200, 3000])
def test_one_huge_value_does_not_squeeze_the_rest(n):
    values, high = two_humps(n)
    values[7], high[7] = 1e6, True
    mixture = fit_mixture(values)
    assert mixture.high < 12
    flagged = mixture.monotone_posterior(values) > 0.5
    assert flagged[7]
    assert (flagged == high).mean() > 0.98


def test_order_scale_and_shift_do_not_matter():
    values, _ = two_humps(300)
    p = fit_mixture(values).monotone_posterior(values)
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(fit_mixture(values[order]).monotone_posterior(values[order]), p[order])
    np.testing.assert_allclose(fit_mixture(40 * values - 7).monotone_posterior(40 * values - 7), p, atol=1e-6)


def test_almost_constant_values_still_separate():
    """Only one value in ten thousand differs: clipping must not make it disappear."""
    values = np.zeros(10_000)
    values[5] = 1.0
    p = fit_mixture(values).monotone_posterior(values)
    assert p.argmax() == 5
    assert np.isfinite(p).all()


@pytest.mark.parametrize("values", [np.full(9, 0.7), np.array([2.0])])
def test_constant_values(values):
    with pytest.raises(InputError, match=rf"all {len(values)} losses are equal \({values[0]:g}\)"):
        fit_mixture(values)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(value):
    with pytest.raises(InputError, match="2 losses are NaN or infinite"):
        fit_mixture(np.array([0.1, value, 0.5, value]))

"""A two-component Gaussian mixture on one score: which samples belong to the higher part?"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """Two Gaussians, the lower mean first.

    Attributes:
        means, sds, weights: (2,) each, on the scale of `scaled`.
        low, high: what was mapped to 0 and 1 before the fit.
    """

    means: Array
    sds: Array
    weights: Array
    low: float = 0.0
    high: float = 1.0

    def scaled(self, values: Array) -> Array:
        """Values on the scale of the fit: 0 to 1, cut at both ends."""
        return np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)

    def posterior(self, values: Array) -> Array:
        """P(higher component) by Bayes' rule, for values on the original scale."""
        return self._posterior(self.scaled(values))

    def monotone_posterior(self, values: Array) -> Array:
        """P(higher component), made non-decreasing in the value.

        With unequal variances the plain posterior turns once: far below the lower mean (the smallest losses would
        count as noisy) or far above the higher one. Beyond that turning point it is held constant.
        """
        x = self.scaled(values)
        low, high = self.sds**-2.0
        if low != high:
            turn = (low * self.means[0] - high * self.means[1]) / (low - high)
            x = np.maximum(x, turn) if low > high else np.minimum(x, turn)
        return self._posterior(x)

    def _posterior(self, x: Array) -> Array:
        x = (x[:, None] - self.means) / self.sds
        log = np.log(self.weights) - np.log(self.sds) - 0.5 * x**2
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(log[:, 0] - log[:, 1], -700, 700))))


def fit_mixture(values: Array, *, outliers: float = 0.001, seed: int = 0) -> Mixture:
    """Fit the mixture with DivideMix's settings (arXiv 2002.07394) after clipping and min-max scaling.

    Args:
        values: (N,) scores.
        outliers: share clipped at the upper end first, and at least the largest value, so that one huge loss does
            not squeeze all others into one spot.
        seed: of the initialisation.

    Raises:
        InputError: fewer than two different values, or NaN.
    """
    from sklearn.mixture import GaussianMixture

    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{np.sum(~np.isfinite(values))} losses are NaN or infinite")
    low, high = float(values.min()), float(np.quantile(values, 1 - outliers, method="lower"))
    if not high > low:
        high = float(values.max())
    if not high > low:
        raise InputError(f"all {len(values)} losses are equal ({low:.4g}): there is nothing to separate")
    x = np.sort(np.clip((values - low) / (high - low), 0, 1))[:, None]  # sorted: row order must not matter
    gmm = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ten iterations are the method's rule, not a failure to converge
        gmm.fit(x)
    order = np.argsort(gmm.means_[:, 0])
    return Mixture(gmm.means_[order, 0], np.sqrt(gmm.covariances_[order, 0, 0]), gmm.weights_[order], low, high)

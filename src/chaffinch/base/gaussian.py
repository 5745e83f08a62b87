"""One Gaussian a class, all with one covariance: fitted and scored in double precision, a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .neighbors import Neighbors, nearest
from .seeds import NEIGHBOURS, SHARE, lowest, seeds
from .threads import blas_threads

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Features = NDArray[np.floating]

FITS = ("seeds", "trimmed", "plain")
TRIMMED = 0.5
"""Share of each class that the trimmed fit keeps."""

BLOCK = 2**20
"""Numbers in a block of rows (8 MB)."""


def blocks(
    X: Features, rows: Labels | None = None, *, unit: bool = False, width: int = 1
) -> Iterator[tuple[Any, Array]]:
    """Positions and float64 features (n, D) of a few rows at a time.

    Args:
        X: (N, D).
        rows: which of them; None = all.
        unit: bring rows to length 1; a zero row stays zero.
        width: numbers that will be made of each row, where that is more than D.
    """
    total = len(X) if rows is None else len(rows)
    step = max(1, BLOCK // max(X.shape[1], width))
    for start in range(0, total, step):
        part = slice(start, min(start + step, total))
        where = part if rows is None else rows[part]
        block = X[where].astype(np.float64)
        if unit:
            block /= np.maximum(np.sqrt(np.einsum("nd,nd->n", block, block)), 1e-30)[:, None]
        yield where, block


@dataclass(frozen=True)
class Gaussians:
    """Class means and the covariance they share.

    Attributes:
        classes: (K,) the labels that have a mean, ascending.
        means: (K, D).
        covariance: (D, D) of the residuals, divided by their number.
        intensity: how far Ledoit and Wolf would shrink it towards a sphere, 0 to 1.
    """

    classes: Labels
    means: Array
    covariance: Array
    intensity: float

    def ridge(self, share: float | None) -> float:
        """What to add to the diagonal, on the scale of the features.

        Args:
            share: in units of the mean variance; None shrinks as Ledoit and Wolf do (their (1-d)S + d m I is, but for
                a factor, S + d/(1-d) m I), and by 1e-6 at least.

        Raises:
            InputError: negative, or not finite.
        """
        if share is None:
            intensity = min(self.intensity, 0.99)
            share = max(intensity / (1 - intensity), 1e-6)
        elif not 0 <= share < np.inf:
            raise InputError(f"ridge must be 0 or more, in units of the mean variance, got {share}")
        variance = float(np.trace(self.covariance)) / len(self.covariance)
        return share * variance if variance > 0 else 1.0  # no spread at all: plain distances

    def nearest(self, X: Features, *, ridge: float = 0.0, unit: bool = False) -> tuple[Array, Labels]:
        """Squared distance (N,) to the nearest mean, and its class (N,).

        Args:
            X: (N, D).
            ridge: added to the diagonal of the covariance.
            unit: bring rows to length 1 first, as at the fit.

        Raises:
            InputError: the covariance is singular.
        """
        found, which = np.empty(len(X)), np.empty(len(X), np.int64)
        with blas_threads(1):
            factor = self._factor(ridge)
            centre = self.means.mean(axis=0)
            means = _whiten(factor, self.means - centre)  # (D, K)
            lengths = np.einsum("dk,dk->k", means, means)
            for where, block in blocks(X, unit=unit, width=len(self.classes)):
                z = _whiten(factor, block - centre)
                d2 = lengths - 2 * (z.T @ means)  # (n, K), less the length of z
                which[where] = d2.argmin(axis=1)
                found[where] = np.maximum(d2.min(axis=1) + np.einsum("dn,dn->n", z, z), 0.0)
        return found, self.classes[which]

    def own(self, X: Features, y: Labels, *, ridge: float = 0.0, unit: bool = False) -> Array:
        """Squared distance (N,) to the mean of the given label; infinite where that has none.

        Raises:
            InputError: the covariance is singular.
        """
        found = np.full(len(X), np.inf)
        column = _columns(self.classes, y)
        with blas_threads(1):
            factor = self._factor(ridge)
            for where, block in blocks(X, np.flatnonzero(column >= 0), unit=unit):
                z = _whiten(factor, block - self.means[column[where]])
                found[where] = np.einsum("dn,dn->n", z, z)
        return found

    def _factor(self, ridge: float) -> Array:
        covariance = self.covariance + ridge * np.eye(len(self.covariance))
        try:
            factor = np.linalg.cholesky(covariance)
            sound = bool((factor.diagonal() ** 2 > 1e-13 * covariance.diagonal()).all())
        except np.linalg.LinAlgError:
            sound = False
        if not sound:
            raise InputError(
                "the covariance is singular (features that are constant or follow from others, or too few samples); "
                "give it a ridge above 0"
            )
        return np.asarray(factor, np.float64)


def fit_gaussians(X: Features, y: Labels, rows: Labels | None = None, *, unit: bool = False) -> Gaussians:
    """Class means and pooled covariance of some rows.

    A class with a single row gets no mean: it would be at distance 0 from itself, whatever it shows.

    Args:
        X: (N, D) features.
        y: (N,) labels.
        rows: which rows to fit on; None = all.
        unit: bring rows to length 1 first.

    Raises:
        InputError: no class has two rows.
    """
    from scipy.sparse import csr_array

    fitted = np.arange(len(y)) if rows is None else rows
    classes = _classes(y[fitted])
    column = _columns(classes, y)
    rows = fitted[column[fitted] >= 0]
    sums, scatter, fourth = np.zeros((len(classes), X.shape[1])), np.zeros((X.shape[1],) * 2), 0.0
    for where, block in blocks(X, rows, unit=unit):
        one_hot = csr_array((np.ones(len(block)), (column[where], np.arange(len(block)))), (len(sums), len(block)))
        sums += one_hot @ block
    means = sums / np.bincount(column[rows])[:, None]
    with blas_threads(1):
        for where, block in blocks(X, rows, unit=unit):
            residual = block - means[column[where]]
            scatter += residual.T @ residual
            fourth += float(np.sum(np.einsum("nd,nd->n", residual, residual) ** 2))
    covariance = scatter / len(rows)
    total = float(np.trace(covariance))
    if total <= 1e-28 * (total + float(np.mean(np.sum(means**2, axis=1)))):  # copies: nothing but rounding is left
        return Gaussians(classes, means, np.zeros_like(covariance), 0.0)
    squares = float(np.sum(covariance**2))
    off_sphere, uncertain = squares - total**2 / X.shape[1], (fourth / len(rows) - squares) / len(rows)
    intensity = min(max(uncertain / off_sphere, 0.0), 1.0) if off_sphere > 1e-12 * squares else 0.0
    return Gaussians(classes, means, covariance, intensity)


def trimmed(X: Features, y: Labels, h: float = TRIMMED, *, unit: bool = False, rounds: int = 10) -> Labels:
    """Positions (n,) of the share ``h`` of each class that is nearest to its own mean, sorted.

    Starts with plain distances to the class medians; then keeps, fits again, and so on until nothing changes. Breaks
    down where h exceeds the clean share.

    Raises:
        InputError: no class has two samples, or h is not a share.
    """
    rows, classes = np.arange(len(y)), _classes(y)
    medians = np.array([_median(X, np.flatnonzero(y == c), unit) for c in classes])
    gaussians = Gaussians(classes, medians, np.eye(X.shape[1]), 0.0)
    for _ in range(rounds):
        before = rows
        rows = lowest(gaussians.own(X, y, ridge=gaussians.ridge(None), unit=unit), y, h)
        if np.array_equal(rows, before):
            break
        gaussians = fit_gaussians(X, y, rows, unit=unit)
    return rows


def fitted_rows(
    X: Features, y: Labels, fit_on: str, h: float | None, neighbors: Neighbors | None, *, unit: bool = False
) -> Labels:
    """Positions (n,) of the samples to fit on.

    Args:
        X: (N, D) features.
        y: (N,) given labels.
        fit_on: ``seeds``, those that their neighbours confirm; ``trimmed``, those nearest to their own mean; or
            ``plain``, all.
        h: share of each class; None = .3 of it as seeds, .5 trimmed.
        neighbors: cosine neighbours, for the seeds; None = computed.
        unit: bring rows to length 1 first.

    Raises:
        InputError: no such fit, or h is not a share.
    """
    if fit_on not in FITS:
        raise InputError(f"fit_on must be one of {', '.join(FITS)}, got {fit_on!r}")
    if fit_on == "plain":
        return np.arange(len(y))
    if fit_on == "trimmed":
        return trimmed(X, y, TRIMMED if h is None else h, unit=unit)
    return seeds(y, nearest(X, NEIGHBOURS) if neighbors is None else neighbors, SHARE if h is None else h)


def fit_classes(
    X: Features,
    y: Labels,
    *,
    fit_on: str,
    h: float | None,
    ridge: float | None,
    neighbors: Neighbors | None,
    unit: bool,
) -> tuple[Gaussians, float, dict[str, Any]]:
    """Class means and covariance of the samples to fit on, the ridge for them, and what to tell the user.

    Args:
        X: (N, D) features.
        y: (N,) given labels.
        fit_on, h, neighbors, unit: as `fitted_rows` takes them.
        ridge: as `Gaussians.ridge` takes it.

    Raises:
        InputError: a parameter is out of range, or no class has two samples.
    """
    rows = fitted_rows(X, y, fit_on, h, neighbors, unit=unit)
    gaussians = fit_gaussians(X, y, rows, unit=unit)
    added = gaussians.ridge(ridge)
    variance = float(np.trace(gaussians.covariance)) / X.shape[1]
    info: dict[str, Any] = {
        "fit_on": fit_on,
        "fitted": np.bincount(y[rows], minlength=int(y.max()) + 1).tolist(),
        "ridge": added / variance if variance > 0 else None,
    }
    notes = []
    if missing := len(np.unique(y)) - len(gaussians.classes):
        notes.append(f"{missing} of the classes have one sample only and so no mean of their own")
    if variance == 0:
        notes.append("the fitted samples of each class are copies, so distances are plain ones")
    elif len(rows) - len(gaussians.classes) < X.shape[1]:
        notes.append(
            f"{len(rows):,} samples are too few for the covariance of {X.shape[1]} features; the ridge makes up for it"
        )
    if notes:
        info["note"] = "; ".join(notes)
    return gaussians, added, info


def _classes(y: Labels) -> Labels:
    """The labels (K,) that at least two samples carry."""
    classes = np.flatnonzero(np.bincount(y) > 1)
    if not len(classes):
        raise InputError("no class has two samples to fit a Gaussian on")
    return classes


def _columns(classes: Labels, y: Labels) -> Labels:
    """The place (N,) of each label among the classes; -1 where it is not one of them."""
    place = np.full(max(int(y.max()), int(classes.max())) + 1, -1)
    place[classes] = np.arange(len(classes))
    return place[y]


def _median(X: Features, rows: Labels, unit: bool) -> Array:
    members = np.concatenate([block.astype(X.dtype) for _, block in blocks(X, rows, unit=unit)])
    return np.asarray(np.median(members, axis=0, overwrite_input=True), np.float64)


def _whiten(factor: Array, rows: Array) -> Array:
    """Rows (n, D) in the coordinates (D, n) where the covariance is the identity."""
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(factor, rows.T, lower=True, check_finite=False))

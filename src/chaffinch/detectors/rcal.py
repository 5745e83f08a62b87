"""RCAL: class Gaussians freed of local outliers, rare classes leaning on common ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.neighbors import unit_rows
from ..base.threads import blas_threads
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels

BLOCK = 1024
"""Samples handled at once."""


class RepresentationCalibration(Detector):
    r"""A label is suspicious if, in label-free features, another class's robust Gaussian explains the sample better.

    Per given class the Local Outlier Factor drops as many samples as a first pass doubts (:math:`g_y > \min g`); the
    rest gives mean and covariance. A class with few samples borrows from the q nearest common ones:

    .. math:: \mu'_k = (1-\gamma_k)\,\mu_k + \gamma_k \sum_c \omega_c\,\mu_c, \quad
        \Sigma'_k = (1-\gamma)\,\Sigma_k + \gamma \sum_c \omega_c\,\Sigma_c, \quad
        \omega_c \propto n_c / \lVert \mu_c - \mu_k \rVert^2

    .. math:: s_i = g_{y_i}(z_i) - \min_{c \ne y_i} g_c(z_i), \qquad
        g_c(z) = \tfrac{m+1}{2} \log\!\big(1 + (z-\mu'_c)^\top \Sigma_c'^{-1} (z-\mu'_c)\big)
        + \tfrac12 \log|\Sigma'_c|

    The paper corrects no labels: it draws balanced features from the Gaussians and trains a classifier on them. This is
    that classifier without the draw, all classes alike likely. g is a density with Cauchy tails rather than the
    Gaussian's own: the outliers were cut off, so a Gaussian would take any hard clean sample for an impossible one. A
    sample's own share in its class is taken out again (leave-one-out); the only sample of a class has nothing to be
    compared with and scores 0. Flags are the outliers.

    Not given by the paper, and chosen here: unit features on m principal axes; shrinkage of each covariance towards the
    pooled one by m / (m + n - 1), as few samples make it singular (a ridge for rare classes alone, as the paper has it,
    only sets them apart); rare = fewer than half the median class; the mean borrows less where that cannot pay, its own
    sampling error v = tr Σ / n being smaller than the squared distance δ² to what is lent: γ_k = γ v / max(v, δ² - v).

    Source: Zhang, Zhao, Yao, Yuan, Huang, ICCV 2023, arXiv 2211.10955.

    Args:
        dims: m, principal axes kept.
        contamination: share of each class that the Local Outlier Factor drops, 0 to 0.5; None estimates it per class.
        gamma: γ, how much of a rare class's statistics is borrowed, 0 (nothing) to 1.
        borrowed: q, common classes to borrow from.
        tail: a class is rare below this share of the median class size; 0 = none is.
        largest: the Local Outlier Factor costs the square of a class; above this size a class is compared with so many
            of its samples only, drawn at random.
        seed: of that draw.
    """

    card = MethodCard(
        slug="rcal",
        name="Class Gaussians (RCAL)",
        paper="When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method "
        "(Zhang, Zhao, Yao, Yuan, Huang; ICCV 2023)",
        arxiv="2211.10955",
        year=2023,
        formula=r"s_i = g_{y_i}(z_i) - \min_{c\neq y_i} g_c(z_i),\quad g_c(z) = \tfrac{m+1}{2}\log\big(1+"
        r"(z-\mu'_c)^\top\Sigma_c'^{-1}(z-\mu'_c)\big)+\tfrac12\log|\Sigma'_c|",
        summary="Draws one cloud per class, without its outliers, and asks in whose cloud a picture lies. Made for "
        "datasets where some classes are rare.",
        fails_when="A class consists of several clumps, or the wrong labels of a class form a clump larger than two "
        "fifths of it; foreign pictures near a class go unnoticed.",
        finds={"mislabelled"},
    )

    def __init__(
        self,
        dims: int = 64,
        contamination: float | None = None,
        gamma: float = 0.5,
        borrowed: int = 3,
        tail: float = 0.5,
        largest: int = 2000,
        seed: int = 0,
    ) -> None:
        self.dims = dims
        self.contamination = contamination
        self.gamma = gamma
        self.borrowed = borrowed
        self.tail = tail
        self.largest = largest
        self.seed = seed

    def fit(self, X: Any, y: Labels) -> RepresentationCalibration:
        """Score every sample.

        Args:
            X: (N, D) features, learnt without the labels.
            y: (N,) given labels.

        Raises:
            InputError: only one class, equal features, or a parameter out of range.
        """
        self._check(y)
        with blas_threads(1):
            Z = principal_axes(unit_rows(X), self.dims)
            counts = np.bincount(y)
            first, _ = self._odds(Z, y, np.ones(len(y), bool))
            factors, self.flags_, subsampled = self._outliers(Z, y, first > 0)
            self.scores_, self.suggestions_ = self._odds(Z, y, ~self.flags_)
        rare = self._rare(counts)
        dropped = np.bincount(y[self.flags_], minlength=len(counts)) / np.maximum(counts, 1)
        self.info_ = {
            "dims": Z.shape[1],
            "contamination": dropped.tolist(),
            "rare": np.flatnonzero(rare).tolist(),
            "outlier_factors": np.quantile(factors, [0, 0.25, 0.5, 0.75, 1]).tolist(),
        }
        if subsampled:
            self.info_["note"] = (
                f"the outliers of {subsampled} large {'class' if subsampled == 1 else 'classes'} were found against "
                f"{self.largest:,} samples of the class, drawn at random, not against all"
            )
        return self

    def _check(self, y: Labels) -> None:
        shares = {"contamination": (self.contamination, 0.5), "gamma": (self.gamma, 1.0), "tail": (self.tail, 1.0)}
        for name, (value, most) in shares.items():
            if value is not None and not 0 <= value <= most:
                raise InputError(f"rcal: {name} must be between 0 and {most:g}, got {value}")
        for name, number, least in (
            ("dims", self.dims, 1),
            ("borrowed", self.borrowed, 1),
            ("largest", self.largest, 50),
        ):
            if number < least:
                raise InputError(f"rcal: {name} must be at least {least}, got {number}")
        if (y == y[0]).all():
            raise InputError("rcal: only one class is present in the labels; there is no other to compare it with")

    def _rare(self, counts: Labels) -> Flags:
        """(C,) classes that borrow; a class nobody carries is none."""
        return (counts > 0) & (counts < self.tail * np.median(counts[counts > 0]))

    def _odds(self, Z: Array, y: Labels, kept: Flags) -> tuple[Array, Labels]:
        """Scores (N,) and best classes (N,) under the Gaussians of the kept samples."""
        gaussians = class_gaussians(Z, y, kept)
        gaussians = borrow(gaussians, np.bincount(y), self._rare(np.bincount(y)), self.gamma, self.borrowed)
        own, best = np.empty(len(y)), np.full(len(y), np.inf)  # best: of the other classes
        winner = y.copy()
        for c in np.flatnonzero(gaussians.counts):
            g = gaussians.energy(c, Z, (y == c) & kept)
            mine = y == c
            own[mine] = g[mine]
            better = ~mine & (g < best)
            best[better], winner[better] = g[better], c
        alone = np.bincount(y)[y] == 1
        best[alone] = own[alone]
        return own - best, np.where(own <= best, y, winner)

    def _outliers(self, Z: Array, y: Labels, doubted: Flags) -> tuple[Array, Flags, int]:
        """Outlier factors (N,), the outliers (N,), and how many classes were subsampled."""
        factors, flags, subsampled = np.ones(len(y)), np.zeros(len(y), bool), 0
        rng = np.random.default_rng(self.seed)
        for c in range(int(y.max()) + 1):
            rows = np.flatnonzero(y == c)
            if len(rows) < 3:  # too few to call one of them an outlier
                continue
            reference = np.arange(len(rows))
            if len(rows) > self.largest:
                reference = np.sort(rng.choice(len(rows), self.largest, replace=False))
                subsampled += 1
            n = len(reference)
            factors[rows] = outlier_factors(Z[rows], min(n - 1, max(20, int(0.4 * n))), reference)
            share = min(0.5, doubted[rows].mean()) if self.contamination is None else self.contamination
            flags[rows[np.argsort(-factors[rows], kind="stable")[: int(share * len(rows))]]] = True
        return factors, flags, subsampled


@dataclass(frozen=True)
class Gaussians:
    """One Gaussian per class, and what a sample contributed to it.

    Attributes:
        counts: (C,) samples behind each; 0 = no such class.
        means: (C, m) plain means of those samples.
        centres: (C, m) means after borrowing.
        covariances: (C, m, m).
        mean_share, covariance_share: (C,) weight of the class's own samples in centre and covariance.
    """

    counts: Labels
    means: Array
    centres: Array
    covariances: Array
    mean_share: Array
    covariance_share: Array

    def energy(self, c: Any, Z: Array, members: Flags) -> Array:
        """g (N,) of class c, with Cauchy tails; members are scored as if they had been left out of the class."""
        m, n = Z.shape[1], int(self.counts[c])
        L = np.linalg.cholesky(self.covariances[c])
        W = np.linalg.inv(L)
        out = np.empty(len(Z))
        for start in range(0, len(Z), BLOCK):
            R = (Z[start : start + BLOCK] - self.centres[c]) @ W.T
            out[start : start + BLOCK] = np.einsum("ij,ij->i", R, R)
        if n > 1:
            # without sample i the mean moves by -d/(n-1) and the scatter loses n/(n-1) dd', d = z - mean (a rank one
            # update, so Sherman and Morrison give the inverse)
            rows = np.flatnonzero(members)
            d = (Z[rows] - self.means[c]) @ W.T
            r = (Z[rows] - self.centres[c]) @ W.T + self.mean_share[c] / (n - 1) * d
            k = self.covariance_share[c] * n / (n - 1) ** 2
            left = np.maximum(1 - k * np.einsum("ij,ij->i", d, d), 1e-9)
            out[rows] = np.einsum("ij,ij->i", r, r) + k * np.einsum("ij,ij->i", r, d) ** 2 / left
        return np.asarray((m + 1) / 2 * np.log1p(out) + np.log(np.diag(L)).sum())


def principal_axes(U: NDArray[np.float32], dims: int) -> Array:
    """Centred rows on their leading principal axes, (N, m) with m ≤ dims; axes without variance are left out.

    Raises:
        InputError: all rows are equal.
    """
    mean = U.mean(axis=0, dtype=np.float64)
    gram = np.zeros((U.shape[1], U.shape[1]))
    for start in range(0, len(U), 4 * BLOCK):
        block = U[start : start + 4 * BLOCK] - mean
        gram += block.T @ block
    variance, axes = np.linalg.eigh(gram / len(U))
    used = variance[::-1][:dims] > max(1e-8 * variance[-1], 1e-12)  # single precision knows no smaller ones
    if not used.any():
        raise InputError("all features are equal: there is nothing to tell classes apart by")
    axes = axes[:, ::-1][:, :dims][:, used]
    Z = np.empty((len(U), axes.shape[1]))
    for start in range(0, len(U), 4 * BLOCK):
        Z[start : start + 4 * BLOCK] = (U[start : start + 4 * BLOCK] - mean) @ axes
    return Z


def outlier_factors(Z: Array, k: int, reference: Labels) -> Array:
    """Local Outlier Factor (N,): how much sparser a point is than its k nearest reference points; about 1 = not at all.

    Ties at the k-th distance all count as neighbours, as in the definition.

    Args:
        Z: (N, m) points of one class.
        k: neighbours, fewer than reference points.
        reference: (R,) rows to compare with; a row is never its own neighbour.
    """
    R = Z[reference]
    squares = np.einsum("ij,ij->i", R, R)
    place = np.full(len(Z), -1)
    place[reference] = np.arange(len(R))

    def distances(rows: Labels) -> Array:
        A = Z[rows]
        d = np.sqrt(np.maximum(np.einsum("ij,ij->i", A, A)[:, None] + squares - 2 * A @ R.T, 0.0))
        inside = np.flatnonzero(place[rows] >= 0)
        d[inside, place[rows[inside]]] = np.inf
        return np.asarray(d)

    reach = np.empty(len(R))  # distance of each reference point to its k-th neighbour
    for rows in _blocks(reference):
        reach[place[rows]] = np.partition(distances(rows), k - 1, axis=1)[:, k - 1]
    floor = 1e-10 + 1e-7 * reach.max()  # among duplicates the density would be infinite

    def density(rows: Labels) -> tuple[Flags, Array]:
        d = distances(rows)
        near = d <= np.partition(d, k - 1, axis=1)[:, k - 1 : k]
        total = np.where(near, np.maximum(d, reach), 0.0).sum(axis=1)
        return near, near.sum(axis=1) / np.maximum(total, floor)

    theirs = np.empty(len(R))
    for rows in _blocks(reference):
        theirs[place[rows]] = density(rows)[1]
    factors = np.empty(len(Z))
    for rows in _blocks(np.arange(len(Z))):
        near, mine = density(rows)
        factors[rows] = near @ theirs / near.sum(axis=1) / mine
    return factors


def class_gaussians(Z: Array, y: Labels, kept: Flags) -> Gaussians:
    """Mean and covariance of each class's kept samples, the covariance shrunk towards the pooled one."""
    m, n_classes = Z.shape[1], int(y.max()) + 1
    counts = np.bincount(y[kept], minlength=n_classes)
    means, scatter = np.zeros((n_classes, m)), np.zeros((n_classes, m, m))
    for c in np.flatnonzero(counts):
        mine = Z[kept & (y == c)]
        means[c] = mine.mean(axis=0)
        scatter[c] = (mine - means[c]).T @ (mine - means[c])
    freedom = np.maximum(counts - 1, 0)
    pooled = scatter.sum(axis=0) / max(freedom.sum(), 1)
    if np.trace(pooled) < 1e-10 * Z.var(axis=0).sum():  # every class is one point
        pooled = np.cov(Z.T).reshape(m, m)
    own = freedom / (m + freedom)
    covariances = (own / np.maximum(freedom, 1))[:, None, None] * scatter + (1 - own)[:, None, None] * pooled
    ridge = 1e-3 * np.trace(covariances, axis1=1, axis2=2) / m
    covariances += ridge[:, None, None] * np.eye(m)
    return Gaussians(counts, means, means, covariances, np.ones(n_classes), own)


def borrow(gaussians: Gaussians, counts: Labels, rare: Flags, gamma: float, borrowed: int) -> Gaussians:
    """Rare classes lean on the nearest common ones.

    Args:
        gaussians: as estimated.
        counts: (C,) given labels per class; they weigh the common classes.
        rare: (C,) classes that borrow.
        gamma: share borrowed; of the mean less, where the common classes lie far away.
        borrowed: common classes to borrow from.
    """
    common = np.flatnonzero(~rare & (gaussians.counts > 0))
    centres, covariances = gaussians.centres.copy(), gaussians.covariances.copy()
    mean_share, covariance_share = gaussians.mean_share.copy(), gaussians.covariance_share.copy()
    for k in np.flatnonzero(rare) if gamma else ():
        heads, weights = lenders(gaussians.means[k], gaussians.means[common], counts[common], borrowed)
        heads = common[heads]
        target = weights @ gaussians.means[heads]
        error = np.trace(gaussians.covariances[k]) / gaussians.counts[k]
        apart = np.sum((target - gaussians.means[k]) ** 2) - error  # unbiased: the rare mean's own error is in it
        share = gamma * error / max(error, apart)
        centres[k] = (1 - share) * gaussians.means[k] + share * target
        covariances[k] *= 1 - gamma
        covariances[k] += gamma * np.tensordot(weights, gaussians.covariances[heads], 1)
        mean_share[k], covariance_share[k] = 1 - share, (1 - gamma) * covariance_share[k]
    return Gaussians(gaussians.counts, gaussians.means, centres, covariances, mean_share, covariance_share)


def lenders(mean: Array, means: Array, counts: Labels, q: int) -> tuple[Labels, Array]:
    """The q nearest of the common classes, and their weights: in proportion to count over squared distance."""
    distance = np.sum((means - mean) ** 2, axis=1)
    heads = np.argsort(distance, kind="stable")[:q]
    weights = counts[heads] / np.maximum(distance[heads], 1e-12)
    return heads, weights / weights.sum()


def _blocks(rows: Labels) -> list[Labels]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]

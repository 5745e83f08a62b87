"""MAPSS on a dataset: one diffusion map of all samples, one cluster per class, and which cluster a sample lies in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.neighbors import unit_rows
from ..base.threads import blas_threads
from ..card import MethodCard
from .base import Array, Detector, Labels

BLOCK = 2048
"""Samples handled at once."""


class ManifoldSeparation(Detector):
    r"""How much nearer, on a diffusion map, is a sample to another class than to its own?

    .. math:: K_{ij} = e^{-\lVert x_i - x_j\rVert^2 / 2\eta}, \quad \tilde K_{ij} = \frac{K_{ij}}{d_i d_j}, \quad
        P = \tilde D^{-1} \tilde K, \quad \psi(i) = \big(\lambda_1 u_1(i), \dots, \lambda_L u_L(i)\big)

    .. math:: s_i = 1 - \mathrm{PS}_i, \quad \mathrm{PS}_i = 1 - \frac{A_i}{A_i + B_i + 10^{-6}}, \qquad
        \text{flag}_i = [\mathrm{PS}_i < \tfrac12]

    A is the Mahalanobis distance of ψ(i) to the cluster of its label, B to the nearest other cluster, each
    :math:`\sqrt{d^2 + 10^{-6}}`; λ and u are the eigenpairs of P below the trivial one, η the median squared distance.

    The paper compares one recording with the distorted copies of each source, and an output never joins a cluster.
    Here the samples are the clusters, so a sample is taken out of its own before it is measured (leave-one-out, in
    closed form; the eigenvectors still know it). Clusters are shrunk by 0.1 tr Σ / L, and those with fewer points
    than L towards the pooled covariance, as the paper's own setting with about as many points as dimensions is nearly
    singular. Features are brought to unit length, not standardised one by one, which would let nearly constant ones
    rule the distances. The only sample of a class has nothing to be compared with: PS = 1/2, no flag.

    Source: Ivry, Cornell, Watanabe, ICLR 2026, arXiv 2509.09212.

    Args:
        dims: most coordinates L; fewer if they hold 99 % of the spectrum.
        shrinkage: added to each cluster's covariance, as a share of its mean variance.
        landmarks: most samples the map itself is computed from (its cost grows with their cube); in larger datasets
            they are drawn at random, classes in equal numbers, and the map is extended to the rest (Nyström).
        seed: of that draw.
    """

    card = MethodCard(
        slug="mapss",
        name="Manifold separation (MAPSS)",
        paper="MAPSS: Manifold-based Assessment of Perceptual Source Separation (Ivry, Cornell, Watanabe; ICLR 2026)",
        arxiv="2509.09212",
        year=2026,
        formula=r"s_i = \frac{A_i}{A_i+B_i+10^{-6}},\quad A_i = d\big(\psi_i, \text{class } y_i\big),\ "
        r"B_i = \min_{c\neq y_i} d\big(\psi_i, \text{class } c\big)",
        summary="Unrolls the shape of the data and measures whether a picture lies with its own class or with another. "
        "Above one half, another class is nearer.",
        fails_when="Classes overlap or have several clumps; a foreign picture is far from every class and so looks "
        "undecided rather than wrong.",
        finds={"mislabelled"},
    )

    def __init__(self, dims: int = 40, shrinkage: float = 0.1, landmarks: int = 2000, seed: int = 0) -> None:
        self.dims = dims
        self.shrinkage = shrinkage
        self.landmarks = landmarks
        self.seed = seed

    def fit(self, X: Any, y: Labels) -> ManifoldSeparation:
        """Score every sample.

        Args:
            X: (N, D) features; brought to unit length here.
            y: (N,) given labels.

        Raises:
            InputError: only one class, equal features, or a parameter out of range.
        """
        for name, number, least in (("dims", self.dims, 1), ("landmarks", self.landmarks, 10)):
            if number < least:
                raise InputError(f"mapss: {name} must be at least {least}, got {number}")
        if not self.shrinkage > 0:
            raise InputError(f"mapss: shrinkage must be above 0, got {self.shrinkage}; 0.1 is usual")
        if (y == y[0]).all():
            raise InputError("mapss: only one class is present in the labels; there is no other to compare it with")
        with blas_threads(1):
            rows = draw_landmarks(y, self.landmarks, self.seed)
            diffusion = diffusion_map(unit_rows(X), rows, self.dims)
            A, B, other = cluster_distances(diffusion.coordinates, y, self.shrinkage)
        separation = 1 - A / (A + B + 1e-6)
        separation[np.bincount(y)[y] == 1] = 0.5
        self.scores_ = 1 - separation
        self.flags_ = separation < 0.5
        self.suggestions_ = np.where(self.flags_, other, y)
        sizes = np.bincount(y)
        per_class = np.bincount(y, weights=separation) / np.maximum(sizes, 1)
        self.info_ = {
            "threshold": 0.5,
            "dims": diffusion.coordinates.shape[1],
            "eigenvalues": diffusion.eigenvalues.tolist(),
            "spectrum_kept": diffusion.kept,
            "bandwidth": diffusion.bandwidth,
            "landmarks": len(rows),
            "class_separation": [float(s) if n else None for s, n in zip(per_class, sizes, strict=True)],
        }
        if len(rows) < len(y):
            self.info_["note"] = (
                f"the map was computed from {len(rows):,} samples drawn at random, classes in equal numbers, "
                f"and extended to all {len(y):,}"
            )
        return self


@dataclass(frozen=True)
class DiffusionMap:
    """What `diffusion_map` returns.

    Attributes:
        coordinates: (N, L) of every sample.
        eigenvalues: (L,) of the Markov matrix, without the trivial one.
        kept: share of the whole spectrum in them.
        bandwidth: η, the median squared distance of two landmarks.
    """

    coordinates: Array
    eigenvalues: Array
    kept: float
    bandwidth: float


def draw_landmarks(y: Labels, most: int, seed: int) -> Labels:
    """All rows, or ``most`` of them at random: each class the same number as far as it has them."""
    if len(y) <= most:
        return np.arange(len(y))
    order = np.random.default_rng(seed).permutation(len(y))
    by_class = order[np.argsort(y[order], kind="stable")]
    sizes = np.bincount(y)
    turn = np.empty(len(y), np.int64)  # a sample's place in the shuffled queue of its class
    turn[by_class] = np.arange(len(y)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[np.argsort(turn[order], kind="stable")[:most]])


def diffusion_map(U: NDArray[np.floating], rows: Labels, dims: int) -> DiffusionMap:
    """Diffusion coordinates of all rows of U, from the eigenvectors of the landmarks' Markov matrix.

    A sample's coordinate is what one step of the walk to the landmarks makes of their eigenvector; for a landmark that
    is λ u itself, for others the Nyström extension.

    Args:
        U: (N, D) features on one scale.
        rows: (M,) landmarks, at least two.
        dims: most coordinates.

    Raises:
        InputError: all landmarks are equal.
    """
    from scipy.linalg import eigh

    marks = U[rows].astype(np.float64)
    squares = _squares(marks)

    def distances(Z: Array) -> Array:
        return np.maximum(_squares(Z)[:, None] + squares - 2 * Z @ marks.T, 0.0)

    K = distances(marks)
    pairs = K[np.triu_indices(len(rows), 1)]
    if not pairs.max() > 1e-10 * squares.max():
        raise InputError("mapss: all features point the same way: there is nothing to tell classes apart by")
    bandwidth = float(np.median(pairs))
    if bandwidth < 1e-6 * pairs.max():  # most samples are copies of each other
        bandwidth = float(pairs.mean())
    K = np.exp(-K / (2 * bandwidth))
    density = K.sum(axis=1)
    K /= density[:, None] * density
    root = np.sqrt(K.sum(axis=1))
    K /= root[:, None] * root  # symmetric, with the eigenvalues of P; its eigenvectors over the root are those of P
    n_pairs = min(dims + 1, len(rows))
    values, vectors = eigh(K, subset_by_index=(len(rows) - n_pairs, len(rows) - 1))
    values, vectors = np.maximum(values[::-1][1:], 0.0), vectors[:, ::-1][:, 1:] / root[:, None]
    total = np.trace(K) - 1
    L = min(int(np.searchsorted(np.cumsum(values), 0.99 * total)) + 1, len(values))
    values, vectors = values[:L], vectors[:, :L]
    coordinates = np.empty((len(U), L))
    for start in range(0, len(U), BLOCK):
        d = distances(U[start : start + BLOCK].astype(np.float64))
        d -= d.min(axis=1, keepdims=True)  # far from all landmarks every weight would vanish; the scale cancels
        step = np.exp(-d / (2 * bandwidth)) / density
        coordinates[start : start + BLOCK] = step @ vectors / step.sum(axis=1, keepdims=True)
    return DiffusionMap(coordinates, values, float(values.sum() / total), bandwidth)


def cluster_distances(psi: Array, y: Labels, shrinkage: float) -> tuple[Array, Array, Labels]:
    """A (N,), distance to the own cluster without the sample; B (N,), to the nearest other one; which one (N,).

    Args:
        psi: (N, L) coordinates.
        y: (N,) labels; at least two classes.
        shrinkage: added to each covariance, as a share of its mean variance.
    """
    L, counts = psi.shape[1], np.bincount(y)
    present = np.flatnonzero(counts)
    means = np.stack([psi[y == c].mean(axis=0) for c in present])
    scatter = np.stack([np.cov(psi[y == c].T, ddof=0).reshape(L, L) * counts[c] for c in present])
    pooled = scatter.sum(axis=0) / max(len(y) - len(present), 1)
    if np.trace(pooled) < 1e-9 * psi.var(axis=0).sum():  # every class is one point
        pooled = np.cov(psi.T).reshape(L, L)
    A, B, other = np.empty(len(y)), np.full(len(y), np.inf), np.empty(len(y), np.int64)
    for c, mean, spread in zip(present, means, scatter, strict=True):
        n = int(counts[c])
        own = min(1.0, (n - 1) / L) if n > 2 else 0.0  # of the cluster's own covariance, the rest is pooled
        covariance = own * spread / max(n - 1, 1) + (1 - own) * pooled
        covariance += (shrinkage * np.trace(covariance) / L + 1e-15) * np.eye(L)
        W = np.linalg.inv(np.linalg.cholesky(covariance))
        d2 = np.concatenate([_squares((psi[s : s + BLOCK] - mean) @ W.T) for s in range(0, len(psi), BLOCK)])
        mine = y == c
        near = ~mine & (d2 < B)
        B[near], other[near] = d2[near], c
        if n > 1:
            # without the sample the mean lies n/(n-1) times as far, and the covariance (all of it, so that the formula
            # closes) is (n-1)/(n-2) times itself less a rank one part (Sherman and Morrison)
            left = 1 - own * n / (n - 1) ** 2 * d2[mine]
            grown = (n - 1) / (n - 2) if n > 2 else 1.0
            A[mine] = (n / (n - 1)) ** 2 / grown * d2[mine] / left
        else:
            A[mine] = d2[mine]
    return np.sqrt(A + 1e-6), np.sqrt(B + 1e-6), other


def _squares(Z: Array) -> Array:
    return np.asarray(np.einsum("ij,ij->i", Z, Z))

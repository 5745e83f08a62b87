"""Out-of-sample class probabilities from features: multinomial logistic regression, all folds solved at once.

The model of fold k is fitted on the samples outside fold k and predicts those inside. It minimises

    f(W) = - sum_i log softmax(W z_i)[y_i] + penalty/2 * |W|^2

over standardised features z. Three things make that cheap:

* One product serves all models: their weights are stacked, so a step costs two matrix products in all.
* Features are rotated to their principal axes. The bound of Böhning (1992) on the Hessian,
  ``diag(p) - p p^T <= 1/2``, is then a diagonal, ``curvature = (squares of the column) / 2 + penalty``, and a step
  ``W - gradient / curvature`` always goes down. It sees no labels, so all models can share it.
* L-BFGS on top of that bound needs no line search: 5 to 20 steps instead of hundreds.

Features may be seen by all models (scaling, axes), labels never by the model that predicts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import InputError
from .threads import blas_threads

Floats = NDArray[np.float64]
Single = NDArray[np.float32]
Ints = NDArray[np.int64]
Progress = Callable[[float], None]
_Pair = tuple[Single, Single, Floats]  # step (C, M, D+1), change of the gradient, 1 / (step . change) (M,)

PENALTIES = (1.0, 10.0, 100.0, 1000.0)
"""Penalties to choose from (scikit-learn's ``C`` is 1/penalty)."""

MEMORY = 10
"""Pairs that L-BFGS remembers."""

JUDGES = 2000
"""Samples that choose the penalty; the first folds that hold so many do it."""


@dataclass(frozen=True)
class Probe:
    """What `linear_probe` returns.

    Attributes:
        scores: (N, C) the logits in the single precision they are computed in.
        head: weights (C, D) and bias (C,) fitted on all samples; ``X @ weights.T + bias`` are its logits.
        penalty: the penalty used.
    """

    scores: Single
    head: tuple[Floats, Floats]
    penalty: float

    @cached_property
    def logits(self) -> Floats:
        """(N, C) out-of-sample scores of each sample from the model that did not see its label.

        All models share penalty, scaling and gauge (the scores of a sample sum to zero), so rows of different folds
        compare.
        """
        return self.scores.astype(np.float64)

    @cached_property
    def pred_probs(self) -> Floats:
        """(N, C) out-of-sample class probabilities, ``softmax(logits)``."""
        out = np.empty(self.scores.shape)
        for rows in _blocks(0, len(out), 1024):
            out[rows] = _softmax(self.scores[rows].astype(np.float64))
        return out


@dataclass(frozen=True)
class _Design:
    """Features on their principal axes, sorted by fold; the last column is one (for the bias).

    Attributes:
        z: (N, D+1).
        y: (N,) labels, in the order of ``z``.
        starts: (K+1,) where each fold begins.
        squares: (D+1,) sum of squares of each column.
        mean, rotation: (D,) and (D, D), ``z = (x - mean) @ rotation``.
    """

    z: Single
    y: Ints
    starts: Ints
    squares: Floats
    mean: Floats
    rotation: Floats


def linear_probe(
    X: ArrayLike,
    y: ArrayLike,
    n_classes: int,
    *,
    folds: int | ArrayLike = 5,
    seed: int = 0,
    penalty: float | None = None,
    tolerance: float = 1e-4,
    max_steps: int = 200,
    threads: int = 1,
    progress: Progress | None = None,
) -> Probe:
    """Cross-validated logistic regression on given (noisy) labels.

    Args:
        X: (N, D) finite features, on any scale.
        y: (N,) given labels, 0 to C-1.
        n_classes: C; a class may have no samples.
        folds: number of folds, dealt evenly within each class; or (N,) the fold of each sample, from 0.
        seed: of the deal.
        penalty: of the squared weights of standardised features. None chooses the one of ``PENALTIES``
            with the lowest out-of-sample loss of the given labels (on the first folds, that being enough).
        tolerance: a model stops when a plain step promises to lower its loss per sample by less than this;
            it is then within about ten times that of its minimum, which ranks as well as the minimum.
        max_steps: stop after so many steps anyway.
        threads: BLAS threads. The result is the same to the last bit for the same number of threads.
        progress: called with the share done, 0 to 1.

    Returns:
        Probabilities, logits and a head on all samples.

    Raises:
        InputError: shapes or labels do not fit, a feature is not finite, or there is only one class.
    """
    X, y = np.asarray(X), np.asarray(y)
    _check(X, y, n_classes, penalty)
    fold = _folds(y, folds, seed)
    report = progress or (lambda share: None)
    with blas_threads(threads):
        design, order = _design(X, y, fold)
        report(0.05)
        if penalty is None:
            penalty = _choose_penalty(design, n_classes, max_steps, _part(report, 0.05, 0.4))
        k = len(design.starts) - 1
        held = np.arange(k + 1)  # model i does not see fold i; model k, the head, sees all
        same = np.full(k + 1, penalty)
        W = _solve(design, n_classes, held, same, tolerance, max_steps, _part(report, 0.4, 1.0))
        scores = np.empty((len(y), n_classes), np.float32)
        for i, (start, stop) in enumerate(pairwise(design.starts)):
            scores[order[start:stop]] = design.z[start:stop] @ W[:, i].T
    return Probe(scores, _head(design, W[:, k]), float(penalty))


def linear_head(
    X: ArrayLike,
    y: ArrayLike,
    n_classes: int,
    *,
    penalty: float,
    tolerance: float = 1e-4,
    max_steps: int = 200,
    threads: int = 1,
) -> tuple[Floats, Floats]:
    """Weights (C, D) and bias (C,) fitted on all samples: the head of `linear_probe`, without its folds.

    Args:
        X, y, n_classes, penalty, tolerance, max_steps, threads: see `linear_probe`.

    Raises:
        InputError: see `linear_probe`.
    """
    X, y = np.asarray(X), np.asarray(y)
    _check(X, y, n_classes, penalty)
    with blas_threads(threads):
        design, _ = _design(X, y, np.zeros(len(y), np.int64))
        nobody = np.array([1])  # the only fold is 0: the model sees all
        W = _solve(design, n_classes, nobody, np.array([penalty]), tolerance, max_steps, lambda share: None)
    return _head(design, W[:, 0])


def _head(design: _Design, w: Single) -> tuple[Floats, Floats]:
    """Weights (C, D) and bias (C,) on the features as they came, from weights (C, D+1) on the design's."""
    weights = w[:, :-1] @ design.rotation.T
    return weights, w[:, -1] - weights @ design.mean


def _check(X: NDArray[Any], y: NDArray[Any], n_classes: int, penalty: float | None) -> None:
    if X.ndim != 2 or y.ndim != 1 or len(X) != len(y) or X.dtype.kind not in "fiub":
        raise InputError(f"features must be (N, D) numbers and labels (N,), got {X.shape} and {y.shape}")
    if y.dtype.kind not in "iu":
        raise InputError(f"labels must be whole numbers from 0, got {y.dtype}; number the classes first")
    bad = np.flatnonzero((y < 0) | (y >= n_classes))
    if len(bad):
        raise InputError(f"row {bad[0]}: label {y[bad[0]]} is not one of the classes 0 to {n_classes - 1}")
    if len(y) == 0 or (y == y[0]).all():
        raise InputError("only one class is present in the labels; a classifier needs samples of at least two")
    if penalty is not None and not 0 < penalty < np.inf:
        raise InputError(f"the penalty must be positive, got {penalty}; try 1 to 1000")


def _folds(y: NDArray[Any], folds: int | ArrayLike, seed: int) -> Ints:
    """The fold (N,) of each sample: given, or dealt in turn to the shuffled samples of each class."""
    given = np.asarray(folds)
    if given.ndim:
        if given.shape != y.shape or given.dtype.kind not in "iu" or given.min() < 0:
            raise InputError(f"folds must be a number or (N,) whole numbers from 0, got {given.shape}")
        fold: Ints = np.unique(given, return_inverse=True)[1].astype(np.int64)
        if fold.max() == 0:
            raise InputError("all samples are in one fold; at least two are needed")
        return fold
    if given.dtype.kind not in "iu" or given < 2:
        raise InputError(f"at least two folds are needed, got {given}; five are usual")
    order = np.random.default_rng(seed).permutation(len(y))
    fold = np.empty(len(y), np.int64)
    fold[order[np.argsort(y[order], kind="stable")]] = np.arange(len(y)) % min(int(given), len(y))
    return fold


def _design(X: NDArray[Any], y: NDArray[Any], fold: Ints) -> tuple[_Design, Ints]:
    """Standardise, rotate and sort; also the order (N,), so that ``design.z[i]`` is ``X[order[i]]``."""
    n, dim = X.shape
    order = np.argsort(fold, kind="stable")
    mean = X.mean(axis=0, dtype=np.float64)
    if not np.isfinite(mean).all():
        row = next(i for i in range(n) if not np.isfinite(X[i].astype(np.float64)).all())
        raise InputError(f"row {row} of the features is not finite; fix or leave out such rows")
    z = np.ones((n, dim + 1), np.float32)
    gram = np.zeros((dim, dim))
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in _blocks(0, n, 4096):
            z[rows, :-1] = X[order[rows]] - mean
            gram += z[rows, :-1].T @ z[rows, :-1]
    if not np.isfinite(gram).all():
        raise InputError("the features are too large to square in single precision; scale them down")
    scale = np.sqrt(np.diag(gram) / n)
    inverse = np.divide(1, scale, out=np.zeros(dim), where=scale > 1e-6 * np.abs(mean))  # constant: left out
    squares, axes = np.linalg.eigh(inverse[:, None] * gram * inverse)
    rotation = inverse[:, None] * axes
    single = rotation.astype(np.float32)
    for rows in _blocks(0, n, 4096):
        z[rows, :-1] = z[rows, :-1] @ single
    starts = np.searchsorted(fold[order], np.arange(fold.max() + 2))
    squares = np.append(np.maximum(squares, 0), n)
    return _Design(z, y[order].astype(np.int64), starts, squares, mean, rotation), order


def _choose_penalty(design: _Design, n_classes: int, max_steps: int, report: Progress) -> float:
    """Of ``PENALTIES``, the one that loses least on the given labels of the first folds."""
    judges = int(np.searchsorted(design.starts[1:-1], JUDGES)) + 1
    held = np.repeat(np.arange(judges), len(PENALTIES))
    penalty = np.tile(PENALTIES, judges)
    W = _solve(design, n_classes, held, penalty, 1e-3, max_steps, report)
    losses = np.zeros(len(held))
    for m, k in enumerate(held):
        span = slice(design.starts[k], design.starts[k + 1])
        p = _softmax((design.z[span] @ W[:, m].T).astype(np.float64))
        losses[m] = -np.log(p[np.arange(len(p)), design.y[span]] + 1e-12).sum()
    return PENALTIES[int(losses.reshape(judges, -1).sum(axis=0).argmin())]


def _solve(
    design: _Design,
    n_classes: int,
    held: Ints,
    penalty: Floats,
    tolerance: float,
    max_steps: int,
    report: Progress,
) -> Single:
    """Weights (C, M, D+1) of M models; model m is fitted without fold ``held[m]`` and with ``penalty[m]``."""
    shrink = np.outer(penalty, np.append(np.ones(len(design.mean)), 0)).astype(np.float32)  # (M, D+1)
    curvature = (design.squares / 2 + shrink).astype(np.float32)

    def evaluate(W: Single) -> tuple[Floats, Single]:
        loss, gradient = _loss(design, W, held)
        return loss + _dot(W, shrink * W) / 2, gradient + shrink * W

    W = np.zeros((n_classes, len(held), len(design.squares)), np.float32)
    W[:, :, -1] = _log_priors(design, n_classes, held)
    loss, gradient = evaluate(W)
    pairs: list[_Pair] = []
    scale, ups, going = np.ones(len(held)), np.zeros(len(held)), np.ones(len(held), bool)
    falls: list[float] = []
    for _ in range(max_steps):
        fall = _dot(gradient, gradient / curvature) / len(design.z)
        going &= fall > tolerance  # a model that has arrived stays, whatever the others do
        if not going.any():
            break
        falls.append(float(fall[going].max()))
        report(np.log(falls[0] / min(falls)) / np.log(falls[0] / tolerance))
        step = -_lbfgs(gradient, curvature, pairs, scale)
        new_loss, new_gradient = evaluate(W + step)
        change = new_gradient - gradient
        along = _dot(step, change)
        convex = along > 0  # always, but for rounding
        inverse = np.where(convex, 1 / np.where(convex, along, 1), 0)
        scale = np.where(convex, along / np.where(convex, _dot(change, change / curvature), 1), scale)
        # A model that went up stays and tries again, wiser by this pair; after the second time it forgets all
        # pairs and takes the plain step, which cannot go up.
        down = new_loss <= loss + 1e-6 * np.abs(loss)
        ups = np.where(down, 0, ups + 1)
        scale = np.where(ups < 2, scale, 1)
        pairs = [(s, c, np.where(ups < 2, i, 0)) for s, c, i in [*pairs, (step, change, inverse)][-MEMORY:]]
        moves = (down & going)[:, None]
        W, gradient = np.where(moves, W + step, W), np.where(moves, new_gradient, gradient)
        loss = np.where(moves[:, 0], new_loss, loss)
    report(1.0)
    return W


def _lbfgs(gradient: Single, curvature: Single, pairs: list[_Pair], scale: Floats) -> Single:
    """Inverse Hessian times gradient, each model for itself (two-loop recursion, Nocedal 1980)."""
    q, back = gradient.copy(), []
    for step, change, r in reversed(pairs):
        back.append(r * _dot(step, q))
        q -= back[-1].astype(np.float32)[:, None] * change
    q *= scale.astype(np.float32)[:, None] / curvature
    for (step, change, r), a in zip(pairs, reversed(back), strict=True):
        q += (a - r * _dot(change, q)).astype(np.float32)[:, None] * step
    return q


def _loss(design: _Design, W: Single, held: Ints) -> tuple[Floats, Single]:
    """Cross-entropy (M,) and gradient (C, M, D+1) of all models, each without the fold held out."""
    loss, gradient = np.zeros(len(held)), np.zeros_like(W)
    for k in range(len(design.starts) - 1):
        sees = np.flatnonzero(held != k)
        if len(sees) == 0:
            continue
        V = W[:, sees].reshape(-1, W.shape[2])
        G = np.zeros_like(V)
        for rows in _blocks(design.starts[k], design.starts[k + 1], _rows(len(V))):
            z, own = design.z[rows], design.y[rows]
            i = np.arange(len(z))
            p = (V @ z.T).reshape(len(W), len(sees), len(z))
            p -= p.max(axis=0)
            score = p[own, :, i]  # (B, M)
            np.exp(p, out=p)
            total = p.sum(axis=0)  # (M, B)
            loss[sees] += np.log(total).sum(axis=1, dtype=np.float64) - score.sum(axis=0, dtype=np.float64)
            p /= total
            p[own, :, i] -= 1
            G += p.reshape(len(V), -1) @ z
        gradient[:, sees] += G.reshape(len(W), len(sees), -1)
    return loss, gradient


def _log_priors(design: _Design, n_classes: int, held: Ints) -> Floats:
    """Log of the class shares (C, M) that each model sees, less their mean; half a sample more per class."""
    per_fold = np.array([np.bincount(design.y[a:b], minlength=n_classes) for a, b in pairwise(design.starts)])
    seen = np.array([per_fold[np.arange(len(per_fold)) != k].sum(axis=0) for k in held]).T
    logs: Floats = np.log(seen + 0.5)
    logs -= logs.mean(axis=0)
    return logs


def _softmax(scores: Floats) -> Floats:
    p: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def _dot(a: Single, b: Single) -> Floats:
    """Inner product (M,) of two (C, M, D+1), model by model."""
    products: Floats = np.einsum("cmd,cmd->m", a, b, dtype=np.float64)
    return products


def _rows(width: int) -> int:
    """Samples a block, so that its scores stay in the cache."""
    return int(np.clip(2**18 // width, 256, 4096))


def _blocks(start: int, stop: int, size: int) -> Iterator[slice]:
    for a in range(start, stop, size):
        yield slice(a, min(a + size, stop))


def _part(report: Progress, start: float, stop: float) -> Progress:
    return lambda share: report(start + (stop - start) * min(max(share, 0.0), 1.0))

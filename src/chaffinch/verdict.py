r"""The verdict: for each sample P(clean), P(mislabelled), P(OOD) and the label it probably should have.

A method of our own. OOD is one more class, z = C, and each given label y is drawn from the true class z through a
transition matrix T (C + 1, C) whose last row says how OOD is labelled:

.. math:: P(z \mid x, y) \propto P(z \mid x)\; T_{z,y}

Clean is z = y, OOD is z = C, mislabelled is the rest. Neither P(z | x) nor T is known, so they are learnt in turn:

1. **P(z | x)** is a kernel ridge regression on the posteriors of the round before. The kernel is brought to one set of
   landmark features and factorised once a fold; a round is then two matrix products.
2. **A link** turns its scores into probabilities. It maximises the likelihood of the given labels,
   :math:`\sum_i \log \sum_z P(z \mid x_i) T_{z,y_i}`.
3. **T** is counted: which raw labels do those samples carry that are most surely of class z?

Steps 2 and 3 look only at samples the regression has not learnt from: every fold has its own regression, fed with
posteriors into which no label of that fold ever entered but through the link and T, a few numbers for all. So a given
label cannot come back as evidence for itself; when it can, rounds talk each other into "there is no noise".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .base.neighbors import unit_rows
from .base.threads import blas_threads

Array = NDArray[np.float64]
Single = NDArray[np.float32]
Labels = NDArray[np.int64]

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Ridge penalties to choose from, by the likelihood of held-out given labels."""

HEAVIEST = 0.01
"""Largest penalty per sample. A heavier one lets the class shares of a fold outweigh its features: rounds diverge."""

LEAST = 20
"""Fewest samples on which a verdict is attempted, and on which a row of T is counted."""

MOST_CLASSES = 1000
"""Most classes there may be for a verdict: T and the link hold a number for each pair, and every round goes through
them for every sample. With ten times as many a verdict would take days and tens of gigabytes."""

ENOUGH = 100
"""Samples a class, on average, below which a verdict says so: of 71 instead of 1,700, macro-F1 was 0.72, not 0.92."""


@dataclass(frozen=True)
class Verdict:
    """What became of every sample.

    Attributes:
        proba: (N, 3) P(clean), P(mislabelled), P(OOD); rows sum to one.
        labels: (N,) int64 probable class, given that the sample belongs to one.
        sureness: (N,) probability of that class, given the same.
        transition: (C + 1, C) estimated P(given label | true class); the last row is OOD.
        rates: estimated share of ``mislabelled`` and ``ood`` samples.
        info: penalty, rounds, expected accuracy; ``weak`` (true) where the evidence is too weak to trust it, and a
            ``note`` that says why.
    """

    proba: Array
    labels: Labels
    sureness: Array
    transition: Array
    rates: dict[str, float]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def kinds(self) -> NDArray[np.int8]:
        """(N,) the most probable kind: 0 clean, 1 mislabelled, 2 OOD."""
        return np.asarray(self.proba.argmax(axis=1), np.int8)

    @property
    def noise(self) -> Array:
        """(N,) probability of any noise: higher = more suspicious."""
        return np.asarray(1.0 - self.proba[:, 0])


def judge(
    X: NDArray[np.floating],
    y: Labels,
    n_classes: int,
    *,
    mislabelled: float | None = None,
    ood: float | None = None,
    rounds: int = 5,
    landmarks: int = 512,
    folds: int = 5,
    most: int = 30_000,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> Verdict:
    """Give the verdict on a contaminated set from features and given labels alone.

    Args:
        X: (N, D) features; only their direction counts.
        y: (N,) given labels, 0 to C - 1.
        n_classes: C, at least two.
        mislabelled: share of wrong labels, if known; None = estimated.
        ood: share of OOD samples, if known; None = estimated.
        rounds: how often regression, link and transition matrix are learnt in turn.
        landmarks: features that stand for the kernel.
        folds: samples of one fold are judged by the regression that never met their labels.
        most: above this size the method is fitted on so many samples, drawn by ``seed``, and applied to all.
        seed: of folds, landmarks and the draw.
        progress: called with the share done, 0 to 1.

    Raises:
        InputError: fewer than two classes or more than `MOST_CLASSES`, too few samples, a rate or a setting out of
            range, or NaN.
    """
    report = progress or (lambda share: None)
    _check(X, y, n_classes, mislabelled, ood)
    for name, value, least in (
        ("rounds", rounds, 1), ("landmarks", landmarks, 1), ("folds", folds, 2), ("most", most, LEAST)
    ):  # fmt: skip
        if value < least:
            raise InputError(f"verdict: {name} must be at least {least}, got {value}")
    rng = np.random.default_rng(seed)
    n = len(y)
    fitted = np.sort(rng.permutation(n)[:most]) if n > most else np.arange(n)
    with blas_threads(1):
        unit = unit_rows(X[fitted])
        kernel = _Kernel(unit, min(landmarks, len(fitted)), rng)
        given = y[fitted]
        ridge = _Folds(kernel(unit), given, folds, rng)
        report(0.3)
        model = _learn(ridge, given, n_classes, rounds, lambda share: report(0.3 + 0.6 * share))
        proba, labels, highest, inside = np.empty((n, 3)), np.empty(n, np.int64), np.empty(n), np.empty(n)
        for rows, prior in model.everyone(kernel, X, fitted):
            posterior = _posterior(prior, model.transition, y[rows])
            proba[rows] = _kinds(posterior, y[rows])
            labels[rows] = posterior[:, :-1].argmax(axis=1)
            highest[rows] = posterior[:, :-1].max(axis=1)
            inside[rows] = posterior[:, :-1].sum(axis=1)
    proba = _shift(proba, mislabelled, ood)
    sureness = highest / np.maximum(inside, 1e-300)
    info: dict[str, Any] = {
        "penalty": model.penalty,
        "rounds": rounds,
        "fitted_on": len(fitted),
        "expected_accuracy": float(proba.max(axis=1).mean()),
        "label_noise": (1.0 - np.diag(model.transition)).tolist(),
        "label_gain": model.gain,
    }
    notes = [f"fitted on {most:,} of {n:,} samples and applied to all"] if n > most else []
    if n < ENOUGH * n_classes:
        notes.append(
            f"{n:,} samples of {n_classes} classes are few: its rates may be far off, so take it as an order in which "
            "to look"
        )
    typical = float(highest.sum() / max(inside.sum(), 1e-300))
    if doubt := _doubt(model, typical, info["expected_accuracy"]):
        info["weak"] = True
        notes.append(doubt)
    if notes:
        info["note"] = "; ".join(notes)
    report(1.0)
    rates = {"mislabelled": float(proba[:, 1].mean()), "ood": float(proba[:, 2].mean())}
    return Verdict(proba, labels, sureness, model.transition, rates, info)


def ceiling(
    X: NDArray[np.floating],
    y: Labels,
    true: Labels,
    n_classes: int,
    *,
    landmarks: int = 512,
    folds: int = 5,
    seed: int = 0,
) -> Array:
    """(N, 3) the same posterior learnt from the true classes of the other folds: the best `judge` could do.

    For measuring only. One regression on the truth replaces the rounds; T is counted from the truth.

    Args:
        X: (N, D) features.
        y: (N,) given labels.
        true: (N,) true labels, -1 = OOD.
        n_classes: C.
        landmarks, folds, seed: as in `judge`.
    """
    _check(X, y, n_classes)
    rng = np.random.default_rng(seed)
    z = np.where(true < 0, n_classes, true)
    truth = np.eye(n_classes + 1, dtype=np.float32)[z]
    with blas_threads(1):
        unit = unit_rows(X)
        ridge = _Folds(_Kernel(unit, min(landmarks, len(y)), rng)(unit), y, folds, rng)
        best: tuple[float, Array] | None = None
        for penalty in PENALTIES:
            scores, _ = ridge.fit([truth[seen] for seen, _ in ridge.rows], penalty)
            prior = _Link.matching(scores, truth)(scores)
            loss = -float(np.log(prior[np.arange(len(y)), z] + 1e-12).mean())
            if best is None or loss < best[0]:
                best = loss, prior
    assert best is not None
    counts = np.zeros((n_classes + 1, n_classes))
    np.add.at(counts, (z, y), 1)
    return _kinds(_posterior(best[1], _pooled(counts, pull=1), y), y)


class _Kernel:
    """Landmark (Nyström) features of a Gaussian kernel on the sphere, and a constant."""

    def __init__(self, unit: Single, landmarks: int, rng: np.random.Generator) -> None:
        some = unit[rng.choice(len(unit), min(len(unit), 2000), replace=False)]
        squares = np.maximum(2.0 - 2.0 * (some @ some.T)[np.triu_indices(len(some), 1)], 0.0)
        self.width = max(float(np.median(squares)), 1e-6)  # twice the variance of the Gaussian
        self.landmarks = unit[rng.choice(len(unit), landmarks, replace=False)]
        values, axes = np.linalg.eigh(self._near(self.landmarks).astype(np.float64))
        kept = values > 1e-6 * values[-1]
        self.root = (axes[:, kept] / np.sqrt(values[kept])).astype(np.float32)

    def _near(self, unit: Single) -> Single:
        return np.asarray(np.exp((np.minimum(unit @ self.landmarks.T, 1.0) - 1.0) * np.float32(2.0 / self.width)))

    def __call__(self, unit: Single) -> Single:
        """Features (n, M) of unit rows."""
        out = np.ones((len(unit), self.root.shape[1] + 1), np.float32)
        for start in range(0, len(unit), 8192):
            rows = slice(start, start + 8192)
            out[rows, :-1] = self._near(unit[rows]) @ self.root
        return out


class _Folds:
    """Ridge regressions on all samples but one fold's, each factorised once, for any target and penalty."""

    def __init__(self, Z: Single, y: Labels, folds: int, rng: np.random.Generator) -> None:
        n, order = len(Z), rng.permutation(len(Z))
        fold = np.empty(n, np.int64)
        fold[order[np.argsort(y[order], kind="stable")]] = np.arange(n) % folds
        gram = (Z.T @ Z).astype(np.float64)
        self.rows: list[tuple[Labels, Labels]] = []
        self.parts: list[tuple[Single, Single, Array, Single]] = []
        for f in range(folds):
            seen, held = np.flatnonzero(fold != f), np.flatnonzero(fold == f)
            values, axes = np.linalg.eigh(gram - (Z[held].T @ Z[held]).astype(np.float64))
            turn = axes.astype(np.float32)
            self.rows.append((seen, held))
            self.parts.append((Z[seen] @ turn, Z[held] @ turn, np.maximum(values, 0.0), turn))
        self.n = n

    def fit(self, targets: list[Single], penalty: float) -> tuple[Array, list[Single]]:
        """Held-out scores (N, K), and each fold's leave-one-out scores of the samples it has seen.

        Args:
            targets: for each fold (n_seen, K).
            penalty: of the squared weights.
        """
        scores = np.empty((self.n, targets[0].shape[1]))
        inner = []
        self.weights: list[Single] = []
        for (_, held), (seen_z, held_z, values, turn), target in zip(self.rows, self.parts, targets, strict=True):
            shrink = (1.0 / (values + penalty)).astype(np.float32)
            weights = shrink[:, None] * (seen_z.T @ target)
            leverage = np.minimum(np.square(seen_z) @ shrink, np.float32(0.999))[:, None]
            inner.append((seen_z @ weights - leverage * target) / (1 - leverage))
            scores[held] = held_z @ weights
            self.weights.append(turn @ weights)
        return scores, inner


class _Link:
    """Scores (n, K) to probabilities (n, K): softmax of a linear map of standardised scores."""

    def __init__(self, mean: Array, sd: Array, weights: Array) -> None:
        self.mean, self.sd, self.weights = mean, sd, weights

    def _design(self, scores: Array | Single) -> Array:
        return np.hstack([(scores - self.mean) / self.sd, np.ones((len(scores), 1))])

    def __call__(self, scores: Array | Single) -> Array:
        return _softmax(self._design(scores) @ self.weights)

    @classmethod
    def matching(cls, scores: Array, targets: Array | Single) -> _Link:
        """The link whose probabilities come nearest to soft targets (n, K) in cross-entropy."""
        k = scores.shape[1]
        start = cls(scores.mean(axis=0), scores.std(axis=0) + 1e-9, np.vstack([2 * np.eye(k), np.zeros((1, k))]))
        return start._minimise(scores, lambda p: (targets, -(targets * np.log(p + 1e-300)).sum()), pull=1.0, to=0.0)

    def explaining(self, scores: Array, likelihood: Array) -> _Link:
        """From here, the link under which the given labels are most likely; few samples a weight hold it back.

        Args:
            scores: (n, K).
            likelihood: (n, K) probability of each sample's given label under each class.
        """
        pull = 10.0 + 100.0 * self.weights.size / len(scores)
        start = _Link(scores.mean(axis=0), scores.std(axis=0) + 1e-9, self.weights)

        def loss(p: Array) -> tuple[Array, float]:
            joint = p * likelihood
            total = joint.sum(axis=1) + 1e-300
            return joint / total[:, None], -float(np.log(total).sum())

        return start._minimise(scores, loss, pull=pull, to=self.weights)

    def _minimise(
        self, scores: Array, loss: Callable[[Array], tuple[Array | Single, float]], *, pull: float, to: Array | float
    ) -> _Link:
        """Descend; ``loss`` gives the posterior that the probabilities are drawn to, and its value."""
        from scipy.optimize import minimize

        Z, shape, n = self._design(scores), self.weights.shape, len(scores)

        def value(flat: Array) -> tuple[float, Array]:
            W = flat.reshape(shape)
            p = _softmax(Z @ W)
            target, lost = loss(p)
            away = W - to
            away[-1] = 0.0  # the constant is free
            gradient = Z.T @ (p * target.sum(axis=1, keepdims=True) - target) + pull * away
            return (lost + pull / 2 * float((away**2).sum())) / n, gradient.ravel() / n

        found = minimize(value, self.weights.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 20})
        return _Link(self.mean, self.sd, found.x.reshape(shape))


@dataclass
class _Model:
    prior: Array  # (N, K) P(z | x), each row from regressions that never met its label
    transition: Array  # (K, C)
    link: _Link
    weights: list[Single]
    penalty: float
    gain: float  # share of the labels' entropy that the features explain, less what chance would
    nats: float  # the same in nats for each weight of the link

    def everyone(self, kernel: _Kernel, X: NDArray[np.floating], fitted: Labels) -> Iterator[tuple[slice, Array]]:
        """Blocks of samples and their P(z | x): of those not fitted, by the mean score of all folds' regressions."""
        mean = np.mean(self.weights, axis=0)
        for start in range(0, len(X), 16_384):
            rows = slice(start, min(start + 16_384, len(X)))
            own = slice(*np.searchsorted(fitted, [rows.start, rows.stop]))
            prior = self.prior[own]
            if len(prior) < rows.stop - rows.start:
                prior = self.link((kernel(unit_rows(X[rows])) @ mean).astype(np.float64))
                prior[fitted[own] - start] = self.prior[own]
            yield rows, prior


def _learn(ridge: _Folds, y: Labels, n_classes: int, rounds: int, report: Callable[[float], None]) -> _Model:
    n, given = len(y), np.eye(n_classes, dtype=np.float32)[y]
    shares = (np.bincount(y, minlength=n_classes) + 1) / (n + n_classes)
    best: tuple[float, float, _Link, Array, list[Single]] | None = None
    for penalty in PENALTIES:
        if best is not None and penalty > HEAVIEST * n:
            break
        scores, inner = ridge.fit([given[seen] for seen, _ in ridge.rows], penalty)
        link = _Link.matching(scores, given)
        p = link(scores)
        loss = -float(np.log(p[np.arange(n), y] + 1e-12).mean())
        if best is not None and loss > best[0]:
            break  # the loss has one valley
        best = loss, penalty, link, p, inner
    assert best is not None
    loss, penalty, link, p, inner = best
    report(0.3)

    # Start: near each sample, which pure class (or OOD) would explain the mix of given labels that is predicted there?
    transition = _count(p, y, shares)
    spread = np.log(transition.T)
    posteriors: list[Single] = []
    mean = np.zeros((n, n_classes + 1))
    for (seen, _), own in zip(ridge.rows, inner, strict=True):
        posterior = _posterior(_softmax(NEARBY * link(own) @ spread), transition, y[seen])
        mean[seen] += posterior / (len(ridge.rows) - 1)
        posteriors.append(posterior.astype(np.float32))
    prior = p
    for turn in range(rounds):
        scores, inner = ridge.fit(posteriors, penalty)
        if turn == 0:
            link = _Link.matching(scores, mean)
        link = link.explaining(scores, transition[:, y].T)
        prior = link(scores)
        transition = _count(prior, y, shares)
        posteriors = [
            _posterior(link(own), transition, y[seen]).astype(np.float32)
            for (seen, _), own in zip(ridge.rows, inner, strict=True)
        ]
        report(0.3 + 0.7 * (turn + 1) / rounds)
    base = -float((shares * np.log(shares)).sum())
    size = len(np.unique(y)) ** 2
    nats = (base - loss) * n / size - 0.5  # a weight earns half a nat by chance (Akaike)
    return _Model(prior, transition, link, ridge.weights, penalty, nats * size / (n * base), nats)


NEARBY = 20.0
"""How many given labels the prediction at one place is worth, at the start."""

SURE, CERTAIN, FEW = 0.3, 0.7, 100
"""T is counted on the surest share of each class: on more, up to so many, if they are as certain as that.

Of a small set most are not, and those that only look most like a class would make its labels seem noisier than they
are. At least `LEAST` count, however uncertain; a class that fewer look most like borrows those that look like it most.
"""

PULL = 200.0
"""Samples' worth of pull of a class's noise rate towards the median one: rare classes cannot turn into OOD."""


def _count(p: Array, y: Labels, shares: Array) -> Array:
    """T (C + 1, C) from the raw labels of the samples that are most surely of each class; all entries positive."""
    n_classes, surest = len(shares), p.argmax(axis=1)
    counts = np.zeros((n_classes + 1, n_classes))
    for k in range(p.shape[1]):
        rows = np.flatnonzero(surest == k)
        if len(rows) < LEAST:
            rows, take = np.arange(len(p)), max(len(rows), min(LEAST, len(p) // (2 * n_classes)))
        else:
            certain = int((p[rows, k] > CERTAIN).sum())
            take = max(int(SURE * len(rows)), min(certain, FEW), LEAST)
        counts[k] = np.bincount(y[rows[np.argsort(-p[rows, k], kind="stable")[:take]]], minlength=n_classes)
    transition = _pooled(counts, PULL)
    # OOD may be labelled at random or as often as the classes are: a mix of both, so that it cannot become a class
    mixes = [w / n_classes + (1 - w) * shares for w in np.linspace(0, 1, 11)]
    transition[-1] = max(mixes, key=lambda row: float((counts[-1] * np.log(row)).sum()))
    return transition


def _pooled(counts: Array, pull: float) -> Array:
    """Rows of T from counts; each class's noise rate is drawn towards the median of all."""
    c = counts.shape[1]
    inside = counts[:c]
    size = inside.sum(axis=1)
    rate = 1.0 - np.diag(inside) / np.maximum(size, 1)
    order = np.argsort(rate, kind="stable")
    middle = rate[order][np.searchsorted(np.cumsum(size[order]), size.sum() / 2)]
    rate = np.clip((rate * size + pull * middle) / (size + pull), 0.002, 0.98)
    wrong = inside + 10.0 * np.maximum(rate, 0.02)[:, None] / max(c - 1, 1)
    np.fill_diagonal(wrong, 0.0)
    wrong *= rate[:, None] / wrong.sum(axis=1, keepdims=True)
    np.fill_diagonal(wrong, 1.0 - rate)
    last = counts[c:] + 20.0 / c
    return np.vstack([wrong, last / last.sum(axis=1, keepdims=True)])


def _posterior(prior: Array, transition: Array, y: Labels) -> Array:
    """P(z | x, y) (n, K) from P(z | x)."""
    joint = transition.T[y]
    joint *= prior
    joint /= joint.sum(axis=1, keepdims=True)
    return joint


def _kinds(posterior: Array, y: Labels) -> Array:
    """(n, 3) P(clean), P(mislabelled), P(OOD) from P(z | x, y); small ones are kept to full precision."""
    rows = np.arange(len(y))
    other = posterior[:, :-1].copy()
    other[rows, y] = 0.0
    proba = np.stack([posterior[rows, y], other.sum(axis=1), posterior[:, -1]], axis=1)
    return np.asarray(proba / proba.sum(axis=1, keepdims=True))


def _shift(proba: Array, mislabelled: float | None, ood: float | None) -> Array:
    """Odds of the kinds moved so that the mean probabilities are the given rates."""
    wanted = np.array([np.nan, np.nan if mislabelled is None else mislabelled, np.nan if ood is None else ood])
    told = np.flatnonzero(~np.isnan(wanted))
    for _ in range(200 if len(told) else 0):
        factor = np.ones(3)
        mean = proba.mean(axis=0)
        factor[told] = wanted[told] / np.maximum(mean[told], 1e-12)
        proba = proba * factor
        proba /= proba.sum(axis=1, keepdims=True)
        if np.abs(mean[told] - wanted[told]).max() < 1e-5:
            break
    return proba


def _doubt(model: _Model, sureness: float, accuracy: float) -> str:
    """Why not to trust it, or nothing."""
    if model.nats < 1.5 and model.gain < 0.5:  # both are 0, give or take, where the features say nothing
        return (
            "the features say hardly more about the given labels than chance would on so few samples of so many "
            "classes, so there is little to judge by; use more samples or another encoder, or look at the pictures"
        )
    if sureness < 0.7:
        return (
            f"the features leave open which class a sample is of (the likeliest has {sureness:.0%} on average), and "
            "classes that look alike pass for wrong labels; use another encoder, or look at the pictures"
        )
    if accuracy < 0.8:
        return (
            f"by its own account only {accuracy:.0%} of these judgements are right: "
            "take it as an order in which to look, not as a decision"
        )
    return ""


def _check(
    X: NDArray[Any], y: Labels, n_classes: int, mislabelled: float | None = None, ood: float | None = None
) -> None:
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise InputError(f"verdict: labels must be (N,) whole numbers, got {y.shape} {y.dtype}")
    if X.ndim != 2 or len(X) != len(y):
        raise InputError(f"verdict: features must be (N, D) with a row for each of {len(y)} labels, got {X.shape}")
    if len(y) < LEAST:
        raise InputError(f"verdict: {len(y)} samples are too few to judge; it needs at least {LEAST}")
    if n_classes > MOST_CLASSES:
        raise InputError(
            f"verdict: {n_classes:,} classes are too many to judge; it takes at most {MOST_CLASSES:,}. Join or leave "
            "out classes, or go without it: detectors still work, with cuts of their own or a budget"
        )
    if len(np.unique(y)) < 2:
        raise InputError("verdict: all samples carry the same label; it needs at least two classes")
    bad = np.flatnonzero((y < 0) | (y >= n_classes))
    if len(bad):
        raise InputError(f"verdict: row {bad[0]}: label {y[bad[0]]} is not one of the classes 0 to {n_classes - 1}")
    bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
    if len(bad):
        raise InputError(f"verdict: features: row {bad[0]} holds NaN or infinity ({len(bad)} rows do)")
    for name, rate in (("mislabelled", mislabelled), ("ood", ood)):
        if rate is not None and not 0 <= rate < 1:
            raise InputError(f"verdict: {name} must be a share from 0 to below 1, got {rate}")
    if (mislabelled or 0) + (ood or 0) >= 1:
        raise InputError("verdict: the two rates must leave something clean (sum below 1)")


def _softmax(z: Array) -> Array:
    z = z - z.max(axis=1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=1, keepdims=True)
    return z

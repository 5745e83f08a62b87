"""What a classifier said about every sample while it learnt, and a quick head that leaves such a record in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError, MissingEvidence
from .threads import blas_threads

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

_LENGTH = 8.0
"""Length of a row of features up to which the quick head's learning rate is safe."""


@dataclass(frozen=True)
class History:
    """Log-probabilities of every sample in every epoch of a training on the given labels.

    Attributes:
        seen: (E, N, C) when the sample was trained on in that epoch: augmented view, train mode, before the step.
        after: (E, N, C) after that epoch: plain view, evaluation mode.
    """

    seen: NDArray[np.floating]
    after: NDArray[np.floating]

    def __post_init__(self) -> None:
        if self.seen.ndim != 3 or self.seen.shape != self.after.shape or 0 in self.seen.shape:
            raise InputError(
                f"a history is two (E, N, C) arrays of one shape, got {self.seen.shape}, {self.after.shape}"
            )
        for name, record in (("seen", self.seen), ("after", self.after)):
            for epoch, half in enumerate(record):
                log_probs = half.astype(np.float32)  # arithmetic on float16 is slow
                if not (log_probs.min() > -np.inf and log_probs.max() <= 0.01):
                    raise InputError(_why_not(name, epoch, log_probs))

    @classmethod
    def of_logits(cls, seen: NDArray[np.floating], after: NDArray[np.floating] | None = None) -> History:
        """A history from logits (E, N, C); without ``after`` the same record serves for both."""
        first = log_softmax(seen)
        return cls(first, first if after is None else log_softmax(after))

    @property
    def epochs(self) -> int:
        """How many epochs were recorded."""
        return len(self.seen)

    def first(self, stop: int | None, asked_by: str) -> History:
        """The first ``stop`` epochs; None = all.

        Raises:
            InputError: there are fewer; the message names who asked.
        """
        if stop is None or stop == self.epochs:
            return self
        if not 1 <= stop < self.epochs:
            raise InputError(f"{asked_by}: stop must be one of the {self.epochs} recorded epochs, got {stop}")
        return History(self.seen[:stop], self.after[:stop])

    def losses(self, y: Labels) -> Array:
        """(E, N) cross-entropy against the given label after each epoch."""
        return np.asarray(-self.after[:, np.arange(len(y)), y], np.float64)

    def margins(self, y: Labels) -> Array:
        """(E, N) logit of the given label less the largest other one, as seen in training."""
        own = np.arange(len(y)), y
        out = np.empty(self.seen.shape[:2])
        for e, log_probs in enumerate(self.seen):
            others = log_probs.astype(np.float64)
            mine = others[own]
            others[own] = -np.inf
            out[e] = mine - others.max(axis=1)
        return out


def _why_not(name: str, epoch: int, log_probs: NDArray[np.float32]) -> str:
    bad = np.flatnonzero(~np.isfinite(log_probs).all(axis=1))
    if len(bad):
        return (
            f"history: {name}, epoch {epoch}: row {bad[0]} holds NaN or infinity ({len(bad)} rows do); the training "
            "may have diverged: lower its learning rate"
        )
    return (
        f"history: {name}, epoch {epoch} holds {log_probs.max():.4g}, and logarithms of probabilities are never above "
        "0; History.of_logits takes logits"
    )


def recorded(history: History | None, slug: str, *, stop: int | None = None) -> History:
    """The history that the detector ``slug`` was given, up to epoch ``stop``.

    Raises:
        MissingEvidence: there is none.
        InputError: it has one class only, or too few epochs.
    """
    if history is None:
        raise MissingEvidence(slug, "history", "chaffinch.base.runs.train_quick_head(X, y, n_classes) records one")
    if history.seen.shape[2] < 2:
        raise InputError(f"{slug}: the history has one class only; a classifier needs at least two")
    return history.first(stop, slug)


def log_softmax(logits: NDArray[np.floating]) -> Array:
    """Logarithm of the softmax over the last axis, in float64."""
    z = np.asarray(logits, np.float64)
    with np.errstate(invalid="ignore"):  # of infinities; `History` names the row
        z = z - z.max(axis=-1, keepdims=True)
        return np.asarray(z - np.log(np.exp(z).sum(axis=-1, keepdims=True)))


def train_quick_head(
    X: NDArray[np.floating],
    y: Labels,
    n_classes: int,
    *,
    hidden: int = 256,
    epochs: int = 30,
    batch: int = 128,
    learning_rate: float = 0.03,
    momentum: float = 0.9,
    dropout: float = 0.2,
    seed: int = 0,
    progress: Callable[[float], None] | None = None,
) -> History:
    """Train a small classifier (one hidden layer, ReLU) on fixed features and the given labels; keep what it said.

    Stochastic gradient descent with momentum on plain cross-entropy, in single precision, one BLAS thread: the same
    seed gives the same bits. Dropout on features and hidden units stands in for the augmentation of pictures. Features
    are standardised, cut at three standard deviations and, if more than 64, scaled down: long rows and rare large
    values would make the steps overshoot.

    Args:
        X: (N, D) features, on any scale.
        y: (N,) given labels.
        n_classes: C.
        hidden: units of the hidden layer.
        epochs: how often every sample is seen.
        batch: samples a step.
        learning_rate: falls to zero along a cosine.
        momentum: of the gradient.
        dropout: share of inputs and of hidden units that are silent in a step.
        seed: of weights, order and dropout.
        progress: called with the share done, 0 to 1.

    Returns:
        the record; float16, which ranks as well and takes a quarter of the memory.

    Raises:
        InputError: fewer than two classes are present, labels or features do not fit, or a feature is not finite.
    """
    n, dim = X.shape
    if len(y) != n or y.min(initial=0) < 0 or y.max(initial=0) >= n_classes:
        raise InputError(f"labels must be ({n},) whole numbers from 0 to {n_classes - 1}")
    if len(np.unique(y)) < 2:
        raise InputError("only one class is present in the labels; a classifier needs samples of at least two")
    rng = np.random.default_rng(seed)
    Z = _standardised(X)
    weights = [
        (rng.standard_normal((dim, hidden)) * np.sqrt(2 / min(dim, _LENGTH**2))).astype(np.float32),
        np.zeros(hidden, np.float32),
        (rng.standard_normal((hidden, n_classes)) * np.sqrt(1 / hidden)).astype(np.float32),
        np.zeros(n_classes, np.float32),
    ]
    speed = [np.zeros_like(w) for w in weights]
    seen = np.empty((epochs, n, n_classes), np.float16)
    after = np.empty_like(seen)
    steps, step = epochs * -(-n // batch), 0

    def mask(shape: tuple[int, ...]) -> NDArray[np.float32]:
        return (rng.random(shape, np.float32) >= dropout).astype(np.float32) / np.float32(1 - dropout)

    with blas_threads(1):
        for epoch in range(epochs):
            order = rng.permutation(n)
            for start in range(0, n, batch):
                rows = order[start : start + batch]
                x = Z[rows] * mask((len(rows), dim))
                a = x @ weights[0] + weights[1]
                gate = (a > 0) * mask(a.shape)
                h = a * gate
                log_p = _log_softmax32(h @ weights[2] + weights[3])
                seen[epoch, rows] = log_p
                delta = np.exp(log_p)
                delta[np.arange(len(rows)), y[rows]] -= 1
                delta /= len(rows)
                back = (delta @ weights[2].T) * gate
                gradients: list[Any] = [x.T @ back, back.sum(axis=0), h.T @ delta, delta.sum(axis=0)]
                rate = np.float32(learning_rate * (1 + np.cos(np.pi * step / steps)) / 2)
                for w, v, g in zip(weights, speed, gradients, strict=True):
                    v *= np.float32(momentum)
                    v += g
                    w -= rate * v
                step += 1
            for block in _blocks(n):
                a = Z[block] @ weights[0] + weights[1]
                after[epoch, block] = _log_softmax32(np.maximum(a, 0) @ weights[2] + weights[3])
            if progress:
                progress((epoch + 1) / epochs)
    return History(seen, after)


def _blocks(n: int) -> list[slice]:
    return [slice(start, start + 4096) for start in range(0, n, 4096)]


def _standardised(X: NDArray[np.floating]) -> NDArray[np.float32]:
    """Mean 0, variance 1 (0 if constant), cut at 3, and rows no longer than ``_LENGTH`` (root mean square)."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = X.mean(axis=0, dtype=np.float64)
        sd = np.sqrt(sum(np.square(X[block] - mean).sum(axis=0) for block in _blocks(len(X))) / len(X))
    if not np.isfinite(sd).all():
        bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
        raise InputError(
            f"features: row {bad[0]} holds NaN or infinity ({len(bad)} rows do)"
            if len(bad)
            else "the features are too large to square; scale them down"
        )
    inverse = np.divide(1, sd, out=np.zeros_like(sd), where=sd > 1e-6 * np.abs(mean))
    scale = min(1.0, _LENGTH / np.sqrt(X.shape[1]))
    Z = np.empty(X.shape, np.float32)
    for block in _blocks(len(X)):
        Z[block] = scale * np.clip((X[block] - mean) * inverse, -3, 3)
    return Z


def _log_softmax32(z: NDArray[np.float32]) -> NDArray[np.float32]:
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)), np.float32)

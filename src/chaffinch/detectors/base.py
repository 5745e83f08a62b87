"""The interface of every detector, in scikit-learn's manners, and the cut that turns scores into flags."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from ..base.errors import InputError
from ..card import MethodCard

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Detector(BaseEstimator):  # type: ignore[misc]
    """Base of all detectors: a transductive estimator that scores the very samples it is fitted on.

    ``__init__`` stores parameters only. ``fit(X, y, *, ...)`` names after the star the pieces of evidence it
    uses; `chaffinch.evidence.Evidence` provides exactly those.

    Attributes:
        scores_: (N,) float64, higher = more suspicious.
        flags_: (N,) bool, by the method's own rule.
        suggestions_: (N,) int64, the label it would give, where it has an opinion.
        info_: what a figure needs to explain the decision; may hold a ``note`` for the user.
    """

    card: ClassVar[MethodCard]
    uses_features: ClassVar[bool] = True

    scores_: Array
    flags_: Flags
    suggestions_: Labels
    info_: dict[str, Any]

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """The pieces of evidence that ``fit`` names."""
        parameters = inspect.signature(cls.fit).parameters.values()
        named = tuple(p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)
        return (("features",) if cls.uses_features else ()) + named

    def flag(self, *, budget: float | None = None, threshold: float | None = None) -> Flags:
        """Flags by the method's own rule, or by a cut of the user's.

        Args:
            budget: share of samples to flag, the most suspicious first.
            threshold: flag scores above this value.

        Raises:
            InputError: the cut would flag every sample, or the budget is out of range.
        """
        return cut(self.scores_, self.flags_, budget=budget, threshold=threshold)


def cut(scores: Array, own: Flags, *, budget: float | None = None, threshold: float | None = None) -> Flags:
    """Turn scores into flags: the method's own, the top share ``budget``, or all above ``threshold``.

    A budget flags exactly ``round(budget * N)`` samples; ties are broken by position.

    Raises:
        InputError: the cut would flag every sample, or the budget is out of range.
    """
    if budget is not None:
        if not 0 <= budget <= 1:
            raise InputError(f"budget must be a share between 0 and 1, got {budget}")
        flags = np.zeros(len(scores), bool)
        flags[np.argsort(-scores, kind="stable")[: round(budget * len(scores))]] = True
    elif threshold is not None:
        flags = scores > threshold
    else:
        flags = own
    if flags.all():
        remedy = "choose another cut, such as a budget" if flags is own else "lower the budget or raise the threshold"
        raise InputError(f"this cut flags all {len(flags)} samples, so nothing would be left; {remedy}")
    return flags


def own_label_loss(pred_probs: Array, y: Labels) -> Array:
    """Cross-entropy against the given label, -log p[y], shape (N,)."""
    return np.asarray(-np.log(np.clip(pred_probs[np.arange(len(y)), y], 1e-12, 1.0)))


def probabilities(X: Any, y: Labels, pred_probs: Array | None) -> Array:
    """The given out-of-sample probabilities, or those of a linear probe on X; (N, C) float64.

    Raises:
        InputError: the given ones do not fit the labels, or are not finite.
    """
    if pred_probs is not None:
        p = np.asarray(pred_probs, np.float64)
        if p.ndim != 2 or len(p) != len(y) or p.shape[1] <= y.max():
            raise InputError(f"pred_probs must be ({len(y)}, C) with C > {y.max()} as the labels need, got {p.shape}")
        bad = np.flatnonzero(~np.isfinite(p).all(axis=1))
        if len(bad):
            raise InputError(f"pred_probs: row {bad[0]} holds NaN or infinity ({len(bad)} rows do)")
        return p
    from ..base.linear import linear_probe

    return linear_probe(X, y, int(y.max()) + 1).pred_probs

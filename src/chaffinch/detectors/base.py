"""The interface of every detector, in scikit-learn's manners, and the cut that turns scores into flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d, validate_data

from ..base.errors import InputError
from ..base.neighbors import Neighbors
from ..base.runs import History
from ..card import MethodCard

Array = NDArray[np.float64]
Labels = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Trusted:
    """Samples whose labels are known to be right.

    Attributes:
        X: (M, D) features, from the same encoder.
        y: (M,) their labels.
        rows: (M,) their positions in the dataset, -1 for samples from outside it.
    """

    X: NDArray[np.floating]
    y: Labels
    rows: Labels

    def __len__(self) -> int:
        return len(self.y)


class Detector(BaseEstimator):  # type: ignore[misc]
    """Base of all detectors: a transductive estimator that scores the very samples it is fitted on.

    ``__init__`` stores parameters only. ``fit(X, y, *, ...)`` names after the star the pieces of evidence it
    uses; `chaffinch.evidence.Evidence` provides exactly those. What a subclass writes as ``fit`` gets checked input
    (`check_input`): X a finite (N, D) float array or None, y (N,) int64 codes of the classes, evidence of N rows.

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
    classes_: NDArray[Any]

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "fit" in vars(cls):
            setattr(cls, "fit", _checked(vars(cls)["fit"]))  # noqa: B010

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

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

    @property
    def label_quality_(self) -> Array:
        """(N,) cleanlab's direction: 1 = least suspicious, 0 = most (a rank; ties share one)."""
        return 1.0 - ranks(self.scores_)

    @property
    def decision_scores_(self) -> Array:
        """(N,) PyOD's name of ``scores_``: higher = more abnormal."""
        return self.scores_

    @property
    def labels_(self) -> Labels:
        """(N,) PyOD's name of ``flags_``: 1 = flagged, 0 = not."""
        return self.flags_.astype(np.int64)


CLASS_WISE = frozenset({"pred_probs", "logits", "head", "history", "trusted"})
"""Pieces of evidence whose columns are classes: with them, labels must be codes 0 to C-1."""


def _checked(fit: Callable[..., Any]) -> Callable[..., Any]:
    """A ``fit`` whose input is checked first, and whose suggestions are labels as they were given."""

    @wraps(fit)
    def checked(self: Detector, X: Any, y: Any = None, **evidence: Any) -> Detector:
        X, y, names = check_input(self, X, y, evidence)
        self.__dict__.pop("suggestions_", None)  # of an earlier fit
        fit(self, X, y, **evidence)
        self.classes_ = np.arange(int(y.max()) + 1) if names is None else names
        if names is not None and hasattr(self, "suggestions_"):
            self.suggestions_ = names[self.suggestions_]
        return self

    return checked


def check_input(
    detector: Detector, X: Any, y: Any, evidence: dict[str, Any]
) -> tuple[NDArray[np.floating] | None, Labels, NDArray[Any] | None]:
    """X as a finite float array (N, D) or None, y as codes (N,) int64, and what the codes stand for (or None).

    Raises:
        InputError: NaN or infinity (by row), lengths that do not fit, labels that are none.
    """
    slug = detector.card.slug
    if y is None:
        raise InputError(f"{slug}: requires y to be passed, the given labels (N,), but the target y is None")
    y = np.asarray(column_or_1d(y, warn=True))
    check_classification_targets(y)
    if X is not None:
        X = validate_data(
            detector, X, dtype=[np.float64, np.float32], ensure_all_finite=False, ensure_min_samples=2, estimator=slug
        )
        bad = np.flatnonzero(~np.isfinite(X).all(axis=1))
        if len(bad):
            raise InputError(f"{slug}: features: row {bad[0]} holds NaN or infinity ({len(bad)} rows do)")
    whole = y.dtype.kind in "iu"
    names = None
    if any(evidence.get(piece) is not None for piece in CLASS_WISE):
        if not whole or y.min(initial=0) < 0:
            raise InputError(f"{slug}: labels must be whole numbers 0 to C-1 where evidence is given, got {y.dtype}")
    elif not whole or y.min(initial=0) < 0 or y.max(initial=0) >= max(len(y), 2):
        names, y = np.unique(y, return_inverse=True)
    y = y.astype(np.int64)
    rows = {"labels": len(y)} | ({} if X is None else {"features": len(X)})
    for piece, value in evidence.items():
        if isinstance(value, np.ndarray):
            rows[piece] = len(value)
        elif isinstance(value, Neighbors):
            rows[piece] = len(value.indices)
        elif isinstance(value, History):
            rows[piece] = value.seen.shape[1]
    if len(set(rows.values())) > 1:
        raise InputError(f"{slug}: inconsistent numbers of rows: {', '.join(f'{k} {v}' for k, v in rows.items())}")
    return X, y, names


def ranks(scores: Array) -> Array:
    """(N,) share of samples with a lower score, 0 to 1, ties at their mean: the common scale of all detectors."""
    values, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    below = np.cumsum(counts) - counts
    return np.asarray((below + (counts - 1) / 2)[inverse] / max(1, len(scores) - 1))


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

"""The interface of every detector, in scikit-learn's manners, and the cut that turns scores into flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import issparse
from sklearn.base import BaseEstimator
from sklearn.utils.validation import column_or_1d, validate_data

from ..base.errors import InputError, MissingEvidence
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

    Raises:
        InputError: lengths that differ, labels or positions that are none, features that are not finite.
    """

    X: NDArray[np.floating]
    y: Labels
    rows: Labels

    def __post_init__(self) -> None:
        if self.X.ndim != 2 or not len(self.X) == len(self.y) == len(self.rows):
            raise InputError(
                f"trusted samples need features (M, D), labels (M,) and rows (M,), got {self.X.shape}, "
                f"{self.y.shape}, {self.rows.shape}"
            )
        if self.y.min(initial=0) < 0 or self.rows.min(initial=-1) < -1:
            raise InputError("labels of trusted samples are codes from 0, and their rows positions or -1")
        _check_finite(self.X, "trusted features")

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


CLASS_WISE = frozenset({"pred_probs", "logits", "head", "history", "joint", "trusted"})
"""Pieces of evidence whose columns are classes: with them, labels must be codes 0 to C-1."""

FROM_FEATURES = frozenset({"neighbors", "pred_probs", "logits", "head"})
"""Pieces of evidence that a detector computes from X where they are not given."""

LARGEST = 1e15
"""Largest feature: sums of squares of such still fit single precision."""


def _checked(fit: Callable[..., Any]) -> Callable[..., Any]:
    """A ``fit`` whose input and result are checked, and whose suggestions are labels as they were given."""

    @wraps(fit)
    def checked(self: Detector, X: Any, y: Any = None, **evidence: Any) -> Detector:
        X, y, names, evidence = check_input(self, X, y, evidence)
        for left in ("suggestions_", *(("n_features_in_", "feature_names_in_") if X is None else ())):
            self.__dict__.pop(left, None)  # by an earlier fit
        try:
            fit(self, X, y, **evidence)
        except InputError as error:
            if isinstance(error, MissingEvidence) or X is None or X.shape[1] > 1:
                raise
            raise InputError(f"{error} (n_features = 1: by cosine, samples differ in their sign only)") from error
        _check_result(self, len(y))
        self.classes_ = np.arange(int(y.max()) + 1) if names is None else names
        if names is not None and hasattr(self, "suggestions_"):
            self.suggestions_ = names[self.suggestions_]
        return self

    return checked


def check_input(
    detector: Detector, X: Any, y: Any, evidence: dict[str, Any]
) -> tuple[NDArray[np.floating] | None, Labels, NDArray[Any] | None, dict[str, Any]]:
    """Everything as a subclass's ``fit`` may rely on.

    Returns:
        X as a finite float array (N, D) or None; y as codes (N,) int64; what the codes stand for, or None where
        they stand for themselves; the evidence, its arrays finite and of the right size.

    Raises:
        InputError: NaN or infinity (by row), sizes that do not fit, labels that are none.
        MissingEvidence: there is no X, and evidence that would be computed from it is not there either.
    """
    slug = detector.card.slug
    y, names = _codes(slug, y, class_wise=any(evidence.get(piece) is not None for piece in CLASS_WISE))
    if len(y) < 2:
        raise InputError(f"{slug}: at least two samples are needed, got n_samples = {len(y)}")
    if X is not None:
        X = _features(detector, X)
    for piece in detector.needs() if X is None else ():
        if piece == "features" or (piece in FROM_FEATURES and evidence.get(piece) is None):
            raise MissingEvidence(slug, piece, "give features X (N, D)")
    evidence = {
        piece: _matrix(slug, piece, value) if piece in ("pred_probs", "logits") and value is not None else value
        for piece, value in evidence.items()
    }
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
    width = None if X is None else X.shape[1]
    for piece, value in evidence.items():
        if value is not None:
            _check_evidence(slug, piece, value, y, width)
    return X, y, names, evidence


def _codes(slug: str, y: Any, *, class_wise: bool) -> tuple[Labels, NDArray[Any] | None]:
    """Labels of any kind as codes (N,) int64, and what the codes stand for; None: for themselves."""
    if y is None:
        raise InputError(f"{slug} requires y to be passed, but the target y is None; give the labels (N,)")
    try:
        y = np.asarray(column_or_1d(y, warn=True))
    except ValueError as error:
        raise InputError(f"{slug}: labels: {error}") from error
    if y.dtype.kind in "fO":
        import pandas as pd

        missing = np.flatnonzero(pd.isna(y))
        if len(missing):
            raise InputError(f"{slug}: labels: row {missing[0]} has none ({len(missing)} rows have not)")
    if y.dtype.kind == "f":
        odd = np.flatnonzero(np.isinf(y) | (y != np.trunc(y)))
        if len(odd):
            raise InputError(f"{slug}: labels are classes, but row {odd[0]} holds {y[odd[0]]:g}")
        y = y.astype(np.int64) if class_wise else y
    whole = y.dtype.kind in "iu"
    if class_wise and (not whole or y.min(initial=0) < 0):
        raise InputError(f"{slug}: labels must be whole numbers 0 to C-1 where evidence is given, got {y.dtype}")
    if whole and y.min(initial=0) >= 0 and (class_wise or y.max(initial=0) < max(len(y), 2)):
        return y.astype(np.int64), None
    try:
        names, codes = np.unique(y, return_inverse=True)
    except TypeError as error:
        raise InputError(f"{slug}: labels must be all text, or all numbers: {error}") from error
    return codes.astype(np.int64), names


def _features(detector: Detector, X: Any) -> NDArray[np.floating]:
    slug = detector.card.slug
    if issparse(X):
        raise InputError(f"{slug}: features are sparse, but dense data is required; use .toarray()")
    try:
        X = validate_data(detector, X, dtype=[np.float64, np.float32], ensure_all_finite=False, estimator=slug)
    except ValueError as error:
        raise InputError(f"{slug}: features: {error}") from error
    _check_finite(X, f"{slug}: features", largest=LARGEST)
    return np.asarray(X)


def _matrix(slug: str, piece: str, value: Any) -> Array:
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{slug}: {piece} must be (N, C) numbers: {error}") from error


def _check_finite(value: NDArray[Any], name: str, *, largest: float = np.inf) -> None:
    """Raise unless all is finite and no larger than that; names the first bad row."""
    low, high = value.min(initial=0), value.max(initial=0)  # a mask would take a quarter of the features' memory
    if -largest <= low and high <= largest and np.isfinite([low, high]).all():
        return
    beyond = tuple(range(1, value.ndim))
    bad = np.flatnonzero(~np.isfinite(value).all(axis=beyond))
    if len(bad):
        raise InputError(f"{name}: row {bad[0]} holds NaN or infinity ({len(bad)} rows do)")
    row = int(np.argmax(np.abs(value).max(axis=beyond)))
    raise InputError(f"{name}: row {row} holds {np.abs(value[row]).max():.1e}, too large to square; scale them down")


def _check_evidence(slug: str, piece: str, value: Any, y: Labels, width: int | None) -> None:
    """Raise unless a piece of evidence that has as many rows as the labels fits them in every other way."""
    n, largest = len(y), int(y.max())
    if piece in ("pred_probs", "logits"):
        if value.ndim != 2 or value.shape[1] <= largest:
            raise InputError(
                f"{slug}: {piece} must be ({n}, C) with C > {largest} as the labels need, got {value.shape}"
            )
        _check_finite(value, f"{slug}: {piece}")
        if piece == "pred_probs":
            off = np.abs(value.sum(axis=1) - 1) > 1e-3
            if value.min() < 0 or off.any():
                row = int(np.argmax(off | (value < 0).any(axis=1)))
                raise InputError(f"{slug}: pred_probs: row {row} is no distribution (none negative, sum 1)")
    elif piece == "head":
        W, b = (np.asarray(part) for part in value)
        if W.ndim != 2 or len(W) <= largest or b.shape != (len(W),) or (width is not None and W.shape[1] != width):
            wanted = f"(C, {'D' if width is None else width}) and (C,) with C > {largest}"
            raise InputError(f"{slug}: head must be weights and biases {wanted}, got {W.shape} and {b.shape}")
        _check_finite(W, f"{slug}: head")
        _check_finite(b, f"{slug}: head")
    elif isinstance(value, Neighbors):
        near = value.indices
        if near.shape != value.similarity.shape or near.min(initial=0) < 0 or near.max(initial=0) >= n:
            raise InputError(f"{slug}: neighbors must be positions 0 to {n - 1}, each with a similarity")
        _check_finite(value.similarity, f"{slug}: neighbors")
    elif isinstance(value, History):
        if value.seen.shape[2] <= largest:
            raise InputError(f"{slug}: the history has {value.seen.shape[2]} classes, the labels need {largest + 1}")
    elif isinstance(value, Trusted):
        if width is not None and value.X.shape[1] != width:
            raise InputError(f"{slug}: trusted samples have {value.X.shape[1]} features, the others {width}")
        if value.rows.max(initial=-1) >= n:
            raise InputError(f"{slug}: trusted row {value.rows.max()} is none of the {n} samples")


def _check_result(detector: Detector, n: int) -> None:
    """Raise unless there is a finite score and a flag for every sample."""
    slug = detector.card.slug
    detector.scores_ = np.asarray(detector.scores_, np.float64)
    detector.flags_ = np.asarray(detector.flags_, bool)
    if detector.scores_.shape != (n,) or detector.flags_.shape != (n,):
        raise TypeError(
            f"{slug} must give ({n},) scores and flags, gave {detector.scores_.shape} and {detector.flags_.shape}"
        )
    bad = np.flatnonzero(~np.isfinite(detector.scores_))
    if len(bad):
        raise InputError(
            f"{slug} found no finite score for row {bad[0]} ({len(bad)} rows); these data are too uniform for it"
        )


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
    """The given out-of-sample probabilities, or those of a linear probe on X; (N, C) float64."""
    if pred_probs is not None:
        return pred_probs
    from ..base.linear import linear_probe

    return linear_probe(X, y, int(y.max()) + 1).pred_probs

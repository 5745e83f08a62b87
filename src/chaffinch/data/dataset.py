"""NoisyDataset = Observed (all that a method may see) + Truth (only noise models write it, only metrics read it)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.files import digest
from ..base.text import shown
from ..card import KINDS
from .pictures import Images, PictureFiles, key_of

CLEAN, MISLABELLED, OOD = 0, 1, 2
KIND_CODES = {name: code for code, name in enumerate(KINDS)}
"""Codes of the kinds, and the code of each name."""

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Observed:
    """What a detector, a loss or a trainer may see.

    Attributes:
        labels: (N,) int64, the given labels, positions in ``classes``.
        classes: names of the classes.
        ids: (N,) text, unique and stable.
        images: (N, H, W) or (N, H, W, 3) uint8, in memory or in files (`PictureFiles`), or None.
        features: (N, D) float32 that came with the data, or None.
        pred_probs: (N, C) class probabilities that came with the data, or None.
        xy: (N, 2) map coordinates that came with the data, or None.
        trusted: (N,) bool, rows whose label is known to be right, or None.

    Raises:
        InputError: the arrays do not fit each other; the message names the field and the first bad row.
    """

    labels: Labels
    classes: tuple[str, ...]
    ids: NDArray[np.str_]
    images: Images | None = None
    features: NDArray[np.float32] | None = None
    pred_probs: NDArray[np.float64] | None = None
    xy: NDArray[np.float32] | None = None
    trusted: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        n = len(self.labels)
        if n == 0:
            raise InputError("the dataset is empty: it has no labelled samples")
        if self.labels.ndim != 1 or self.labels.dtype.kind not in "iu":
            raise InputError(f"labels must be (N,) whole numbers, got {self.labels.shape} {self.labels.dtype}")
        if len(set(self.classes)) != len(self.classes):
            twice = next(name for name in self.classes if self.classes.count(name) > 1)
            raise InputError(f"class name {twice!r} occurs more than once; make class names unique")
        bad = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(bad):
            raise InputError(
                f"row {bad[0]}: label {self.labels[bad[0]]} is not one of the {len(self.classes)} classes "
                f"(0 to {len(self.classes) - 1}); {len(bad)} rows have that problem"
            )
        if len(self.ids) != n:
            raise InputError(f"ids must be ({n},) as labels are, got {self.ids.shape}")
        values, first, count = np.unique(self.ids, return_index=True, return_counts=True)
        if len(values) != n:
            raise InputError(
                f"id {str(values[count > 1][0])!r} occurs more than once (first in row {first[count > 1][0]}); "
                "make ids unique"
            )
        for name, dims in (("images", (3, 4)), ("features", (2,)), ("pred_probs", (2,)), ("xy", (2,))):
            value: Any = getattr(self, name)
            if value is None:
                continue
            if value.ndim not in dims or len(value) != n:
                raise InputError(f"{name} must have {n} rows and {dims[0]} dimensions, got shape {value.shape}")
            if name != "images":
                finite_rows(value, name)
        if self.xy is not None and self.xy.shape[1] != 2:
            raise InputError(f"xy must be ({n}, 2) coordinates of a map, got shape {self.xy.shape}")
        if self.trusted is not None and (self.trusted.shape != (n,) or self.trusted.dtype != bool):
            raise InputError(f"trusted must be ({n},) true or false, got {self.trusted.shape} {self.trusted.dtype}")
        if self.images is not None and self.images.ndim == 4 and self.images.shape[-1] != 3:
            raise InputError(f"images must be (N, H, W) or (N, H, W, 3), got shape {self.images.shape}")
        if self.images is not None and self.images.dtype != np.uint8:
            raise InputError(f"images must be uint8 (0 to 255), got {self.images.dtype}")
        if self.pred_probs is not None and self.pred_probs.shape[1] != len(self.classes):
            raise InputError(
                f"pred_probs has {self.pred_probs.shape[1]} columns but there are {len(self.classes)} classes"
            )
        if self.pred_probs is not None:
            off = no_distribution(self.pred_probs)
            if off.any():
                raise InputError(
                    f"pred_probs: row {np.flatnonzero(off)[0]} is not a probability distribution "
                    f"(no negatives, sum 1); {off.sum()} rows are not"
                )

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """A key that changes with any picture, feature, label, id or class name.

        Pictures in files count by name, size and time of change (`PictureFiles.digest`): none is read for it.
        """
        images = None if self.images is None else key_of(self.images)
        parts = [images, self.features, self.pred_probs, self.xy]
        marks = () if self.trusted is None else (self.trusted,)
        named = ("" if part is None else part for part in parts)
        return digest(self.labels, list(self.classes), self.ids, *named, *marks)


@dataclass(frozen=True)
class Truth:
    """What is known about a dataset whose noise was made or checked.

    Attributes:
        labels: (N,) int64, the true labels; -1 where the sample belongs to no class (OOD), or only its kind is known.
        kind: (N,) int8 of CLEAN, MISLABELLED, OOD.
    """

    labels: Labels
    kind: NDArray[np.int8]

    @classmethod
    def of(cls, given: Labels, true: Labels) -> Truth:
        """Truth from given and true labels; a true label of -1 means OOD."""
        kind = np.where(true < 0, OOD, np.where(given == true, CLEAN, MISLABELLED)).astype(np.int8)
        return cls(np.asarray(true, np.int64), kind)


@dataclass(frozen=True)
class Split:
    """A clean split: ``images`` (M, H, W[, 3]) uint8, in memory or in files, and ``labels`` (M,) int64."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def digest(self) -> str:
        """A key that changes with any picture or label (see `Observed.digest`)."""
        return digest(key_of(self.images), self.labels)


@dataclass(frozen=True)
class NoisyDataset:
    """One dataset: its name, what may be seen, and what is known besides.

    Attributes:
        name: the text that opens it again (``chaffinch.open_dataset(name)``).
        observed: all a method may see.
        truth: present where the noise is known.
        test: a clean test split, where there is one.
        trusted: positions in ``test`` that are set aside as trusted samples and left out of accuracy.
        note: one line on provenance, shown in the app.
        warnings: one line on each thing that was left out when it was opened, and why.
    """

    name: str
    observed: Observed
    truth: Truth | None = None
    test: Split | None = None
    trusted: Labels = field(default_factory=lambda: np.empty(0, np.int64))
    note: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.truth is not None and {len(self.truth.kind), len(self.truth.labels)} != {len(self.observed)}:
            raise InputError(f"the truth has {len(self.truth.kind)} rows, the data {len(self.observed)}")

    def __len__(self) -> int:
        return len(self.observed)

    @property
    def digest(self) -> str:
        """The key of what may be seen; the truth is not part of it, since no result may depend on it."""
        return self.observed.digest

    @property
    def undecoded(self) -> tuple[str, ...]:
        """One line on each picture that could not be decoded so far; a grey one stands in its place."""
        stores = [self.observed.images, self.test.images if self.test else None]
        return tuple(
            f"{shown(store.names[store.rows[place]])} {why}; a grey picture stands in its place"
            for store in stores
            if isinstance(store, PictureFiles)
            for place, why in store.undecoded.items()
        )


def not_finite(value: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) which rows hold NaN or infinity."""
    bad: NDArray[np.bool_] = ~np.isfinite(value).all(axis=tuple(range(1, value.ndim)))
    return bad


def no_distribution(pred_probs: NDArray[Any]) -> NDArray[np.bool_]:
    """(N,) which rows of (N, C) are no probability distribution."""
    with np.errstate(invalid="ignore"):  # of infinities
        bad: NDArray[np.bool_] = (pred_probs < 0).any(axis=1) | ~(np.abs(pred_probs.sum(axis=1) - 1) <= 1e-3)
    return bad


def finite_rows(value: NDArray[Any], name: str) -> None:
    """Check that an array holds no NaN and no infinity.

    Raises:
        InputError: names the array and the first bad row.
    """
    bad = not_finite(value)
    if bad.any():
        raise InputError(
            f"{name}: row {np.flatnonzero(bad)[0]} holds NaN or infinity ({bad.sum()} rows do); "
            "remove or repair those rows"
        )

"""Columns of any source as a `NoisyDataset`: labels as codes, the truth, and the checks that all sources share."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from .dataset import KIND_CODES, NoisyDataset, Observed, Split, Truth
from .pictures import Images


def assemble(
    name: str,
    data: dict[str, NDArray[Any]],
    images: Images | None = None,
    test: Split | None = None,
    *,
    warnings: tuple[str, ...] = (),
    note: str = "",
) -> NoisyDataset:
    """Make a dataset of columns.

    Args:
        name: the text that opens it.
        data: ``labels`` and what else there is, as in an ``arrays:`` file (see `arrays.ARRAY_KEYS`), without images.
        images: its pictures.
        test: its test split.
        warnings: what was left out, and why.
        note: one line on where it comes from.

    Raises:
        InputError: the columns do not fit each other; the message names the column and the first bad row.
    """
    data = {key: _text(value, key) for key, value in data.items()}
    labels, classes = codes(data["labels"], data.get("classes"))
    ids = data.get("ids", np.arange(len(labels))).astype(str)
    observed = Observed(
        labels=labels,
        classes=classes,
        ids=ids,
        images=images,
        features=_floats(data, "features", np.float32),
        pred_probs=_floats(data, "pred_probs", np.float64),
        xy=_floats(data, "xy", np.float32),
        trusted=data.get("trusted"),
    )
    truth = None
    if "true_labels" in data:
        true = data["true_labels"]
        if true.shape != labels.shape:
            raise InputError(f"true_labels must be {labels.shape} as labels are, got {true.shape}")
        if true.dtype.kind == "U":
            position = {name: i for i, name in enumerate(classes)}
            true = np.array([position.get(str(value), -1) for value in true])
        if true.dtype.kind not in "iu":
            raise InputError(f"true_labels must be whole numbers or text, got {true.dtype}")
        true = true.astype(np.int64)
        bad = np.flatnonzero((true < -1) | (true >= len(classes)))
        if len(bad):
            raise InputError(
                f"true_labels: row {bad[0]}: {true[bad[0]]} is neither a class (0 to {len(classes) - 1}) "
                "nor -1 (out-of-distribution)"
            )
        truth = Truth.of(labels, true)
    if "kind" in data:
        kind = data["kind"]
        if kind.dtype.kind == "U":
            unknown = sorted(set(kind.ravel().tolist()) - set(KIND_CODES))
            if unknown:
                raise InputError(f"kind must be clean, mislabelled or ood, got {unknown[0]!r}")
            kind = np.array([KIND_CODES[value] for value in kind.ravel().tolist()]).reshape(kind.shape)
        if kind.shape != labels.shape or not np.isin(kind, (0, 1, 2)).all():
            raise InputError("kind must be one code per row: 0 clean, 1 mislabelled, 2 ood")
        if truth is not None and (kind != truth.kind).any():
            row = int(np.flatnonzero(kind != truth.kind)[0])
            raise InputError(f"row {row}: kind does not fit labels and true_labels; leave one of the two out")
        true_labels = truth.labels if truth else np.where(kind == 0, labels, -1)
        truth = Truth(true_labels, kind.astype(np.int8))
    return NoisyDataset(name=name, observed=observed, truth=truth, test=test, warnings=warnings, note=note)


def _text(value: NDArray[Any], key: str) -> NDArray[Any]:
    """Bytes as text; everything else as it is."""
    if value.dtype.kind != "S":
        return value
    try:
        return np.char.decode(value, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{key} is not UTF-8 text: {error}") from error


def _floats(data: dict[str, NDArray[Any]], key: str, dtype: type) -> NDArray[Any] | None:
    if key not in data:
        return None
    if data[key].dtype.kind not in "fiu":
        raise InputError(f"{key} must be numbers, got {data[key].dtype}")
    return np.ascontiguousarray(data[key], dtype)


def codes(labels: NDArray[Any], names: NDArray[Any] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels (N,) as positions, with the names of the classes.

    Raises:
        InputError: a label is neither a whole number nor a name among ``names``.
    """
    if labels.ndim != 1:
        raise InputError(f"labels must be one-dimensional, got shape {labels.shape}")
    if labels.dtype.kind == "U":
        texts = labels.tolist()
        found = sorted(set(texts)) if names is None else [str(v) for v in names]
        position = {name: i for i, name in enumerate(found)}
        strange = [row for row, value in enumerate(texts) if value not in position]
        if strange:
            raise InputError(f"row {strange[0]}: label {texts[strange[0]]!r} is not in classes")
        return np.array([position[value] for value in texts], np.int64), tuple(found)
    if labels.dtype.kind not in "iu":
        raise InputError(f"labels must be whole numbers or text, got {labels.dtype}")
    count = int(labels.max(initial=-1)) + 1
    classes = tuple(str(v) for v in names) if names is not None else tuple(f"class {i}" for i in range(count))
    return labels.astype(np.int64), classes

"""Columns of any source as a `NoisyDataset`: labels as codes, the truth, and the checks that all sources share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.text import listed
from .dataset import KIND_CODES, NoisyDataset, Observed, Split, Truth, no_distribution, not_finite
from .pictures import Images, PictureFiles


def assemble(
    name: str,
    data: dict[str, NDArray[Any]],
    images: Images | None = None,
    test: Split | None = None,
    *,
    rows: NDArray[np.int64] | None = None,
    faults: Mapping[str, NDArray[np.bool_]] | None = None,
    warnings: tuple[str, ...] = (),
    note: str = "",
) -> NoisyDataset:
    """Make a dataset of columns, without the rows that cannot be used: each is named in a warning.

    A row cannot be used that has a fault, numbers that are not finite, class probabilities that are none, an empty id
    or that of an earlier row.

    Args:
        name: the text that opens it.
        data: ``labels`` and what else there is, as in an ``arrays:`` file (see `arrays.ARRAY_KEYS`), without images.
        images: its pictures.
        test: its test split.
        rows: (N,) numbers of the rows in the source; default: from 0 on.
        faults: what the source itself has found, to stand behind "rows" -> (N,) which have it.
        warnings: what was left out, and why.
        note: one line on where it comes from.

    Raises:
        InputError: the columns do not fit each other (the message names the column and the first bad row), or no row
            can be used.
    """
    data = {key: _text(value, key) for key, value in data.items()}
    labels, classes = codes(data["labels"], data.get("classes"))
    columns: dict[str, Any] = {
        "labels": labels,
        "ids": data.get("ids", np.arange(len(labels))).astype(str),
        "images": images,
        "features": _floats(data, "features", np.float32),
        "pred_probs": _floats(data, "pred_probs", np.float64),
        "xy": _floats(data, "xy", np.float32),
        "trusted": data.get("trusted"),
    }
    columns = {key: value for key, value in columns.items() if value is not None}
    sound, lost = np.ones(len(labels), bool), list[str]()
    fitting = columns["ids"].ndim == 1 and all(value.shape[:1] == labels.shape for value in columns.values())
    if fitting and ((labels >= 0) & (labels < len(classes))).all():  # else what does not fit is refused below
        sound, lost = _sound(columns, faults or {}, np.arange(len(labels)) if rows is None else rows)
    if not sound.all():
        columns = {k: v.only(sound) if isinstance(v, PictureFiles) else v[sound] for k, v in columns.items()}
    observed = Observed(classes=classes, **columns)
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
    if truth is not None:
        truth = Truth(truth.labels[sound], truth.kind[sound])
    return NoisyDataset(name=name, observed=observed, truth=truth, test=test, warnings=(*warnings, *lost), note=note)


def left_out(names: Sequence[str], total: int, fault: str) -> list[str]:
    """No line, or one that names the rows with the same fault, of so many."""
    return [f"{len(names):,} of {total:,} rows {fault} ({listed(names)}); they are left out"] if names else []


def _sound(
    columns: dict[str, Any], faults: Mapping[str, NDArray[np.bool_]], rows: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], list[str]]:
    """(N,) which rows can be used, and one line on each reason why others cannot."""
    ids, faults = columns["ids"], dict(faults)
    matrices = {k: v for k, v in columns.items() if k in ("features", "pred_probs", "xy") and v.ndim == 2}
    faults |= {f"hold NaN or infinity in {key}": not_finite(matrix) for key, matrix in matrices.items()}
    if "pred_probs" in matrices:
        faults["have pred_probs that are no distribution (no negatives, sum 1)"] = no_distribution(
            matrices["pred_probs"]
        )
    faults["have no id"] = ids == ""
    sound, lost = np.ones(len(ids), bool), list[str]()
    for fault, bad in faults.items():
        lost += left_out(_named(rows, ids, bad & sound), len(ids), fault)
        sound &= ~bad
    first = np.flatnonzero(sound)[np.unique(ids[sound], return_index=True)[1]]
    again = sound & ~np.isin(np.arange(len(ids)), first)
    lost += left_out(_named(rows, ids, again), len(ids), "have the id of an earlier row")
    if lost and not len(first):
        raise InputError(f"no row can be used ({'; '.join(lost)})")
    return sound & ~again, lost


def _named(rows: NDArray[np.int64], ids: NDArray[np.str_], which: NDArray[np.bool_]) -> list[str]:
    """Rows by number and, where they have another, id."""
    pairs = zip(rows[which].tolist(), ids[which].tolist(), strict=True)
    return [f"row {row}" if name in ("", str(row)) else f"row {row}: {name}" for row, name in pairs]


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
    with np.errstate(over="ignore"):  # infinities are named later, with their row
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

"""`open_dataset`: one text, such as ``fashion-web:noise=0.6`` or ``arrays:features.npz``, opens one dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from . import fashion_web
from .dataset import KIND_CODES, NoisyDataset, Observed, Truth

ARRAY_KEYS = ("images", "features", "pred_probs", "labels", "classes", "ids", "true_labels", "kind", "xy", "trusted")


def open_dataset(name: str) -> NoisyDataset:
    """Open a dataset.

    Args:
        name: ``fashion-web`` or ``fashion-web:noise=0.6,ood=0.5,flips=asymmetric,seed=3``; or
            ``arrays:PATH.npz`` with the keys of `ARRAY_KEYS` (labels and at least one of images, features,
            pred_probs).

    Raises:
        InputError: the name is unknown, or what it names cannot be used.
    """
    source, _, rest = name.partition(":")
    if source == "fashion-web":
        return fashion_web.load(rest)
    if source == "arrays":
        return _arrays(name, Path(rest).expanduser())
    raise _unknown(name)


def _unknown(name: str) -> InputError:
    return InputError(f"unknown dataset {name!r}; use fashion-web[:OPTIONS] or arrays:PATH.npz")


def fingerprint(name: str) -> str:
    """A cheap text that changes whenever ``open_dataset(name)`` would give something else.

    Caches use it as their key: for a file, its path, size and time of change; for the bundled data, the draw.

    Raises:
        InputError: the name is unknown, its options are bad, or its file is not there.
    """
    source, _, rest = name.partition(":")
    if source == "fashion-web":
        fashion_web.Draw.parse(rest)
    elif source == "arrays":
        path = Path(rest).expanduser()
        try:
            state = path.stat()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        return f"{name}@{state.st_size}-{state.st_mtime_ns}"
    else:
        raise _unknown(name)
    return name


def _arrays(name: str, path: Path) -> NoisyDataset:
    try:
        with path.open("rb") as stream:  # ours, so that a damaged archive leaves no open file behind
            archive = np.load(stream, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise InputError(f"{path} is a single array; save named arrays with numpy.savez")
            data: dict[str, NDArray[Any]] = {key: archive[key] for key in archive.files}
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist") from error
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise InputError(f"{path} cannot be read as an .npz archive of plain arrays: {error}") from error
        raise InputError(
            f"{path} cannot be read as an .npz archive of plain arrays; if it holds text as pandas keeps it (Python "
            "objects), save that with .astype(str)"
        ) from error
    except Exception as error:  # zip, header, pickle and read errors all mean: this file is no use
        raise InputError(f"{path} cannot be read as an .npz archive of plain arrays: {error}") from error
    if unknown := sorted(set(data) - set(ARRAY_KEYS)):
        raise InputError(f"{path}: unknown key {unknown[0]!r}; it may hold {', '.join(ARRAY_KEYS)}")
    if "labels" not in data:
        raise InputError(f"{path}: key 'labels' is missing")
    if not {"images", "features", "pred_probs"} & set(data):
        raise InputError(f"{path}: one of images, features, pred_probs must be there")
    try:
        return _from_arrays(name, {key: _text(value, key) for key, value in data.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _from_arrays(name: str, data: dict[str, NDArray[Any]]) -> NoisyDataset:
    labels, classes = _codes(data["labels"], data.get("classes"))
    ids = data.get("ids", np.arange(len(labels))).astype(str)
    observed = Observed(
        labels=labels,
        classes=classes,
        ids=ids,
        images=data.get("images"),
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
    return NoisyDataset(name=name, observed=observed, truth=truth)


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


def _codes(labels: NDArray[Any], names: NDArray[Any] | None) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels as positions, with the names of the classes."""
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

"""`arrays:` an archive of NumPy arrays, read without running anything in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from .assemble import assemble
from .dataset import NoisyDataset

ARRAY_KEYS = ("images", "features", "pred_probs", "labels", "classes", "ids", "true_labels", "kind", "xy", "trusted")


def load(name: str, path: Path) -> NoisyDataset:
    """Open an archive with the keys of `ARRAY_KEYS`: labels and at least one of images, features, pred_probs.

    Rows that cannot be used (see `assemble`) are left out with a warning.

    Raises:
        InputError: the file cannot be read, its arrays do not fit each other (the message names key and row), or no
            row can be used.
    """
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
        images = data.pop("images", None)
        return assemble(name, data, images)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error

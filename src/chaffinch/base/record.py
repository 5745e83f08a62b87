"""What the training of an encoder leaves behind: how each sample's loss went, how hard and whereto it pulled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import InputError
from .files import replacing

_STEPS = 127
"""Steps of a cosine on disk, from 0 to 1."""


@dataclass(frozen=True)
class Record:
    """How a training treated the samples.

    Attributes:
        rows: (W,) positions in the dataset of the samples followed.
        epochs: (R,) epochs at whose end this was noted, from 1.
        losses: (R, W) loss of each sample, NaN where the epoch left it out.
        pulls: (R, W) how hard each sample pulls: the length of the gradient of the batch's summed loss with respect to
            its features, times the length of the features, so that it is a change of loss per relative change of the
            features (the weight of arXiv 2510.14824, for any loss).
        towards: (R, W, C) cosine between the direction in which the loss moves the features of a sample and the
            direction to the mean features of each given class; empty with more than `TOWARDS` classes.
    """

    rows: NDArray[np.int64]
    epochs: NDArray[np.int64]
    losses: NDArray[np.float16]
    pulls: NDArray[np.float16]
    towards: NDArray[np.float16]

    @property
    def last_pulls(self) -> NDArray[np.float64]:
        """(W,) how hard each sample pulled when that was last noted; NaN where it never was."""
        pulls = self.pulls.astype(np.float64)
        at = len(pulls) - 1 - (~np.isnan(pulls[::-1])).argmax(axis=0)
        return np.asarray(pulls[at, np.arange(pulls.shape[1])])

    def save(self, path: Path) -> None:
        """Write it as a safetensors file, whole or not at all; cosines to the nearest of 255 steps.

        Raises:
            OSError: it cannot be written, such as on a full disk.
        """
        steps = np.rint(np.nan_to_num(self.towards.astype(np.float32)).clip(-1, 1) * _STEPS).astype(np.int8)
        arrays = {name: np.ascontiguousarray(value) for name, value in {**vars(self), "towards": steps}.items()}
        with replacing(path) as temporary:
            try:
                save_file(arrays, temporary)
            except SafetensorError as error:
                raise OSError(f"{path} cannot be written: {error}") from error


def load_record(path: Path) -> Record:
    """Read what `Record.save` wrote.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "np") as archive:
            found = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        found["towards"] = (found["towards"] / np.float32(_STEPS)).astype(np.float16)
        record = Record(**found)
    except (OSError, SafetensorError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is not a readable training record: {error}") from error
    kept = record.losses.shape
    fits = record.rows.shape + record.epochs.shape == kept[::-1] and kept == record.pulls.shape
    fits = fits and record.towards.ndim == 3 and kept == record.towards.shape[:2]
    whole = record.rows.dtype.kind == record.epochs.dtype.kind == "i" and record.rows.min(initial=0) >= 0
    if not (fits and whole and record.losses.dtype == record.pulls.dtype == "f2"):
        raise InputError(f"{path} is not a readable training record: its arrays do not fit each other")
    return record

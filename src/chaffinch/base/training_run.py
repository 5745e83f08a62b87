"""What the training of a robust classifier leaves behind: a folder with one file an epoch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from .errors import InputError
from .files import read_json, replacing, write_json
from .runs import History
from .shapes import misfit

Array = NDArray[np.float32]


@dataclass(frozen=True)
class EpochRecord:
    """One epoch of a training.

    Attributes:
        epoch: from 0.
        loss: mean over the steps.
        accuracy: on the test samples after this epoch, 0 to 1; None where there are none.
        seconds: spent in this epoch.
        parts: named scalars of the loss, means over the steps.
        detector: which detector made ``flags``; empty if none did.
        note: what the trainer has to say, such as that its detector flagged everything.
        log_probs: (N, C) logarithms of the probabilities of every sample after this epoch, plain view.
        seen: (N, C) the same when the sample was trained on, augmented; as ``log_probs`` where it was left out.
        flags: (N,) bool, the samples flagged after this epoch: in force in the next.
        scores: (N,) suspicion behind the flags, higher = more suspicious.
        weights: (N,) how far the new label of each sample is trusted in the next epoch, 0 to 1.
        pseudo_losses: (N,) loss against the guessed label.
        targets: (N, C) labels guessed for the samples.
        at_start: (N,) bool, in the record of the first epoch, the samples flagged already before it; None if none were.
    """

    epoch: int
    loss: float
    accuracy: float | None
    seconds: float
    log_probs: NDArray[np.float16]
    seen: NDArray[np.float16]
    flags: NDArray[np.bool_]
    parts: dict[str, float] = field(default_factory=dict)
    detector: str = ""
    note: str = ""
    scores: Array | None = None
    weights: Array | None = None
    pseudo_losses: Array | None = None
    targets: NDArray[np.float16] | None = None
    at_start: NDArray[np.bool_] | None = None

    def losses(self, y: NDArray[np.int64]) -> Array:
        """(N,) cross-entropy against the given labels after this epoch."""
        return -self.log_probs[np.arange(len(y)), y].astype(np.float32)


class _About(TypedDict):
    trainer: str
    dataset: str
    dataset_digest: str
    epochs: int
    n: int


class _Plain(TypedDict):
    epoch: int
    loss: float
    accuracy: float | None
    seconds: float
    parts: dict[str, float]
    detector: str
    note: str


class _Description(TypedDict):
    """``run.json``; what else it says of the training is for people."""

    about: _About
    epochs: list[_Plain]


_PLAIN = tuple(_Plain.__annotations__)


class TrainingRun:
    """A training on disk: ``run.json`` and ``epoch-0000.safetensors``, ``epoch-0001.safetensors``, ...

    Args:
        folder: of the run.

    Raises:
        InputError: there is no run, or its description is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        found = read_json(folder / "run.json")
        if wrong := misfit(found, _Description):
            raise InputError(f"{folder / 'run.json'} does not describe a training run; train again ({wrong})")
        self.about: dict[str, Any] = found["about"]
        self.epochs: list[dict[str, Any]] = found["epochs"]

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.folder.name

    @property
    def done(self) -> bool:
        """Has it come to its end?"""
        return len(self.epochs) == int(self.about["epochs"])

    def check(self, digest: str, what: str) -> None:
        """Make sure that this is a run on a certain dataset.

        Args:
            digest: of the dataset.
            what: its name, for the message.

        Raises:
            InputError: it is not, or not one epoch is done.
        """
        if self.about["dataset_digest"] != digest:
            raise InputError(
                f"run {self.name} was trained on {self.about['dataset']}, which is another dataset than {what}; "
                f"train one with 'chaffinch train {what} --trainer {self.about['trainer']}'"
            )
        if not self.epochs:
            raise InputError(f"run {self.name} has no whole epoch yet; wait for one, or train again")

    def epoch(self, epoch: int) -> EpochRecord:
        """One epoch, from 0; negative counts from the end.

        Raises:
            InputError: its file is missing or damaged.
            IndexError: there are fewer epochs.
        """
        plain = self.epochs[epoch]
        path = _file(self.folder, int(plain["epoch"]))
        try:
            with safe_open(path, "np") as archive:
                record = EpochRecord(**plain, **{name: archive.get_tensor(name) for name in archive.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not a readable record of an epoch: {error}") from error
        if wrong := _misshapen(record, int(self.about["n"])):
            raise InputError(f"{path} is not a readable record of an epoch: {wrong}")
        return record

    def in_force(self, epoch: int) -> tuple[NDArray[np.bool_], str]:
        """(N,) flags in force during an epoch, and the detector that made them: the epoch before it did.

        Args:
            epoch: from 0 to the number of epochs done, which is the next one; negative counts from the end.
        """
        if epoch < 0:
            epoch = range(len(self.epochs))[epoch]
        if epoch == 0:
            first = self.epoch(0)
            if first.at_start is not None:
                return first.at_start, first.detector
            return np.zeros(len(first.flags), bool), ""
        before = self.epoch(epoch - 1)
        return before.flags, before.detector

    @cached_property
    def force(self) -> tuple[NDArray[np.bool_], tuple[str, ...]]:
        """(E, N) flags in force in each epoch, and E names of the detectors that made them; "" where there are none."""
        flags, turns = zip(*(self.in_force(e) for e in range(len(self.epochs))), strict=True)
        return np.stack(flags), turns

    @cached_property
    def trust(self) -> Array | None:
        """(E, N) trust in new labels after each epoch, NaN where the trainer had none; None if it never had any."""
        found = [self.epoch(e).weights for e in range(len(self.epochs))]
        if all(weights is None for weights in found):
            return None
        n = int(self.about["n"])
        return np.stack([np.full(n, np.nan, np.float32) if weights is None else weights for weights in found])

    @cached_property
    def history(self) -> History:
        """What the classifier said about every sample, epoch by epoch: evidence for detectors."""
        records = [self.epoch(e) for e in range(len(self.epochs))]
        return History(np.stack([r.seen for r in records]), np.stack([r.log_probs for r in records]))


def _misshapen(record: EpochRecord, n: int) -> str:
    """The first array of a record that is not as a training of n samples leaves it; empty if there is none."""
    for f in fields(record):
        value = getattr(record, f.name)
        if f.name in _PLAIN or value is None:
            continue
        kind = "b" if f.name in ("flags", "at_start") else "f"
        shape = (n, *record.log_probs.shape[-1:]) if f.name in ("log_probs", "seen", "targets") else (n,)
        if value.dtype.kind != kind or value.shape != shape:
            return f"{f.name} is {value.dtype} of shape {value.shape}"
    return ""


def begin(folder: Path, about: dict[str, Any], epochs: list[dict[str, Any]]) -> None:
    """Describe a run: what it is, and the epochs that are done."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "run.json", {"about": about, "epochs": epochs})


def plain(record: EpochRecord) -> dict[str, Any]:
    """The part of a record that goes into ``run.json``."""
    return {name: getattr(record, name) for name in _PLAIN}


def write_epoch(folder: Path, record: EpochRecord) -> None:
    """Write the arrays of an epoch, whole or not at all.

    Raises:
        OSError: they cannot be written, such as on a full disk.
    """
    arrays = {f.name: getattr(record, f.name) for f in fields(record) if f.name not in _PLAIN}
    path = _file(folder, record.epoch)
    with replacing(path) as temporary:
        try:
            save_file({k: np.ascontiguousarray(v) for k, v in arrays.items() if v is not None}, temporary)
        except SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error


def _file(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}.safetensors"

"""How hard each sample pulls in training, and whereto: what a loss does to wrong labels, from the training record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .base.record import Record
from .card import KINDS
from .data import CLEAN, MISLABELLED, OOD, NoisyDataset
from .study import Study

Array = NDArray[np.float64]

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
ALIKE, SLANT = 1.1, 0.05
"""Medians of pulls within this factor, and of cosines within this distance, are called alike."""


@dataclass(frozen=True)
class Pulls:
    """What a training record says of the kinds of sample.

    Attributes:
        epochs: (R,) the epochs that were kept, from 1.
        known: are the kinds the true ones? Otherwise they are the verdict's.
        counts: kind -> how many samples were followed; kinds that do not occur are missing.
        spread: kind -> (R, 5) quantiles `SHARES` of how hard its samples pull.
        losses: kind -> (R,) mean loss of its samples.
        given: (R, 3) quartiles over the mislabelled samples of the cosine between where the loss moves a sample and
            the way to the class it is filed under; None if that was not kept, or nobody is mislabelled.
        other: likewise, the way to its true class, or to the one the verdict gives it.
    """

    epochs: NDArray[np.int64]
    known: bool
    counts: dict[str, int]
    spread: dict[str, Array]
    losses: dict[str, Array]
    given: Array | None
    other: Array | None

    def ratio(self, kind: str) -> float | None:
        """How many times as hard as a clean sample one of this kind pulls at the end (medians); None if unknown."""
        if kind not in self.spread or "clean" not in self.spread:
            return None
        one, clean = (float(self.spread[name][-1, 2]) for name in (kind, "clean"))
        return one / clean if clean > 0 else float("inf") if one > 0 else None


def read(record: Record, labels: NDArray[np.int64], kind: NDArray[Any], own: NDArray[np.int64], known: bool) -> Pulls:
    """What a record says of the kinds of sample.

    Args:
        record: of the training.
        labels: (N,) the given labels.
        kind: (N,) codes of `chaffinch.card.KINDS`.
        own: (N,) the classes that samples truly or probably belong to; -1 where that is not known.
        known: are these the truth?

    Raises:
        InputError: the record is of another dataset.
    """
    rows = record.rows
    if rows.max(initial=-1) >= len(labels):
        raise InputError(
            f"the training record follows sample {rows.max()}, and there are only {len(labels)}; train again"
        )
    labels, kind, own = labels[rows], kind[rows], own[rows]
    pulls = record.pulls.astype(np.float64)  # NaN where an epoch left a sample out
    counts = {name: int((kind == code).sum()) for code, name in enumerate(KINDS)}
    spread = {name: _quantiles(pulls[:, kind == code], SHARES) for code, name in enumerate(KINDS) if counts[name]}
    losses = {name: _means(record.losses[:, kind == code]) for code, name in enumerate(KINDS) if counts[name]}
    wrong = np.flatnonzero((kind == MISLABELLED) & (own >= 0) & (own != labels))
    given = other = None
    if record.towards.shape[2] and len(wrong):
        cosines = record.towards[:, wrong].astype(np.float64)
        cosines[np.isnan(pulls[:, wrong])] = np.nan
        at = np.arange(len(wrong))
        given, other = (_quantiles(cosines[:, at, to[wrong]], (0.25, 0.5, 0.75)) for to in (labels, own))
    return Pulls(record.epochs, known, {k: v for k, v in counts.items() if v}, spread, losses, given, other)


def _means(values: NDArray[np.float16]) -> Array:
    """Means (R,) of each row, NaN left out; NaN where a row has nothing else."""
    there = ~np.isnan(values)
    total = np.where(there, values, 0).sum(axis=1, dtype=np.float64)
    return np.asarray(np.divide(total, there.sum(axis=1), out=np.full(len(values), np.nan), where=there.any(axis=1)))


def _quantiles(values: Array, shares: tuple[float, ...]) -> Array:
    """Quantiles (R, Q) of each row, NaN left out; NaN where a row has nothing else."""
    out = np.full((len(values), len(shares)), np.nan)
    for at, row in enumerate(values):
        if not np.isnan(row).all():
            out[at] = np.nanquantile(row, shares)
    return out


def of(study: Study, trained_on: NoisyDataset | None) -> Pulls | str:
    """What the training of a study's encoder says of the kinds of sample, or why nothing can be said.

    Args:
        study: of the encoder.
        trained_on: the dataset that the encoder was trained on, if it can be opened.

    Raises:
        InputError: the record is damaged, or there is no such encoder.
    """
    record = study.record()
    if record is None:
        return "Its training left no record; one that is trained now will."
    if trained_on is None:
        return f"It was trained on {study.card()['dataset']}, which cannot be opened here: its noise is not known."
    labels, truth = trained_on.observed.labels, trained_on.truth
    if truth is not None:
        return read(record, labels, truth.kind, truth.labels, True)
    if trained_on.digest != study.dataset.digest or not study.knows_verdict():
        return "Which pictures were noisy when it was trained is not known, and there is no verdict on them."
    verdict = study.verdict()
    return read(record, labels, verdict.kinds, verdict.labels, False)


def span(pulls: Iterable[Pulls], room: float = 0.05) -> tuple[float, float]:
    """Ends of an axis on which all cosines of several records fit, so that their figures can be compared."""
    every = [part.ravel() for p in pulls for part in (p.given, p.other) if part is not None]
    values = np.concatenate([*every, [0.0]])
    return float(np.nanmin(values)) - room, float(np.nanmax(values)) + room


def told(pulls: Mapping[str, Pulls]) -> list[str]:
    """One sentence an encoder: how hard noisy samples pull compared with clean ones, and whereto wrong labels go.

    Args:
        pulls: name -> what its record says.
    """
    return [f"{name}: {_harder(p)}{_whereto(p)}." for name, p in pulls.items()]


def _harder(p: Pulls) -> str:
    parts = []
    for code, words in ((MISLABELLED, "a wrongly labelled picture"), (OOD, "a foreign one")):
        ratio = p.ratio(KINDS[code])
        if ratio is None:
            continue
        if ratio == float("inf"):
            how = "pulls where clean ones do not pull any more"
        elif 1 / ALIKE < ratio < ALIKE:
            how = f"pulls as hard as a clean one ({ratio:.2f} times)"
        else:
            how = f"pulls {ratio:.2f} times as hard as a clean one"
        parts.append(f"{words if p.known else words + ' (by the verdict)'} {how}")
    when = f"after epoch {p.epochs[-1]} "
    return when + ("; ".join(parts) if parts else f"there are no noisy and {KINDS[CLEAN]} pictures to compare")


def _whereto(p: Pulls) -> str:
    if p.given is None or p.other is None:
        return ""
    given, other = float(p.given[-1, 1]), float(p.other[-1, 1])
    true = "true" if p.known else "probable"
    numbers = f"(median cosine {given:+.2f} towards the label, {other:+.2f} towards the {true} class)"
    if abs(given - other) < SLANT:
        return f"; wrongly labelled ones are moved neither to their label nor to their {true} class {numbers}"
    end = "their wrong label" if given > other else f"their {true} class"
    return f"; wrongly labelled ones are moved more towards {end} {numbers}"

"""What people look for besides wrong labels and foreign pictures: copies, leaks, and pictures that look odd.

==============  ======================================================================================================
``duplicates``  another picture (almost) like it is among the training samples
``leaks``       ... or among the test samples, which makes a test flatter
``blank``       one tone all over
``dark``        hardly a pixel is light, though in the others some are
``bright``      hardly a pixel is dark, though in the others some are
``flat``        far less contrast than in the others
``blurred``     far more blurred than the others
``odd-size``    far larger or smaller than the others
``odd-shape``   far longer, or far squarer, than the others
==============  ======================================================================================================

Copies are looked for among the nearest neighbours that all detectors share; which of those are copies the pixels say,
since an encoder that was taught to overlook changes puts pictures together that are none: on Fashion-MNIST, 7 of the 10
pairs that cleanlab's rule (a cosine distance below 0.13 of the usual one) gives were different pieces of clothing, and
it found a quarter of copies saved as JPEG of quality 75, where the pixels find 93%. Without pictures that rule is all
there is.

"Far" means `SPREADS` robust standard deviations of the dataset's own values on that side of their median, and by a
fixed least amount as well, so that black backgrounds and sets that are dark throughout are nothing odd.

The package cleanvision looks for the same in pictures; its limits are fixed, its copies compare hashes of 8 x 8 bits,
and it reads folders, so that every picture would be decoded once more. It is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .base.files import digest
from .base.neighbors import ROUNDING, Neighbors, near_duplicates, nearest_in
from .data import Images, NoisyDataset
from .data.measures import Measures, measure
from .data.pictures import PictureFiles, key_of, some
from .study import VERSIONS, Study
from .workspace import Arrays, pack, unpack

CHECKS = {
    "duplicates": "copies of one another",
    "leaks": "also in the test set",
    "blank": "blank",
    "dark": "dark",
    "bright": "over-bright",
    "flat": "low contrast",
    "blurred": "blurred",
    "odd-size": "odd size",
    "odd-shape": "odd shape",
}
"""What is checked, and its name for people."""

ODD = tuple(CHECKS)[2:]
"""What is wrong with the look of a picture."""

COPY, MOST, RANK = 0.03, 0.02, 5
"""Sketches differ by 1 - their correlation. Two pictures are copies where that is below `COPY` times what it usually is
to the fifth most alike neighbour (the nearest may all be copies), and below `MOST`. On Fashion-MNIST's 28 x 28 pixels
this finds all copies that are brighter, darker or a JPEG of quality 90, 93% of quality 75, 59% of quality 50, and 10%
of those that were grown by half and shrunk again; three pairs of 12,000 different pictures are so much alike, too."""

TESTS = 10
"""Nearest test samples with which each training sample is compared."""

SPREADS = 5.0

BLANK, DARK, BRIGHT, FLAT, BLURRED = 2.0, 64.0, 191.0, 16.0, 0.7
"""Absolute bounds, in grey values and in blur: none of these is odd unless it is also beyond its bound."""

PLAIN = 2.0
"""Sketches with a smaller standard deviation correlate by chance."""

JUDGES = 5000
"""Samples that tell what is usual."""

BLOCK = 512
"""Samples whose neighbours are compared at a time."""

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Reason:
    """Why a sample is listed: which check found it, and a sentence with what was measured."""

    check: str
    words: str


@dataclass(frozen=True, eq=False)
class Checks:
    """What was found among N samples.

    Attributes:
        group: (N,) number of its group of copies, from 0; -1 = it has none.
        copy: (N,) position of the copy most like it, -1 = none; ``gap`` by how much they differ, 0 = not at all.
        leak: (N,) position in the test split of the sample most like it, -1 = none; ``leak_gap`` likewise.
        excess: (len(ODD), N) how far each is beyond what is still usual; above 1 it is odd.
        values: (V, N) what was measured, in the order of ``dark, light, contrast, blur, height, width``; or (V, 0).
        skipped: check -> why it could not be made.
        info: thresholds and seconds.
    """

    group: Rows
    copy: Rows
    gap: Floats
    leak: Rows
    leak_gap: Floats
    excess: NDArray[np.float32]
    values: NDArray[np.float32]
    skipped: dict[str, str]
    info: dict[str, Any]

    def __len__(self) -> int:
        return len(self.group)

    def flags(self, check: str) -> Flags:
        """(N,) which samples one check lists.

        Raises:
            InputError: there is no such check.
        """
        if check not in CHECKS:
            raise InputError(f"there is no check called {check!r}; there are {', '.join(CHECKS)}")
        if check in ODD:
            return np.asarray(self.excess[ODD.index(check)] > 1)
        return np.asarray((self.group if check == "duplicates" else self.leak) >= 0)

    @cached_property
    def sizes(self) -> Rows:
        """(G,) members of each group."""
        return np.bincount(self.group[self.group >= 0], minlength=int(self.group.max(initial=-1)) + 1)

    @property
    def listed(self) -> Flags:
        """(N,) does any check list it?"""
        return np.asarray((self.group >= 0) | (self.leak >= 0) | (self.excess > 1).any(axis=0))

    def siblings(self, position: int) -> list[int]:
        """The other members of a sample's group, the one most like it first."""
        if self.group[position] < 0:
            return []
        first = int(self.copy[position])
        rest = np.flatnonzero(self.group == self.group[position]).tolist()
        return [first, *(i for i in rest if i not in (first, position))]

    def split(self, labels: Rows) -> Flags:
        """(N,) is it in a group whose members have different labels?"""
        grouped = np.flatnonzero(self.group >= 0)
        pairs = np.unique(np.column_stack([self.group[grouped], labels[grouped]]), axis=0)
        several = np.bincount(pairs[:, 0], minlength=len(self.sizes)) > 1
        found = np.zeros(len(self), bool)
        found[grouped] = several[self.group[grouped]]
        return found

    def spare(self, better: Floats, among: Flags) -> Flags:
        """(N,) the copies that can go so that one of each group stays: the best of those it is chosen from.

        Args:
            better: (N,) the highest of a group stays; of equals the first.
            among: (N,) those that are still there.
        """
        rows = np.flatnonzero((self.group >= 0) & among)
        rows = rows[np.lexsort((rows, -better[rows], self.group[rows]))]
        first = np.ones(len(rows), bool)
        first[1:] = self.group[rows[1:]] != self.group[rows[:-1]]
        found = np.zeros(len(self), bool)
        found[rows[~first]] = True
        return found

    def urgency(self, queue: str, labels: Rows, better: Floats, gone: Flags) -> Floats:
        """(N,) the order in which to look at what a queue lists, highest first; 0 = it does not list the sample.

        Copies under different labels come first, group by group, and within a group the one to keep comes last. A group
        of which one is left is done with.

        Args:
            queue: ``duplicates``, ``leaks``, or ``odd`` for all of `ODD`.
            labels: (N,) given labels.
            better: (N,) see `spare`.
            gone: (N,) those that were dropped.
        """
        found = np.zeros(len(self))
        if queue == "leaks":
            rows = np.flatnonzero(self.leak >= 0)
            found[rows[np.argsort(self.leak_gap[rows], kind="stable")]] = np.arange(len(rows), 0, -1)
        elif queue == "duplicates":
            left = np.bincount(self.group[(self.group >= 0) & ~gone], minlength=len(self.sizes))
            rows = np.flatnonzero(self.group >= 0)
            rows = rows[(left[self.group[rows]] > 1) | gone[rows]]
            last = ~self.spare(better, ~gone)
            order = np.lexsort((rows, last[rows], self.group[rows], ~self.split(labels)[rows]))
            found[rows[order]] = np.arange(len(rows), 0, -1)
        else:
            found = np.where((self.excess > 1).any(axis=0), self.excess.max(axis=0, initial=0.0), 0.0)
        return found


def find(study: Study, *, identical: bool = False, report: Report | None = None) -> Checks:
    """Check every sample of a study; stored, or looked for now.

    Args:
        study: the dataset, and the encoder whose neighbours are compared.
        identical: of copies and leaks look for identical ones only; then no encoder is needed.
        report: progress.

    Raises:
        InputError: no such encoder, or pictures it cannot take.
    """
    stored: dict[str, Any] = dict(
        study.workspace.remember("checks", key(study, identical), lambda: _find(study, identical, report))
    )
    rest = unpack(stored.pop("rest"))
    return Checks(**stored, **rest)


def known(study: Study) -> bool:
    """Can the checks be had without computing them?"""
    return study.workspace.has("checks", key(study))


def key(study: Study, identical: bool = False) -> str:
    """The key under which the checks of a study are stored."""
    steps = [VERSIONS["checks"], VERSIONS["measures"]]
    return digest(study.dataset.digest if identical else study.key, study.test_key, identical, steps)


def lacking(study: Study) -> dict[str, str]:
    """The checks that cannot be made, and why."""
    dataset = study.dataset
    found = {}
    if dataset.observed.images is None:
        found = dict.fromkeys(ODD, "there are no pictures")
        if study.observed.features is None:
            found["duplicates"] = "there are neither pictures nor features"
    if dataset.test is None or not len(study.test_rows()):
        found["leaks"] = "there is no test split"
    elif dataset.observed.images is None:
        found["leaks"] = "there are no pictures"
    return found


def _find(study: Study, identical: bool, report: Report | None) -> Arrays:
    tell = report or (lambda what, share: None)
    n, observed, test = len(study), study.observed, study.dataset.test
    skipped, info = lacking(study), dict[str, Any]()
    none, nothing = np.full(n, -1, np.int64), np.full(n, np.nan)
    group, copy, gap, leak, leak_gap = none, none.copy(), nothing, none.copy(), nothing.copy()
    excess, values = np.zeros((len(ODD), n), np.float32), np.empty((6, 0), np.float32)
    near = None
    if not identical and "duplicates" not in skipped and n > 1 and study.embed(report) is not None:
        tell("neighbours", 0.0)
        near = study.evidence.neighbors
    seen = None if observed.images is None else look(study, observed.images, "pictures", tell)
    usual = None
    if seen is not None:
        excess, values = odd(seen)
        info["usual"] = [float(np.nanmedian(row)) if np.isfinite(row).any() else None for row in values]
        usual = None if near is None else typical(near, seen)
        info["limit"] = 0.0 if usual is None else usual
    elif near is not None:
        info["usual_distance"] = float(np.median(1.0 - near.similarity[:, 0].astype(np.float64)))
    if "duplicates" not in skipped:
        pairs, gaps = _pairs(near, seen, usual, lambda share: tell("copies", share))
        group, copy, gap = grouped(n, pairs, gaps)
    if "leaks" not in skipped and test is not None and seen is not None:
        rows = study.test_rows()
        others = look(study, some(test.images, rows), "test pictures", tell)
        tell("copies in the test set", 0.0)
        close = None
        if usual is not None and study.features is not None and (features := study.test_features()) is not None:
            close = nearest_in(features[0], study.features, TESTS).indices
        place, leak_gap = leaked(seen, others, close, usual)
        leak = np.where(place >= 0, rows[place], -1)
    tell("checks", 1.0)
    return {
        "group": group, "copy": copy, "gap": gap, "leak": leak, "leak_gap": leak_gap, "excess": excess,
        "values": values, "rest": pack({"skipped": skipped, "info": info}),
    }  # fmt: skip


def look(study: Study, images: Images, what: str, report: Report) -> Measures:
    """What was read off pictures; stored, or read now."""

    def make() -> Arrays:
        return dict(vars(measure(images, lambda share: report(what, share))))

    return Measures(**study.workspace.remember("measures", digest(key_of(images), VERSIONS["measures"]), make))


def _pairs(
    near: Neighbors | None, seen: Measures | None, limit: float | None, progress: Callable[[float], None]
) -> tuple[Rows, Floats]:
    """(P, 2) pairs of copies, and (P,) by how much they differ."""
    if seen is None:
        if near is None:
            return np.empty((0, 2), np.int64), np.empty(0)
        pairs = near_duplicates(near)
        rows = np.concatenate([pairs, pairs[:, ::-1]])
        gaps = np.full(len(pairs), np.inf)
        for rank in range(near.k):  # a pair may be listed on one side only
            here = near.indices[rows[:, 0], rank] == rows[:, 1]
            away = np.where(here, 1.0 - near.similarity[rows[:, 0], rank].astype(np.float64), np.inf)
            gaps = np.minimum(gaps, np.minimum(away[: len(pairs)], away[len(pairs) :]))
        return pairs, np.maximum(gaps, 0.0)
    equal = same(seen.mark, seen.seen)
    found, apart = [equal], [np.zeros(len(equal))]
    if near is not None and limit is not None:
        for start, block in _compared(seen, seen, near.indices):
            row, column = np.nonzero(block < limit)
            found.append(np.column_stack([row + start, near.indices[row + start, column]]))
            apart.append(block[row, column])
            progress(start / len(seen))
    return np.concatenate(found), np.concatenate(apart)


def same(mark: Rows, seen: Flags) -> Rows:
    """(P, 2) a chain of pairs through all samples with equal marks, in their order.

    Args:
        mark: (N,).
        seen: (N,) those that have one.
    """
    rows = np.flatnonzero(seen)
    rows = rows[np.lexsort((rows, mark[rows]))]
    equal = mark[rows[1:]] == mark[rows[:-1]]
    return np.column_stack([rows[:-1][equal], rows[1:][equal]])


def alikeness(sketches: NDArray[np.uint8], others: NDArray[np.uint8], near: Rows) -> Iterator[tuple[int, Floats]]:
    """Correlations of sketches with those of their neighbours, block by block.

    Args:
        sketches: (N, P).
        others: (M, P).
        near: (N, k) positions among the others.

    Yields:
        where the block begins, and (B, k) correlations; 0 with a sketch that is too plain (see `PLAIN`).
    """
    (middle, size), (mean, norm) = _moments(sketches), _moments(others)
    for start in range(0, len(near), BLOCK):
        rows = slice(start, start + BLOCK)
        own = np.subtract(sketches[rows], middle[rows, None], dtype=np.float32)
        theirs = np.subtract(others[near[rows]], mean[near[rows]][..., None], dtype=np.float32)
        product = np.matmul(theirs, own[..., None])[..., 0].astype(np.float64)
        yield start, product / (size[rows, None] * norm[near[rows]])


def _moments(sketches: NDArray[np.uint8]) -> tuple[NDArray[np.float32], Floats]:
    """Mean (N,) and norm (N,) of what is left without it; infinite where that is too little."""
    mean, norm = np.empty(len(sketches), np.float32), np.empty(len(sketches))
    for start in range(0, len(sketches), BLOCK):
        rows = slice(start, start + BLOCK)
        mean[rows] = sketches[rows].mean(axis=1, dtype=np.float32)
        norm[rows] = np.linalg.norm(sketches[rows] - mean[rows, None], axis=1)
    return mean, np.where(norm > PLAIN * np.sqrt(sketches.shape[1]), norm, np.inf)


def _compared(seen: Measures, others: Measures, near: Rows) -> Iterator[tuple[int, Floats]]:
    """Blocks of samples: where each begins, and by how much they differ from their neighbours (B, k)."""
    for start, alike in alikeness(seen.sketch, others.sketch, near):
        yield start, np.maximum(1.0 - alike, ROUNDING)  # 0 is for identical ones


def typical(near: Neighbors, seen: Measures) -> float:
    """By how much two pictures may differ and be copies: see `COPY`; some samples tell what is usual."""
    some = np.unique(np.linspace(0, len(seen) - 1, JUDGES).astype(int))
    rank = min(RANK, near.k) - 1
    blocks = alikeness(seen.sketch[some], seen.sketch, near.indices[some])
    usual = np.concatenate([np.sort(1.0 - alike, axis=1)[:, rank] for _, alike in blocks])
    return float(np.clip(COPY * np.median(usual), ROUNDING, MOST))


def grouped(n: int, pairs: Rows, gaps: Floats) -> tuple[Rows, Rows, Floats]:
    """Groups of samples that pairs connect.

    Args:
        n: samples.
        pairs: (P, 2) positions, in any order.
        gaps: (P,) by how much the two differ.

    Returns:
        (N,) group, -1 = none, numbered in the order of their first members; (N,) the most alike partner, -1 = none; and
        (N,) by how much it differs, NaN = none.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    group, copy, gap = np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.full(n, np.nan)
    if not len(pairs):
        return group, copy, gap
    graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    label = connected_components(graph, directed=False)[1]
    members = np.unique(pairs)
    first = np.unique(label[members], return_index=True)
    order = np.argsort(members[first[1]], kind="stable")
    number = np.full(int(label.max()) + 1, -1, np.int64)
    number[first[0][order]] = np.arange(len(order))
    group[members] = number[label[members]]
    both, twice = np.concatenate([pairs, pairs[:, ::-1]]), np.concatenate([gaps, gaps])
    order = np.lexsort((both[:, 1], twice, both[:, 0]))
    rows, start = np.unique(both[order, 0], return_index=True)
    copy[rows], gap[rows] = both[order[start], 1], twice[order[start]]
    return group, copy, gap


def leaked(seen: Measures, tests: Measures, near: Rows | None, limit: float | None) -> tuple[Rows, Floats]:
    """The test picture that each sample is a copy of.

    Args:
        seen, tests: N samples and M test pictures.
        near: (N, k) test pictures that may be alike, or None: identical ones only.
        limit: see `typical`.

    Returns:
        (N,) position among the test pictures, -1 = none; and by how much they differ, NaN = none.
    """
    n = len(seen)
    place, gap = np.full(n, -1, np.int64), np.full(n, np.nan)
    if near is not None and limit is not None:
        for start, apart in _compared(seen, tests, near):
            best = apart.argmin(axis=1)
            least = apart[np.arange(len(apart)), best]
            rows = np.flatnonzero(least < limit)
            place[rows + start], gap[rows + start] = near[rows + start, best[rows]], least[rows]
    there = np.flatnonzero(tests.seen)
    marks, first = np.unique(tests.mark[there], return_index=True)
    if len(marks):
        at = np.minimum(np.searchsorted(marks, seen.mark), len(marks) - 1)
        equal = (marks[at] == seen.mark) & seen.seen
        place[equal], gap[equal] = there[first[at[equal]]], 0.0
    return place, gap


def far(values: Floats, least: float, way: int) -> Floats:
    """(N,) how far values are from their median, in units of what is still usual; above 1 they are far.

    Usual is `SPREADS` times the robust standard deviation of the values on the same side of the median (1.4826 times
    the median of their distances to it), but at least ``least``.

    Args:
        values: (N,) NaN where not known; those are never far.
        least: in the unit of the values.
        way: 1 = above the median, -1 = below.
    """
    known = values[np.isfinite(values)]
    if not len(known):
        return np.zeros(len(values))
    away = way * (values - np.median(known))
    side = away[np.isfinite(away) & (away >= 0)]
    return np.nan_to_num(np.maximum(away / max(least, SPREADS * 1.4826 * float(np.median(side))), 0.0))


def odd(seen: Measures) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Which pictures look odd among the others.

    Returns:
        see `Checks`: (len(ODD), N) excess, where each picture has one tone's fault at most (blank, dark, bright or
        flat), and the (6, N) values.
    """
    dark, light, contrast, blur = (getattr(seen, name).astype(np.float64) for name in
                                   ("dark", "light", "contrast", "blur"))  # fmt: skip
    height, width = np.where(seen.size > 0, seen.size, np.nan).astype(np.float64).T
    blank = contrast < BLANK
    side, long = np.log(height * width) / 2, np.abs(np.log(width / height))
    with np.errstate(divide="ignore"):
        spread = np.log(contrast)
    tones = {
        "blank": np.where(blank, 100.0, 0.0),
        "dark": far(np.log1p(light), np.log(3.0), -1) * (light < DARK),
        "bright": far(np.log1p(255 - dark), np.log(3.0), -1) * (dark > BRIGHT),
        "flat": far(np.where(blank, np.nan, spread), np.log(3.0), -1) * (contrast < FLAT),
    }
    excess = np.zeros((len(ODD), len(seen)))
    free = np.ones(len(seen), bool)
    for check, found in tones.items():
        excess[ODD.index(check)] = np.where(free, found, 0.0)
        free &= ~(found > 1)
    sharp = np.log(np.where(blank, np.nan, np.maximum(1 - blur, 1e-3)))
    excess[ODD.index("blurred")] = far(sharp, np.log(2.0), -1) * (blur > BLURRED)
    for check, logs, least in (("odd-size", side, np.log(3.0)), ("odd-shape", long, np.log(2.0))):
        excess[ODD.index(check)] = np.maximum(far(logs, least, 1), far(logs, least, -1))
    values = np.stack([dark, light, contrast, blur, height, width])
    return excess.astype(np.float32), values.astype(np.float32)


def name_of_test(dataset: NoisyDataset, place: int) -> str:
    """What a test sample is called: its file, or its number."""
    images = dataset.test.images if dataset.test else None
    return images.names[images.rows[place]] if isinstance(images, PictureFiles) else f"test sample {place}"


def reasons(study: Study, found: Checks, position: int) -> tuple[Reason, ...]:
    """Why a sample is listed, in the order of `CHECKS`."""
    observed, dataset = study.observed, study.dataset
    classes, given = observed.classes, int(observed.labels[position])
    measured = "pixels correlate {:.4f}" if observed.images is not None else "cosine similarity {:.5f}"
    told = []
    if (copy := int(found.copy[position])) >= 0:
        gap, more = found.gap[position], int(found.sizes[found.group[position]]) - 2
        exact = gap == 0 and observed.images is not None
        words = f"identical to {observed.ids[copy]}" if exact else f"copy of {observed.ids[copy]}"
        words += "" if exact else f" ({measured.format(1 - gap)})"
        if (other := int(observed.labels[copy])) != given:
            words += f", which is filed under {classes[other]}"
        told.append(Reason("duplicates", words + (f"; {more} more in its group" if more > 0 else "")))
    if (leak := int(found.leak[position])) >= 0 and dataset.test is not None:
        gap, name = found.leak_gap[position], name_of_test(dataset, leak)
        words = f"also in the test set: {name}" + (", identical" if gap == 0 else f" ({measured.format(1 - gap)})")
        if (other := int(dataset.test.labels[leak])) != given:
            words += f", there under {classes[other]}"
        told.append(Reason("leaks", words))
    if not found.values.shape[1]:
        return tuple(told)
    dark, light, contrast, blur, height, width = found.values[:, position].tolist()
    usual = found.info["usual"]
    sentences: dict[str, Callable[[], str]] = {
        "blank": lambda: f"blank: one tone all over ({light:.0f} of 255)",
        "dark": lambda: f"dark: 99% of its pixels are at most {light:.0f} of 255 (usual: {usual[1]:.0f})",
        "bright": lambda: f"over-bright: 99% of its pixels are at least {dark:.0f} of 255 (usual: {usual[0]:.0f})",
        "flat": lambda: f"low contrast: grey values spread by {contrast:.1f} of 255 (usual: {usual[2]:.0f})",
        "blurred": lambda: f"blurred: {blur:.2f} on a scale from 0, sharp, to 1 (usual: {usual[3]:.2f})",
        "odd-size": lambda: f"odd size: {width:.0f} × {height:.0f} pixels (usual: {usual[5]:.0f} × {usual[4]:.0f})",
        "odd-shape": lambda: f"odd shape: {width:.0f} × {height:.0f} pixels (usual: {usual[5]:.0f} × {usual[4]:.0f})",
    }
    for check, excess in zip(ODD, found.excess[:, position].tolist(), strict=True):
        if excess > 1:
            told.append(Reason(check, sentences[check]()))
    return tuple(told)


def summary(study: Study, found: Checks, most: int = 5) -> dict[str, Any]:
    """What ``chaffinch check --json`` prints: counts, groups, and the first of each check with the reason."""
    labels, none, alike = study.observed.labels, np.zeros(len(study), bool), np.zeros(len(study))
    listed: dict[str, Any] = {}
    for check in (c for c in CHECKS if c not in found.skipped):
        rows = np.flatnonzero(found.flags(check))
        odd = check in ODD
        urgency = found.excess[ODD.index(check)] if odd else found.urgency(check, labels, alike, none)
        first = rows[np.argsort(-urgency[rows], kind="stable")][:most].tolist()
        why = [next(r.words for r in reasons(study, found, i) if r.check == check) for i in first]
        samples = [{"id": study.name_of(i), "why": words} for i, words in zip(first, why, strict=True)]
        listed[check] = {"flagged": len(rows), "samples": samples}
    if "duplicates" in listed:
        listed["duplicates"] |= {
            "groups": len(found.sizes),
            "groups_of_different_labels": len(np.unique(found.group[found.split(labels)])),
            "spare": int(found.spare(alike, ~none).sum()),
        }
    if "leaks" in listed:
        listed["leaks"] |= {"test_samples": len(np.unique(found.leak[found.leak >= 0])), "of": len(study.test_rows())}
    return {"dataset": study.dataset.name, "n": len(study), "checks": listed, "skipped": found.skipped}


def texts(study: Study, found: Checks) -> tuple[Sequence[str], Sequence[str]]:
    """Of every sample, the names of the checks that list it, with commas, and why in words; empty for most."""
    issues, why = np.full(len(study), "", object), np.full(len(study), "", object)
    for i in np.flatnonzero(found.listed).tolist():
        told = reasons(study, found, i)
        issues[i], why[i] = ",".join(r.check for r in told), "; ".join(r.words for r in told)
    return issues.tolist(), why.tolist()

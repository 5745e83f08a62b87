"""Which detector should I believe? Figures side by side, agreement, overlaps, disagreement, noise rates, stability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import registry, views
from .base.errors import InputError
from .base.files import digest
from .card import KINDS
from .detectors.base import Trusted, ranks
from .evidence import Evidence
from .metrics.detection import auroc, average_precision, decision, precision_recall_curve, roc_curve, sides, thinned
from .spec import RULES, Cut, Spec
from .study import VERSIONS, Detection, Report, Study
from .workspace import Arrays

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

MODES = ("but", "only", "exactly", "rank")
REPEATS, SHARE = 3, 0.8


def second(study: Study, on: Sequence[str]) -> str | None:
    """A detector worth adding to those that are on: one that finds what they do not, the default view's first.

    Args:
        study: what it has to run on.
        on: slugs of those that are on.

    Returns:
        a slug, or None if no other one can run.
    """
    classes = registry.methods("detector")
    found = set().union(*(classes[slug].card.finds for slug in on if slug in classes))
    usual = [c.detector for c in Spec().detectors]
    runs = [slug for slug in classes if slug not in on and study.lacking(slug) is None]
    return min(runs, key=lambda s: (not set(classes[s].card.finds) - found, s not in usual, s), default=None)


def table(study: Study, detections: Sequence[Detection], flags: Mapping[str, Flags]) -> pd.DataFrame:
    """One row a detector: figures against the truth, or without it the agreement with the others; flags and seconds.

    Args:
        study: on what.
        detections: whose rows.
        flags: slug -> (N,) flags in force.
    """
    rows = [{"detector": d.slug, **study.figures(d, flags[d.slug])} for d in detections]
    if study.truth is None:
        for row, agreement in zip(rows, mean_agreement(detections), strict=True):
            row["agreement"] = agreement
    return pd.DataFrame(rows)


def cut_costs(study: Study, detections: Sequence[Detection]) -> pd.DataFrame:
    """What each cut of each detector would flag, and what that costs; cuts that cannot be made are left out.

    One row a detector and a rule of `chaffinch.spec.RULES`: flagged, share, precision and clean kept, against the truth
    or else as the verdict expects; recall and F1 where the truth is known.
    """
    rows = []
    for found in detections:
        for rule in RULES:
            try:
                flags = found.flags(Cut(found.slug, rule=rule))
            except InputError:
                continue
            cost = views.cost(study, flags)
            row = {"detector": found.slug, "cut": rule, "flagged": cost.flagged, "share": cost.share}
            row |= {"precision": cost.precision, "clean_kept": cost.kept}
            if study.truth is not None:
                figures = decision(flags, study.truth.kind)
                row |= {name: figures[name] for name in ("recall", "f1")}
            rows.append(row)
    return pd.DataFrame(rows)


def rank_agreement(detections: Sequence[Detection]) -> Array:
    """Spearman's rank correlation of every two detectors' scores, (K, K); NaN for constant scores."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.atleast_2d(np.corrcoef([d.ranks for d in detections]))


def mean_agreement(detections: Sequence[Detection]) -> list[float]:
    """Each detector's mean rank correlation with the others; NaN if there are none."""
    matrix, k = rank_agreement(detections), len(detections)
    return [float(np.delete(matrix[i], i).mean()) if k > 1 else float("nan") for i in range(k)]


def jaccard(a: Flags, b: Flags) -> float:
    """Share of the samples that either flags which both flag; NaN if neither flags any."""
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else float("nan")


def flag_overlap(flags: Mapping[str, Flags]) -> Array:
    """`jaccard` of every two detectors' flags, (K, K)."""
    return np.array([[jaccard(a, b) for b in flags.values()] for a in flags.values()])


@dataclass(frozen=True)
class Curve:
    """One detector's ROC and precision-recall curves.

    Attributes:
        slug: the detector.
        roc: false and true positive rate, (M,) each.
        recall: recall and precision, (M,) each.
        at_roc, at_recall: where its flags stand; precision is None if nothing that takes part is flagged.
        auroc, ap: areas under the two, of all points.
    """

    slug: str
    roc: tuple[Array, Array]
    recall: tuple[Array, Array]
    at_roc: tuple[float, float]
    at_recall: tuple[float, float | None]
    auroc: float
    ap: float


def curves(
    kind: NDArray[np.int8], detections: Sequence[Detection], flags: Mapping[str, Flags], find: str, most: int = 500
) -> list[Curve]:
    """The curves of several detectors; none if the kind of noise that is looked for does not occur.

    Args:
        kind: (N,) the true kinds.
        detections: whose curves.
        flags: slug -> (N,) flags in force; they are the marked points.
        find: ``any``, ``mislabelled`` or ``ood`` (see `sides`).
        most: points a curve.
    """
    rows, positive = sides(kind, find)
    positive, out = positive[rows], []
    for d in detections:
        scores, flagged = d.scores[rows], flags[d.slug][rows]
        roc, recall = roc_curve(scores, positive), precision_recall_curve(scores, positive)
        area, ap = auroc(scores, positive), average_precision(scores, positive)
        if roc is None or recall is None or area is None or ap is None:
            return []
        hits, seen = int((flagged & positive).sum()), int(flagged.sum())
        caught = hits / int(positive.sum())
        out.append(
            Curve(
                d.slug,
                _thin(roc, most),
                _thin(recall, most),
                ((seen - hits) / int((~positive).sum()), caught),
                (caught, hits / seen if seen else None),
                area,
                ap,
            )
        )
    return out


def _thin(curve: tuple[Array, Array], most: int) -> tuple[Array, Array]:
    keep = thinned(*curve, most)
    return curve[0][keep], curve[1][keep]


def chance(kind: NDArray[np.int8], find: str) -> float:
    """Precision of flags drawn by lot: the share of what is looked for."""
    rows, positive = sides(kind, find)
    return float(positive[rows].mean())


@dataclass(frozen=True)
class Overlap:
    """The samples that exactly these detectors flag.

    Attributes:
        slugs: who flags them; all others that are on do not.
        count: how many samples.
        kinds: of them clean, mislabelled and OOD; None without truth.
    """

    slugs: tuple[str, ...]
    count: int
    kinds: tuple[int, ...] | None


def overlaps(flags: Mapping[str, Flags], kind: NDArray[np.int8] | None = None) -> list[Overlap]:
    """Every combination of detectors that flags something, the most frequent first."""
    names = list(flags)
    code = sum((flagged.astype(np.int64) << i for i, flagged in enumerate(flags.values())), np.zeros(1, np.int64))
    patterns, which, counts = np.unique(code[code > 0], return_inverse=True, return_counts=True)
    split = None
    if kind is not None:
        cell = which * len(KINDS) + kind[code > 0]
        split = np.bincount(cell, minlength=len(patterns) * len(KINDS)).reshape(-1, len(KINDS))
    return [
        Overlap(
            tuple(name for at, name in enumerate(names) if patterns[i] >> at & 1),
            int(counts[i]),
            None if split is None else tuple(split[i].tolist()),
        )
        for i in np.argsort(-counts, kind="stable").tolist()
    ]


@dataclass(frozen=True)
class Contrast:
    """Which disagreement is looked at; spelled ``but:lsa:knn-label``.

    Attributes:
        mode: ``but``: flagged by the first, not by the second; ``only``: by the first alone; ``exactly``: by all of
            ``slugs`` and no other; ``rank``: no flags, ordered by how much more suspicious the first finds a sample.
        slugs: the detectors.
    """

    mode: str
    slugs: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, on: Sequence[str]) -> Contrast:
        """Read the spelling. What does not fit two or more detectors that are on becomes their first two's ``but``."""
        mode, *slugs = text.split(":")
        wanted = {"but": 2, "only": 1, "rank": 2}.get(mode, len(slugs))
        fits = mode in MODES and 1 <= len(slugs) == wanted == len(set(slugs)) and set(slugs) <= set(on)
        return cls(mode, tuple(slugs)) if fits else cls("but", tuple(on[:2]))

    def __str__(self) -> str:
        return ":".join((self.mode, *self.slugs))

    def sides(self, on: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Who finds the samples suspicious, and who does not."""
        if self.mode in ("but", "rank"):
            return self.slugs[:1], self.slugs[1:]
        return self.slugs, tuple(slug for slug in on if slug not in self.slugs)


def disagreement(
    contrast: Contrast, detections: Sequence[Detection], flags: Mapping[str, Flags], within: Flags | None = None
) -> NDArray[np.int64]:
    """Positions of the samples on which detectors disagree, the widest gap between their mean ranks first.

    Args:
        contrast: which disagreement.
        detections: all that are on.
        flags: slug -> (N,) flags in force.
        within: only these; None = all.
    """
    those, others = contrast.sides([d.slug for d in detections])
    rank = {d.slug: d.ranks for d in detections}
    gap = np.mean([rank[slug] for slug in those], axis=0)
    if others:
        gap = gap - np.mean([rank[slug] for slug in others], axis=0)
    keep = np.ones(len(gap), bool) if within is None else within.copy()
    if contrast.mode == "rank":
        keep &= gap > 0
    else:
        keep &= np.all([flags[slug] for slug in those] + [~flags[slug] for slug in others], axis=0)
    order = np.argsort(-gap, kind="stable")
    return np.asarray(order[keep[order]])


def noise_matrix(
    given: NDArray[np.int64], probable: NDArray[np.int64], ood: NDArray[Any], n_classes: int
) -> NDArray[np.float64]:
    """How many samples filed under each class belong to each, and to none: counts (C, C + 1), the last column OOD.

    Args:
        given: (N,) given labels.
        probable: (N,) the class each belongs to if to any; a sample without one (-1) counts as far as it is OOD.
        ood: (N,) its probability of belonging to none, or whether it does.
        n_classes: C.
    """
    counts = np.zeros((n_classes, n_classes + 1))
    weight = np.asarray(ood, np.float64)
    known = probable >= 0
    np.add.at(counts, (given[known], probable[known]), 1 - weight[known])
    np.add.at(counts, (given, np.full(len(given), n_classes)), weight)
    return counts


@dataclass(frozen=True)
class Stability:
    """How a detector's result changes when it sees a random share of the samples.

    Attributes:
        slug: the detector.
        ranks: rank correlation with the full run on the common samples, one a subset.
        flags: `jaccard` of the flags on the common samples, one a subset; NaN if neither run flags any.
    """

    slug: str
    ranks: tuple[float, ...]
    flags: tuple[float, ...]


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample: n - 1); NaN where there are too few values."""
    with np.errstate(invalid="ignore"):
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def subset(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.int64]:
    """Sorted positions of a random share of every class, at least one of each."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)  # within its class
    return np.sort(order[place < np.ceil(share * np.repeat(counts, counts))])


def _subset_key(study: Study, slug: str, repeat: int) -> str:
    detector = study.detector(slug)
    return digest(study.key, study.seed, slug, detector.get_params(), VERSIONS["detect"], repeat, SHARE)


def stability_known(study: Study, slugs: Sequence[str], repeats: int = REPEATS) -> list[str]:
    """The detectors whose runs on subsets are all stored."""
    return [
        slug
        for slug in slugs
        if all(study.workspace.has("stability", _subset_key(study, slug, r)) for r in range(repeats))
    ]


def stability(
    study: Study,
    detections: Sequence[Detection],
    flags: Mapping[str, Flags],
    cuts: Sequence[Cut],
    *,
    repeats: int = REPEATS,
    report: Report | None = None,
) -> tuple[list[Stability], dict[str, str]]:
    """Run detectors on random 80 % subsets, with evidence of the subset alone, and compare with the full run.

    Every run is stored, so a second call computes nothing, and one that was interrupted goes on.

    Args:
        study: on what.
        detections: the full runs.
        flags: slug -> (N,) their flags in force.
        cuts: where the detectors cut on a subset.
        repeats: how many subsets.
        report: progress.

    Returns:
        One `Stability` a detector, and slug -> reason for those that cannot run on a subset.
    """
    labels, chosen = study.observed.labels, {c.detector: c for c in cuts}
    runs: dict[str, list[tuple[float, float]]] = {d.slug: [] for d in detections}
    problems: dict[str, str] = {}
    for r in range(repeats):
        rows = subset(labels, SHARE, study.seed + r)
        evidence = cache(partial(_evidence, study, rows))  # made only if something has to run
        for i, full in enumerate(detections):
            slug = full.slug
            if slug in problems:
                continue
            if report:
                report(f"{slug}, subset {r + 1} of {repeats}", (r * len(detections) + i) / (repeats * len(detections)))
            try:
                make = partial(_fit, study, slug, evidence)
                found = study.workspace.remember("stability", _subset_key(study, slug, r), make)
                part = replace(
                    full,
                    scores=found["scores"],
                    own=found["flags"],
                    suggestions=found["suggestions"] if len(found["suggestions"]) else None,
                    given=labels[rows],
                )
                again = part.flags(chosen.get(slug))
            except InputError as error:
                problems[slug] = str(error)
                continue
            with np.errstate(invalid="ignore", divide="ignore"):
                same = float(np.corrcoef(ranks(full.scores[rows]), part.ranks)[0, 1])
            runs[slug].append((same, jaccard(flags[slug][rows], again)))
    done = [slug for slug in runs if slug not in problems]
    return [Stability(s, tuple(a for a, _ in runs[s]), tuple(b for _, b in runs[s])) for s in done], problems


def _evidence(study: Study, rows: NDArray[np.int64]) -> Evidence:
    """The evidence of a subset, which knows nothing of the other samples."""
    o = study.observed
    some = replace(
        o,
        labels=o.labels[rows],
        ids=o.ids[rows],
        images=None,
        features=None,
        xy=None,
        pred_probs=None if o.pred_probs is None else o.pred_probs[rows],
        trusted=None if o.trusted is None else o.trusted[rows],
    )

    def trusted() -> Trusted:
        t = study.evidence.trusted
        here = np.searchsorted(rows, t.rows).clip(0, len(rows) - 1)
        keep = (t.rows < 0) | (rows[here] == t.rows)
        return Trusted(t.X[keep], t.y[keep], np.where(t.rows < 0, -1, here)[keep])

    features = None if study.features is None else study.features[rows]
    return Evidence(some, features, seed=study.seed, trusted=trusted)


def _fit(study: Study, slug: str, evidence: Callable[[], Evidence]) -> Arrays:
    detector = study.detector(slug)
    arguments = evidence().gather(detector)
    detector.fit(arguments.pop("X"), arguments.pop("y"), **arguments)
    suggestions = getattr(detector, "suggestions_", np.empty(0, np.int64))
    return {"scores": detector.scores_.astype(np.float64), "flags": detector.flags_, "suggestions": suggestions}

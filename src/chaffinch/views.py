"""What a page shows of a study, as plain arrays: votes, selections, orders, one sample in detail."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .card import KINDS
from .data import CLEAN, OOD
from .figures import palette
from .metrics.detection import decision
from .spec import Cut
from .study import Detection, Study
from .verdict import Verdict

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Votes:
    """Which detectors flag which samples.

    Attributes:
        flags: slug -> (N,) bool, for every detector that is on.
        count: (N,) int64, how many flag a sample.
        flagged: (N,) bool, at least as many as asked for.
        problems: slug -> why its cut could not be used.
    """

    flags: dict[str, Flags]
    count: NDArray[np.int64]
    flagged: Flags
    problems: dict[str, str]


def vote(n: int, detections: Sequence[Detection], cuts: Sequence[Cut], least: int = 1) -> Votes:
    """Flags of all detectors that are on, and which samples at least ``least`` of them flag.

    A cut that would flag everything is reported in ``problems``; the detector's own rule is used instead, or nothing
    is flagged if that rule is the one that flags everything.
    """
    chosen = {c.detector: c for c in cuts}
    flags, problems = {}, {}
    for found in detections:
        try:
            flags[found.slug] = found.flags(chosen.get(found.slug))
        except InputError as error:
            own = not found.own.all()
            problems[found.slug] = f"{error}; {'its own rule is used instead' if own else 'nothing is flagged'}"
            flags[found.slug] = found.own if own else np.zeros(n, bool)
    count = np.zeros(n, np.int64)
    for flagged in flags.values():
        count += flagged
    return Votes(flags, count, np.asarray(count >= max(1, min(least, len(flags) or 1))), problems)


def suspicion(detections: Sequence[Detection], n: int) -> NDArray[np.float64]:
    """Mean rank (N,) over the detectors, 0 to 1: one order for several scores."""
    return np.mean([found.ranks for found in detections], axis=0) if detections else np.zeros(n)


def gallery_order(
    study: Study,
    detections: Sequence[Detection],
    votes: Votes,
    *,
    show: str,
    label: str,
    within: Flags | None,
    verdict: Verdict | None = None,
) -> NDArray[np.int64]:
    """Positions in the order in which the gallery lists them.

    Args:
        study: the study.
        detections: those that decide the order.
        votes: flags in force.
        show: ``suspicious`` (all, most suspicious first), ``flagged`` (only those), ``random`` (a seeded shuffle),
            ``trusted`` (least suspicious first), or ``mislabelled`` or ``ood``: those the verdict takes for one, the
            surest first.
        label: only samples with this given label; empty = all.
        within: only these (a selection on the map); None = all.
        verdict: the verdict, where it is known.
    """
    n = len(study)
    keep = np.ones(n, bool) if within is None else within.copy()
    if label in study.observed.classes:
        keep &= study.observed.labels == study.observed.classes.index(label)
    if show == "flagged":
        keep &= votes.flagged
    if show in KINDS and verdict is not None:
        keep &= verdict.kinds == KINDS.index(show)
        order = np.argsort(-verdict.proba[:, KINDS.index(show)], kind="stable")
    elif show == "random":
        order = np.random.default_rng(study.seed).permutation(n)
    else:
        score = suspicion(detections, n)
        order = np.argsort(score if show == "trusted" else -score, kind="stable")
    return np.asarray(order[keep[order]])


@dataclass(frozen=True)
class Colouring:
    """What colours the map: (N,) values, their names and colours (categories) or colour stops (a scale)."""

    values: NDArray[np.float64]
    names: tuple[str, ...]
    colours: tuple[str, ...]
    title: str


def colouring(
    study: Study, detections: Sequence[Detection], votes: Votes, by: str, verdict: Verdict | None = None
) -> Colouring:
    """Colours by ``given`` label, ``votes``, ``verdict``, true ``kind``, ``pull`` in training, or a detector's rank.

    What is not known falls back to the given label.
    """
    by_slug = {found.slug: found for found in detections}
    kinds = tuple(palette.KIND_COLOURS[kind] for kind in KINDS)
    if by == "kind" and study.truth is not None:
        return Colouring(study.truth.kind.astype(float), KINDS, kinds, "True kind")
    if by == "verdict" and verdict is not None:
        return Colouring(verdict.kinds.astype(float), KINDS, kinds, "Verdict")
    if by == "votes":
        most = len(votes.flags)
        names = ("not flagged", *(f"flagged by {i}" for i in range(1, most + 1)))
        colours = tuple(palette.VOTES[min(i, len(palette.VOTES) - 1)] for i in range(most + 1))
        return Colouring(votes.count.astype(float), names, colours, "Detectors that flag")
    if by in by_slug:
        return Colouring(by_slug[by].ranks, (), palette.SUSPICION, f"Suspicion rank: {by}")
    if by == "pull" and (pulled := study.pull_ranks) is not None:
        return Colouring(pulled, (), palette.SUSPICION, "Rank of the pull in training")
    classes = study.observed.classes
    return Colouring(study.observed.labels.astype(float), classes, palette.class_colours(len(classes)), "Given label")


@dataclass(frozen=True)
class Reading:
    """One detector's reading of one sample.

    Attributes:
        slug: the detector.
        score: on its own scale.
        rank: share of samples that are less suspicious, 0 to 1.
        flagged: under the cut in force.
        suggestion: the label it would give, or None.
        chance: probability of what the detector looks for, given its score; None without a verdict.
    """

    slug: str
    score: float
    rank: float
    flagged: bool
    suggestion: str | None
    chance: float | None = None


@dataclass(frozen=True)
class Inspection:
    """One sample in detail.

    Attributes:
        position, id, given: which sample.
        true: its true label; words where it has none or only its kind is known; None without any truth.
        kind: clean, mislabelled, ood, or None.
        readings: one a detector.
        neighbours: positions of the nearest samples, nearest first, with their labels and similarities.
        chances: P(clean), P(mislabelled), P(OOD) by the verdict, or empty.
        probable: the label it probably should have, and how sure that is if it has one at all; None without a verdict.
        pull: share of samples that pulled less at the end of the encoder's training; None where that is not known.
    """

    position: int
    id: str
    given: str
    true: str | None
    kind: str | None
    readings: tuple[Reading, ...]
    neighbours: tuple[tuple[int, str, float], ...]
    chances: tuple[float, ...] = ()
    probable: tuple[str, float] | None = None
    pull: float | None = None


_NO_LABEL = {OOD: "none (out-of-distribution)"}


def inspect(
    study: Study,
    position: int,
    detections: Sequence[Detection],
    votes: Votes,
    verdict: Verdict | None = None,
    k: int = 10,
) -> Inspection:
    """Everything about one sample."""
    classes, observed, truth = study.observed.classes, study.observed, study.truth
    readings = tuple(
        Reading(
            found.slug,
            float(found.scores[position]),
            float(found.ranks[position]),
            bool(votes.flags[found.slug][position]),
            None if found.suggestions is None else classes[found.suggestions[position]],
            _at(study.chance(found, verdict), position) if verdict is not None else None,
        )
        for found in detections
    )
    near: tuple[tuple[int, str, float], ...] = ()
    if study.features is not None:
        with study.lock:
            table = study.evidence.neighbors
        columns = zip(table.indices[position, :k], table.similarity[position, :k], strict=True)
        near = tuple((int(j), classes[observed.labels[j]], float(s)) for j, s in columns)
    true = None
    if truth is not None:
        label = int(truth.labels[position])
        true = classes[label] if label >= 0 else _NO_LABEL.get(int(truth.kind[position]), "not known")
    kind = None if truth is None else KINDS[truth.kind[position]]
    given = classes[observed.labels[position]]
    pulled = study.pull_ranks
    pull = None if pulled is None or np.isnan(pulled[position]) else float(pulled[position])
    seen = Inspection(position, str(observed.ids[position]), given, true, kind, readings, near, pull=pull)
    if verdict is None:
        return seen
    probable = classes[verdict.labels[position]], float(verdict.sureness[position])
    return replace(seen, chances=tuple(verdict.proba[position].tolist()), probable=probable)


@dataclass(frozen=True)
class Course:
    """What a classifier said of one sample while it learnt, over E epochs.

    Attributes:
        run: name of the training.
        trainer: slug.
        loss: (E,) cross-entropy against the given label after each epoch.
        usual: (E, 3) quartiles of that over all samples.
        flagged: (E,) was the sample flagged in that epoch?
        turns: (E,) which detector's flags were in force; empty where none.
        trust: (E,) how far its new label was trusted, where the trainer guesses labels; else None.
    """

    run: str
    trainer: str
    loss: NDArray[np.float64]
    usual: NDArray[np.float64]
    flagged: Flags
    turns: tuple[str, ...]
    trust: NDArray[np.float32] | None


def course(study: Study, position: int) -> Course | None:
    """The course of one sample in the training whose record the study has; None if it has none.

    Raises:
        InputError: an epoch's file is damaged.
    """
    if (run := study.run) is None:
        return None
    losses, (flags, turns) = run.history.losses(study.observed.labels), run.force
    return Course(
        run=run.name, trainer=run.about["trainer"], loss=losses[:, position],
        usual=np.quantile(losses, (0.25, 0.5, 0.75), axis=1).T, flagged=flags[:, position], turns=turns,
        trust=None if run.trust is None else run.trust[:, position],
    )  # fmt: skip


def _at(values: NDArray[np.float64] | None, position: int) -> float | None:
    return None if values is None else float(values[position])


def summary(study: Study, votes: Votes, within: Flags | None) -> dict[str, float | int | None]:
    """Counts of the strip above the map, and figures against the truth where it is known."""
    out: dict[str, float | int | None] = {"samples": len(study), "flagged": int(votes.flagged.sum())}
    if within is not None:
        out["selected"] = int(within.sum())
    if study.truth is not None and votes.flags:
        figures = decision(votes.flagged, study.truth.kind)
        out |= {name: figures[name] for name in ("precision", "recall", "f1", "clean_kept")}
    return out


@dataclass(frozen=True)
class Cost:
    """What a cut flags and what that costs: against the truth where it is known, else as the verdict expects.

    Attributes:
        flagged, share: how many samples it flags.
        precision: share of them that is noisy, or None where neither truth nor verdict is known, or nothing is flagged.
        kept: share of clean samples that stay.
        known: by the truth (else by the verdict)?
    """

    flagged: int
    share: float
    precision: float | None = None
    kept: float | None = None
    known: bool = False


def cost(study: Study, flags: Flags) -> Cost:
    """What these flags cost."""
    count = int(flags.sum())
    if study.truth is not None:
        clean = (study.truth.kind == CLEAN).astype(float)
    elif study.knows_verdict():
        clean = study.verdict().proba[:, 0]
    else:
        return Cost(count, count / len(study))
    lost, total = float(clean[flags].sum()), float(clean.sum())
    precision, kept = 1 - lost / count if count else None, 1 - lost / total if total else None
    return Cost(count, count / len(study), precision, kept, study.truth is not None)


def tally(verdict: Verdict, within: Flags | None) -> dict[str, int]:
    """How many samples (of a selection) the verdict takes for each kind."""
    kinds = verdict.kinds if within is None else verdict.kinds[within]
    return dict(zip(KINDS, np.bincount(kinds, minlength=len(KINDS)).tolist(), strict=True))


def spell_outline(polygon: NDArray[np.float64] | None) -> str:
    """A selection's outline as text for a link: at most 60 vertices, two decimals (the map is 20 wide)."""
    if polygon is None:
        return ""
    kept = polygon[:: -(-len(polygon) // 60)]
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in kept.tolist())


def read_outline(text: str) -> NDArray[np.float64] | None:
    """The outline (V, 2) that `spell_outline` wrote; None for anything else."""
    try:
        polygon = np.array([[float(value) for value in pair.split(",")] for pair in text.split()], np.float64)
    except ValueError:
        return None
    return polygon if polygon.ndim == 2 and polygon.shape[0] >= 3 and polygon.shape[1] == 2 else None

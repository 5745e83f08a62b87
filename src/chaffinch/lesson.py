"""The lesson: what an experiment's runs show about one noise level, as arrays that a page or a notebook draws."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .base.files import asset, read_json
from .base.linear import linear_probe
from .base.training_run import TrainingRun
from .card import KINDS
from .data import CLEAN, MISLABELLED, OOD, open_dataset
from .detectors.lsa import LinearSeparation
from .detectors.small_loss import SmallLoss
from .evidence import Evidence
from .experiment import Plan, find_plan, row_file, run_folder, start_file
from .metrics.detection import auroc, decision
from .projection import umap
from .workspace import pack, unpack

Array = NDArray[np.float32]
Flags = NDArray[np.bool_]

NAME = "lesson"
"""The experiment that it is told from; also the job of the small version that is run from the app."""

TEACHER = "pls-lsa"
"""The trainer whose epochs the lesson goes through: its two detectors take turns."""

FIRST = 0.4
"""The noise level that it begins with: the one of the bundled dataset."""

REFERENCE: dict[str, Any] = {
    "title": "32 x 32 CNWL (red mini-ImageNet), PreActResNet-18, best test accuracy",
    "noises": (0.2, 0.4, 0.6, 0.8),
    "rows": {
        "mixup": (0.4910, 0.4640, 0.4058, 0.3358),
        "pls": (0.6325, 0.6042, 0.5534, 0.4803),
        "pls-lsa": (0.6443, 0.6114, 0.5718, 0.4953),
        "pls-lsa-plus": (0.6652, 0.6342, 0.5941, 0.5203),
    },
}
"""What the paper reports (Albert et al., ECCV 2024, arXiv 2407.05528)."""


@dataclass(frozen=True)
class Story:
    """One noise level of the experiment. Arrays are in the order of the draw's N samples.

    Attributes:
        dataset: name of the draw.
        xy: (N, 2) UMAP of the features of the contrastive start.
        plane: (N, 2) the same features along the best line between foreign pictures and the others (higher = more
            foreign), and along the direction in which they differ most besides; both of mean 0 and deviation 1.
        linear_scores, loss_scores: (N,) suspicion by linear separation and by the small-loss rule on these features.
        linear_flags, loss_flags: (N,) what the two flag.
        turns: E names, the detector whose flags were in force in each epoch of the run that is shown; "" = none.
        flags: (E, N) those flags.
        accuracy: (E,) on the test samples after each epoch of it.
        lost: (N,) 0 to 1, in how many of the late looks (over all seeds) the plane flagged a sample that the
            small-loss rule, at the same look, kept.
        detail: (N,) how much there is to see in each picture: mean difference of neighbouring pixels, 0 to 255.
        told: plain figures: ``auroc_best_line`` (out of fold), ``looks`` (how many ``lost`` counts), ``seed`` of the
            run that is shown.
    """

    dataset: str
    xy: Array
    plane: Array
    linear_scores: Array
    loss_scores: Array
    linear_flags: Flags
    loss_flags: Flags
    turns: tuple[str, ...]
    flags: Flags
    accuracy: Array
    lost: Array
    detail: Array
    told: dict[str, Any]

    def save(self, path: Path) -> Path:
        """Write it, small: half precision where that draws the same, bits for flags."""
        from .base.files import replacing

        arrays = {name: getattr(self, name).astype(np.float16) for name in _HALF}
        arrays |= {name: np.packbits(getattr(self, name), axis=-1) for name in _BITS}
        rest = pack({"dataset": self.dataset, "turns": self.turns, "told": self.told, "n": len(self.xy)})
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, rest=rest, **arrays)
        return path

    @classmethod
    def load(cls, path: Path) -> Story:
        """Read what `save` wrote.

        Raises:
            InputError: it is not there, or is something else.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                rest = unpack(archive["rest"])
                arrays = {name: archive[name].astype(np.float32) for name in _HALF}
                bits = {name: np.unpackbits(archive[name], axis=-1, count=rest["n"]).astype(bool) for name in _BITS}
        except (OSError, EOFError, ValueError, KeyError, BadZipFile) as error:
            raise InputError(
                f"{path} is not a story of the lesson ({error}); run 'chaffinch experiment lesson'"
            ) from error
        return cls(dataset=rest["dataset"], turns=tuple(rest["turns"]), told=rest["told"], **arrays, **bits)


_HALF = ("xy", "plane", "linear_scores", "loss_scores", "accuracy", "lost", "detail")
_BITS = ("linear_flags", "loss_flags", "flags")


def tell(plan: Plan, noise: float, folder: Path, report: Callable[[str, float], None] | None = None) -> Story:
    """Make the story of one noise level from the runs of an experiment.

    Args:
        plan: the experiment; `TEACHER` is among its trainers.
        noise: one of its levels.
        folder: where its runs are.
        report: progress.

    Raises:
        InputError: its start, or the runs of `TEACHER` at this level, are not there.
    """
    from .encoders.checkpoint import load_encoder

    say = report or (lambda what, share: None)
    dataset = open_dataset(plan.dataset(noise))
    assert dataset.truth is not None
    assert dataset.observed.images is not None
    images, kind, y = np.asarray(dataset.observed.images), dataset.truth.kind, dataset.observed.labels
    if not start_file(plan, noise, folder).exists():
        raise InputError(f"the start of {noise:.0%} noise is not in {folder}; run 'chaffinch experiment {plan.name}'")
    runs = [TrainingRun(run_folder(plan, (TEACHER, noise, seed), folder)) for seed in plan.seeds]
    X = load_encoder(start_file(plan, noise, folder)).embed(images, progress=lambda done: say("features", done / 3))
    say("detectors", 1 / 3)
    evidence = Evidence(dataset.observed, X)
    line, rule = LinearSeparation(), SmallLoss()
    for detector in (line, rule):
        detector.fit(**evidence.gather(detector))
    plane, best = best_line(X, kind == OOD)
    say("map", 1 / 2)
    xy = umap(X, evidence.neighbors, progress=lambda done: say("map", 1 / 2 + done / 2))
    shown = runs[0]
    force = [shown.in_force(e) for e in range(len(shown.epochs))]
    lost, looks = lost_by_the_plane(runs, y)
    return Story(
        dataset=dataset.name, xy=xy, plane=plane,
        linear_scores=line.scores_.astype(np.float32), loss_scores=rule.scores_.astype(np.float32),
        linear_flags=line.flags_, loss_flags=rule.flags_,
        turns=tuple(detector for _, detector in force), flags=np.stack([flags for flags, _ in force]),
        accuracy=np.array([epoch["accuracy"] for epoch in shown.epochs], np.float32),
        lost=lost, detail=detail(images),
        told={"auroc_best_line": best, "looks": looks, "seed": plan.seeds[0]},
    )  # fmt: skip


def tell_all(plan: Plan, folder: Path, report: Callable[[str, float], None] | None = None) -> list[Path]:
    """Make the stories of an experiment, ``NAME-0.6.npz`` for 60 % noise, of the levels whose runs are all done.

    Args:
        plan, folder: the experiment; stories go beside its results.
        report: progress.

    Returns:
        Those that are there now.
    """
    there = []
    for noise in plan.noises:
        rows = [row_file(plan, (TEACHER, noise, seed), folder) for seed in plan.seeds]
        if TEACHER not in plan.trainers or not all(row.exists() for row in rows):
            continue
        path = folder / f"{plan.name}-{noise:g}.npz"
        if not path.exists() or path.stat().st_mtime < max(row.stat().st_mtime for row in rows):
            tell(plan, noise, folder, partial(_about, report, f"{noise:.0%} noise")).save(path)
        there.append(path)
    return there


def _about(report: Callable[[str, float], None] | None, level: str, what: str, share: float) -> None:
    if report:
        report(f"{level}: {what}", share)


def best_line(X: Array, foreign: Flags) -> tuple[Array, float | None]:
    """Features along the best line between foreign pictures and the others, and along what else there is most of.

    Args:
        X: (N, D) features.
        foreign: (N,) which are foreign.

    Returns:
        (N, 2) both of mean 0 and deviation 1; and the AUROC of such a line on samples that it was not fitted on.
    """
    probe = linear_probe(X, foreign.astype(np.int64), 2)
    weights = probe.head[0][1] - probe.head[0][0]
    centred = X.astype(np.float64) - X.mean(0, dtype=np.float64)
    along = centred @ (weights / np.linalg.norm(weights))
    rest = centred - np.outer(along, along @ centred) / (along @ along)  # uncorrelated with what lies along the line
    across = rest @ np.linalg.svd(rest, full_matrices=False)[2][0]
    out = np.stack([along, across], axis=1)
    return (out / out.std(0)).astype(np.float32), auroc(probe.pred_probs[:, 1], foreign)


def turned(plane: Array, degrees: float) -> NDArray[np.float64]:
    """(N,) what a line through the plane's origin says when it is turned away from the best one."""
    angle = np.deg2rad(degrees)
    out: NDArray[np.float64] = plane.astype(np.float64) @ (np.cos(angle), np.sin(angle))
    return out


def lost_by_the_plane(runs: list[TrainingRun], y: NDArray[np.int64]) -> tuple[Array, int]:
    """In how many late looks the plane flagged a sample that the small-loss rule kept.

    Args:
        runs: of a trainer that uses the linear detector; the second half of their epochs counts.
        y: (N,) given labels.

    Returns:
        (N,) shares, and how many looks they are of.
    """
    found = []
    for run in runs:
        for e in range(len(run.epochs) // 2, len(run.epochs)):
            record = run.epoch(e)
            if record.detector != "lsa":
                continue
            rule = SmallLoss(threshold=float(run.about["parameters"]["threshold"]))
            rule.fit(None, y, pred_probs=np.exp(record.log_probs.astype(np.float64)))
            found.append(record.flags & ~rule.flags_)
    return (np.mean(found, axis=0) if found else np.zeros(len(y))).astype(np.float32), len(found)


def detail(images: NDArray[np.uint8]) -> Array:
    """(N,) mean absolute difference of neighbouring pixels (total variation) of pictures (N, H, W[, 3])."""
    x = images.astype(np.float32)
    down, right = np.abs(np.diff(x, axis=1)), np.abs(np.diff(x, axis=2))
    axes = tuple(range(1, x.ndim))
    out: Array = (down.mean(axes) + right.mean(axes)) / 2
    return out


def culprits(story: Story, kind: NDArray[np.int8]) -> NDArray[np.int64]:
    """Positions of the clean pictures that the plane throws away and the small-loss rule keeps, the worst first."""
    chosen = np.flatnonzero((kind == CLEAN) & (story.lost > 0))
    return chosen[np.argsort(-story.lost[chosen], kind="stable")]


def results(name: str = NAME, folder: Path | None = None) -> dict[str, Any]:
    """What an experiment has found: plan, rows, starts and table; the shipped results unless a folder is given.

    Raises:
        InputError: there are none.
    """
    found: dict[str, Any] = read_json(folder / f"{name}.json" if folder else asset("experiments", f"{name}.json"))
    return found


def stories(name: str = NAME, folder: Path | None = None) -> dict[float, Path]:
    """Noise level -> file of its story, those that there are."""
    where = folder or asset("experiments")
    found = {}
    for path in where.glob(f"{name}-*.npz"):
        if level := re.fullmatch(rf"{re.escape(name)}-([\d.]+)", path.stem):
            found[float(level[1])] = path
    return dict(sorted(found.items()))


# What the results say, in figures and in sentences: no sentence states what the numbers do not.

NAMES = {
    "mixup": "no detection", "small-loss": "small loss only", "lsa": "plane only", "alternate": "alternating",
    "pls": "PLS", "pls-lsa": "PLS-LSA", "pls-lsa-plus": "PLS-LSA+", "oracle": "told the truth",
}  # fmt: skip
"""What the lesson calls the trainers."""

TURNS = {"": "nobody", "lsa": "the plane", "small-loss": "small loss"}
"""What it calls the detectors."""

MEASURES = {
    "auroc_ood": ("AUROC, foreign", "Chance that a foreign picture is ranked above any other one; 0.5 is guessing."),
    "balanced_accuracy": ("Balanced accuracy", "Mean of the share of noise found and the share of clean kept."),
    "clean_kept": ("Clean kept", "Share of the clean pictures that are not flagged."),
    "precision": ("Precision", "Share of the flagged pictures that are noise of either kind."),
}
"""Figures of a detection at work that the experiment has measured: name, and what it means."""

READINGS = {"best": "accuracy_best", "last": "accuracy_last"}
"""Which accuracy counts: that of the best epoch on the test pictures, as in the paper, or that of the last."""

NEAR, LARGELY = 0.95, 0.85  # AUROC from which a line separates almost, and largely
SIMPLER = 0.55  # chance from which one group of pictures has less to see than another
FEW = 10  # culprits below which nothing is said of what they are like


def plan_of(found: Mapping[str, Any]) -> Plan:
    """The plan that results were made by."""
    told: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found["plan"].items()}
    return Plan(**told)


def levels(found: Mapping[str, Any], told: Iterable[float]) -> list[float]:
    """Noise levels that there is anything of: rows, or a story."""
    return sorted({row["noise"] for row in found["rows"]} | set(told))


def cell(found: Mapping[str, Any], trainer: str, noise: float) -> dict[str, Any]:
    """Means and deviations of a trainer at a level; empty where it was not trained."""
    return next((row for row in found["table"] if row["trainer"] == trainer and row["noise"] == noise), {})


def percent(value: float | None, sd: float | None = None) -> str:
    """A share as a percentage with its deviation, ``84.2 ± 0.3``; a dash where there is none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if sd is None else f" ± {100 * sd:.1f}")


@dataclass(frozen=True)
class Gap:
    """How far the accuracy of one trainer is from another's, in points.

    Attributes:
        points: mean of the one minus mean of the other.
        spread: deviation of such a difference between two seeds; None with one seed of either.
        words: the two means, with their deviations.
    """

    points: float
    spread: float | None
    words: str

    @property
    def clear(self) -> bool:
        """Is it more than the spread?"""
        return self.spread is not None and abs(self.points) > self.spread

    def told(self, one: str, other: str) -> str:
        """``ONE ends 1.2 points above OTHER``, and how that compares with the spread."""
        text = f"{one} ends {abs(self.points):.1f} points {'above' if self.points >= 0 else 'below'} {other}"
        if self.spread is None:
            return f"{text} ({self.words}); with one seed, this may be chance"
        return f"{text} ({self.words}), {'more' if self.clear else 'less'} than the seeds' spread ({self.spread:.1f})"


def gap(found: Mapping[str, Any], noise: float, one: str, other: str, key: str) -> Gap | None:
    """How far one trainer's accuracy is from another's; None where one of them is missing."""
    rows = [cell(found, trainer, noise) for trainer in (one, other)]
    values, sds = [row.get(key) for row in rows], [row.get(f"{key}_sd") for row in rows]
    if values[0] is None or values[1] is None:
        return None
    spread = None if sds[0] is None or sds[1] is None else 100 * float(np.hypot(sds[0], sds[1]))
    words = " against ".join(percent(value, sd) for value, sd in zip(values, sds, strict=True))
    return Gap(100 * (values[0] - values[1]), spread, f"{words} %")


def detection(scores: Array, flags: Flags, kind: NDArray[np.int8]) -> dict[str, float | None]:
    """How well a detector's scores and flags find the noise: AUROC, and shares; None where nobody is of that kind."""
    held = decision(flags, kind)
    found = {code: float(flags[kind == code].mean()) if (kind == code).any() else None for code in (MISLABELLED, OOD)}
    return {
        "auroc_ood": auroc(scores.astype(np.float64), kind == OOD),
        "foreign_found": found[OOD],
        "wrong_found": found[MISLABELLED],
        "clean_kept": held["clean_kept"],
        "precision": held["precision"],
    }


def cut(scores: Array, flags: Flags) -> float:
    """Between the least suspicious flagged sample and the most suspicious one that is not."""
    ends = [*([scores[flags].min()] if flags.any() else []), *([scores[~flags].max()] if not flags.all() else [])]
    return float(np.mean(ends))


@dataclass(frozen=True)
class Turning:
    """The line of a story, turned away from the best one, angle by angle.

    Attributes:
        degrees: (A,) angles; 0 = the best line.
        edges: (B + 1,) of the steps of the histograms.
        shares: (A, 3, B) share of each kind of sample in each step along the line.
        auroc: (A,) of foreign pictures against the others; NaN where there is only one side.
    """

    degrees: NDArray[np.int64]
    edges: NDArray[np.float64]
    shares: NDArray[np.float64]
    auroc: NDArray[np.float64]


def turn(plane: Array, kind: NDArray[np.int8], *, step: int = 5, steps: int = 40) -> Turning:
    """Turn the line a quarter to either side.

    Args:
        plane: (N, 2) as in `Story`.
        kind: (N,) codes of `KINDS`.
        step: degrees between two angles.
        steps: of the histograms.
    """
    degrees = np.arange(-90, 91, step)
    along = np.stack([turned(plane, float(angle)) for angle in degrees])
    end = float(np.quantile(np.abs(along), 0.998))
    edges = np.linspace(-end, end, steps + 1)
    shares = np.zeros((len(degrees), len(KINDS), steps))
    for a, values in enumerate(along.clip(-end, end)):
        for code in np.unique(kind):
            shares[a, code] = np.histogram(values[kind == code], edges)[0] / (kind == code).sum()
    found = [auroc(values, kind == OOD) for values in along]
    return Turning(degrees, edges, shares, np.array([np.nan if value is None else value for value in found]))


def line_told(story: Story) -> str:
    """How well the best line separates foreign pictures, on pictures that it was not fitted on."""
    value = story.told["auroc_best_line"]
    if value is None:
        return "There are no foreign pictures here, or nothing else: there is nothing to separate."
    far = "almost" if value >= NEAR else "largely, though not cleanly," if value >= LARGELY else "not"
    return (
        f"Measured on pictures that it was not fitted on, the best line ranks a foreign picture above another one in "
        f"{value:.1%} of all pairs (AUROC {value:.3f}): here, foreign pictures are **{far}** linearly separable."
    )


def detectors_told(linear: Mapping[str, float | None], rule: Mapping[str, float | None]) -> str:
    """What the plane makes of the seeds that the small-loss rule gave it."""
    one, other = linear["auroc_ood"], rule["auroc_ood"]
    if one is None or other is None:
        return "There are no foreign pictures here, or nothing else."
    better = "better than" if one > other + 0.005 else "worse than" if one < other - 0.005 else "as well as"
    near = "nearly perfect" if one >= NEAR else "good, not perfect" if one >= LARGELY else "far from perfect"
    text = (
        f"Without the truth, the plane ranks foreign pictures **{better}** the rule that seeded it (AUROC {one:.3f} "
        f"against {other:.3f}); that is **{near}**."
    )
    missed = linear["wrong_found"]
    if missed is not None:
        text += f" Of the wrong labels it flags {missed:.0%}, the rule {rule['wrong_found'] or 0:.0%}."
    return text


def surprise(found: Mapping[str, Any], noise: float, key: str = "accuracy_best") -> list[str]:
    """What training on each detection was good for, at one level, in sentences; as far as it was trained."""
    out, at = [], partial(cell, found, noise=noise)
    if (plane := gap(found, noise, "lsa", "mixup", key)) is not None:
        text = plane.told("Training on what the **plane alone** keeps", "**no detection** (mixup)")
        if plane.clear and plane.points > 0:
            text += ": here the paper's surprise does not show"
        elif plane.clear:
            text += ": leaving out what it flags costs more than it saves"
        elif plane.spread is not None:
            text += ": the detection gains nothing that counts"
        out.append(f"{text}.")
    rule = gap(found, noise, "lsa", "small-loss", key)
    finds = [at(trainer).get("auroc_ood") for trainer in ("lsa", "small-loss")]
    if rule is not None and finds[0] is not None and finds[1] is not None:
        better = finds[0] > finds[1]
        joined = "and" if better == (rule.clear and rule.points > 0) else "yet"
        text = (
            f"While it trains, its flags find foreign pictures {'better' if better else 'no better'} than those of "
            f"**small loss alone** (AUROC {finds[0]:.3f} against {finds[1]:.3f}), {joined} "
            + rule.told("it", "small loss alone")
            + "."
        )
        kept = [at(trainer).get("clean_kept") for trainer in ("lsa", "small-loss")]
        if None not in kept:
            text += f" It keeps {kept[0]:.0%} of the clean pictures, small loss {kept[1]:.0%}."
        out.append(text)
    if singles := [trainer for trainer in ("small-loss", "lsa") if at(trainer).get(key) is not None]:
        best = max(singles, key=lambda trainer: float(at(trainer)[key]))
        if (both := gap(found, noise, "alternate", best, key)) is not None:
            out.append(both.told("**Alternating** the two", f"the better of the two alone ({NAMES[best]})") + ".")
    if (full := gap(found, noise, TEACHER, "pls", key)) is not None:
        text = full.told("**PLS-LSA** (alternating)", "**PLS** (small loss only)")
        out.append(f"{text}; both guess a new label for what is flagged.")
    return out


def overall(found: Mapping[str, Any], key: str = "accuracy_best") -> str:
    """At how many levels the paper's two claims show: nothing from the plane alone, something from alternating."""
    noises = sorted({row["noise"] for row in found["rows"]})
    plane = [g for noise in noises if (g := gap(found, noise, "lsa", "mixup", key)) is not None]
    full = [g for noise in noises if (g := gap(found, noise, TEACHER, "pls", key)) is not None]
    if not plane and not full:
        return "The trainers that the paper's claims are about have not been compared yet."
    words = []
    if plane:
        none = sum(not (g.clear and g.points > 0) for g in plane)
        words.append(
            f"The plane alone gains nothing beyond the seeds' spread on no detection at {none} of {len(plane)} noise "
            "levels"
        )
    if full:
        more = sum(g.clear and g.points > 0 for g in full)
        words.append(f"PLS-LSA is ahead of PLS by more than the spread at {more} of {len(full)}")
    return "; ".join(words) + "."


@dataclass(frozen=True)
class Culprits:
    """The clean pictures that the plane throws away and the small-loss rule keeps, against all other clean ones.

    Attributes:
        positions: of them, the worst first.
        share: of the clean pictures.
        simpler: chance that one of them has less to see than another clean picture, 0 to 1; None if one side is empty.
        simpler_inside: the same against clean pictures of its own class.
        classes: class -> its share among them, and among all clean pictures.
    """

    positions: NDArray[np.int64]
    share: float
    simpler: float | None
    simpler_inside: float | None
    classes: dict[str, tuple[float, float]]


def describe(story: Story, kind: NDArray[np.int8], y: NDArray[np.int64], names: Sequence[str]) -> Culprits:
    """What the culprits of a story have in common.

    Args:
        story: one noise level.
        kind: (N,) codes of `KINDS`.
        y: (N,) given labels, which are the true ones of clean pictures.
        names: of the classes.
    """
    chosen = culprits(story, kind)
    inside, clean = np.zeros(len(kind), bool), kind == CLEAN
    inside[chosen] = True
    simple = -story.detail.astype(np.float64)
    per_class = {}
    for code in np.unique(y[chosen]):
        rows = clean & (y == code)
        per_class[code] = (auroc(simple[rows], inside[rows]), int(inside[rows].sum()))
    known = [(value, n) for value, n in per_class.values() if value is not None]
    total = sum(n for _, n in known)
    return Culprits(
        positions=chosen,
        share=len(chosen) / max(int(clean.sum()), 1),
        simpler=auroc(simple[clean], inside[clean]) if len(chosen) else None,
        simpler_inside=sum(value * n for value, n in known) / total if total else None,
        classes={
            name: (float((y[chosen] == code).mean()) if len(chosen) else 0.0, float((y[clean] == code).mean()))
            for code, name in enumerate(names)
        },
    )


def culprits_told(story: Story, found: Culprits) -> list[str]:
    """Who the culprits are, in sentences: how many, how simple, of which classes."""
    n, looks = len(found.positions), story.told["looks"]
    if not looks:
        return ["There is nothing to say: the plane has had no late epoch to flag anything."]
    if not n:
        return [f"There are none: in {looks} late looks, small loss kept no clean picture that the plane flagged."]
    out = [
        f"**{n:,} clean pictures** ({found.share:.1%} of all clean ones) are flagged by the plane and kept by small "
        f"loss in at least one of {looks} late looks."
    ]
    if n < FEW or found.simpler is None or found.simpler_inside is None:
        return [*out, "They are too few to say what they have in common."]
    chance, inside = found.simpler, found.simpler_inside
    word = {1: "**simpler** than", -1: "**busier** than", 0: "**not simpler** than"}[_side(chance)]
    text = f"They are {word} other clean pictures: in {chance:.0%} of all pairs the culprit has less to see"
    if _side(chance) == 0 or _side(inside) == _side(chance):
        text += f" ({inside:.0%} within the same class)."
    else:
        text += f"; within the same class it is {inside:.0%}, so it is rather a matter of which classes they are of."
    out.append(text)
    most = max(found.classes, key=lambda name: found.classes[name][0])
    here, there = found.classes[most]
    how = "more than its share" if here > 1.2 * there else "about its share"
    return [*out, f"The largest class among them is {most}: {here:.0%}, {how} of all clean pictures ({there:.0%})."]


def _side(chance: float) -> int:
    return 1 if chance >= SIMPLER else -1 if chance <= 1 - SIMPLER else 0


@dataclass(frozen=True)
class Course:
    """A training with detectors, epoch by epoch.

    Attributes:
        turns: E names of the detector in force, "" = none.
        flagged: (E, 3) share of each kind of sample that is flagged; NaN where nobody is of that kind.
        accuracy: (E,) after the epoch; NaN where it was not measured.
    """

    turns: tuple[str, ...]
    flagged: NDArray[np.float64]
    accuracy: NDArray[np.float64]


def course(story: Story, kind: NDArray[np.int8]) -> Course:
    """What is flagged in each epoch of the run that a story shows."""
    flagged = np.full((len(story.turns), len(KINDS)), np.nan)
    for code in np.unique(kind):
        flagged[:, code] = story.flags[:, kind == code].mean(1)
    return Course(story.turns, flagged, story.accuracy.astype(np.float64))


def epoch_told(seen: Course, epoch: int) -> str:
    """One epoch in a sentence: whose turn it is, what is flagged, and how it ended.

    Args:
        seen: the course.
        epoch: from 0.
    """
    who = seen.turns[epoch]
    text = f"**Epoch {epoch + 1} of {len(seen.turns)}:** "
    if not who:
        text += "nothing is flagged yet"
    else:
        clean, wrong, foreign = seen.flagged[epoch]
        parts = [
            f"{share:.0%} of the {name}"
            for share, name in ((clean, "clean pictures"), (wrong, "wrong labels"), (foreign, "foreign pictures"))
            if not np.isnan(share)
        ]
        text += f"it is the turn of **{TURNS.get(who, who)}**; {', '.join(parts)} are flagged"
    if not np.isnan(seen.accuracy[epoch]):
        text += f". Accuracy afterwards: {seen.accuracy[epoch]:.1%}"
    return f"{text}."


def turns_told(story: Story, kind: NDArray[np.int8]) -> list[str]:
    """What alternation does, from the flags of the run: what each detector keeps, and what its turn brings back."""
    seen, out = course(story, kind), []
    for who in ("lsa", "small-loss"):
        rows = [e for e, name in enumerate(seen.turns) if name == who]
        if rows:
            clean, _, foreign = seen.flagged[rows].mean(0)
            text = f"In the {len(rows)} epochs of **{TURNS[who]}**, {1 - clean:.0%} of the clean pictures are kept"
            text += "" if np.isnan(foreign) else f" and {foreign:.0%} of the foreign ones flagged"
            out.append(f"{text}.")
    for loser, other in (("lsa", "small-loss"), ("small-loss", "lsa")):
        back = []
        for e, pair in enumerate(pairwise(seen.turns)):
            lost = story.flags[e] & (kind == CLEAN)
            if pair == (loser, other) and lost.any():
                back.append(1 - float(story.flags[e + 1][lost].mean()))
        if back:
            out.append(
                f"Of the clean pictures that {TURNS[loser]} throws away, the next turn of {TURNS[other]} brings back "
                f"**{fmean(back):.0%}**."
            )
    return out


def cost(found: Mapping[str, Any]) -> tuple[float, list[str]]:
    """Seconds that all trainings and starts of an experiment took together, and the devices they ran on."""
    starts = found["starts"].values()
    seconds = sum(row["seconds"] for row in found["rows"]) + sum(start["seconds"] for start in starts)
    return float(seconds), sorted({start["device"] for start in starts})


# A small version to run oneself.


@dataclass(frozen=True)
class Trial:
    """A small experiment: one noise level, one seed, few pictures.

    Attributes:
        noise: level.
        trainers: slugs.
        samples, epochs, start_epochs: budget.
    """

    noise: float
    trainers: tuple[str, ...]
    samples: int
    epochs: int
    start_epochs: int

    @property
    def plan(self) -> Plan:
        """As the experiment's module wants it."""
        return replace(
            find_plan(NAME), trainers=self.trainers, noises=(self.noise,), seeds=(0,), samples=self.samples,
            epochs=self.epochs, start_epochs=self.start_epochs,
        )  # fmt: skip

    def command(self, folder: Path) -> tuple[str, ...]:
        """Arguments of ``chaffinch`` that run it into a folder, or go on with it."""
        words = ["experiment", NAME, "--noise", f"{self.noise:g}", "--seeds", "1"]
        for trainer in self.trainers:
            words += ["--trainer", trainer]
        words += ["--samples", str(self.samples), "--epochs", str(self.epochs)]
        return (*words, "--start-epochs", str(self.start_epochs), "--out", str(folder))

    @classmethod
    def of(cls, command: Sequence[str]) -> Trial:
        """The trial behind a command that `command` gave."""
        pairs = list(zip(command[2::2], command[3::2], strict=True))
        told = dict(pairs)
        return cls(
            noise=float(told["--noise"]), trainers=tuple(value for key, value in pairs if key == "--trainer"),
            samples=int(told["--samples"]), epochs=int(told["--epochs"]), start_epochs=int(told["--start-epochs"]),
        )  # fmt: skip


def progress(trial: Trial, folder: Path) -> tuple[dict[str, list[float]], float | None]:
    """Accuracy of every trainer after each epoch so far, and about how many seconds are left (None = unknown)."""
    curves, spent, rest = {}, [], 0  # type: dict[str, list[float]], list[float], int
    plan = trial.plan
    for trainer in trial.trainers:
        try:
            epochs = TrainingRun(run_folder(plan, (trainer, trial.noise, 0), folder)).epochs
        except InputError:  # its turn has not come
            epochs = []
        spent += [epoch["seconds"] for epoch in epochs]
        rest += trial.epochs - len(epochs)
        if epochs:
            curves[trainer] = [epoch["accuracy"] for epoch in epochs]
    return curves, fmean(spent) * rest if spent else None

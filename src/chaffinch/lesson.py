"""The lesson: what an experiment's runs show about one noise level, as arrays that a page or a notebook draws."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .base.files import asset, read_json
from .base.linear import linear_probe
from .base.training_run import TrainingRun
from .data import CLEAN, OOD, open_dataset
from .detectors.lsa import LinearSeparation
from .detectors.small_loss import SmallLoss
from .evidence import Evidence
from .experiment import Plan, row_file, run_folder, start_file
from .metrics.detection import auroc
from .projection import umap
from .workspace import pack, unpack

Array = NDArray[np.float32]
Flags = NDArray[np.bool_]

TEACHER = "pls-lsa"
"""The trainer whose epochs the lesson goes through: its two detectors take turns."""

REFERENCE = {
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
        except (OSError, ValueError, KeyError) as error:
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
    images, kind, y = dataset.observed.images, dataset.truth.kind, dataset.observed.labels
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


def results(name: str = "lesson", folder: Path | None = None) -> dict[str, Any]:
    """What an experiment has found: plan, rows, starts and table; the shipped results unless a folder is given.

    Raises:
        InputError: there are none.
    """
    found: dict[str, Any] = read_json(folder / f"{name}.json" if folder else asset("experiments", f"{name}.json"))
    return found


def stories(name: str = "lesson", folder: Path | None = None) -> dict[float, Path]:
    """Noise level -> file of its story, those that there are."""
    where = folder or asset("experiments")
    found = {}
    for path in where.glob(f"{name}-*.npz"):
        if level := re.fullmatch(rf"{re.escape(name)}-([\d.]+)", path.stem):
            found[float(level[1])] = path
    return dict(sorted(found.items()))

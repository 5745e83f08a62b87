"""Experiments: trainers x noise levels x seeds at one budget, resumable, spread over as many processes as wanted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .base.files import read_json, write_json
from .base.training_run import TrainingRun
from .data import NoisyDataset, open_dataset
from .metrics.detection import decision, ranking

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Plan:
    """What is compared, and the budget that all share.

    Attributes:
        name: of the experiment.
        trainers: slugs.
        noises: shares of noisy samples in the draws of ``fashion-web`` (of which 5 in 8 are foreign).
        seeds: of weights, order and augmentation; the draw stays the same.
        samples: of a draw; None = as many as there are.
        epochs, batch, learning_rate, weight_decay: of each training.
        start_epochs, start_batch: of the contrastive encoder that all trainings on a draw start from.
        architecture: of all networks.
        parameters: trainer -> what it is told that differs from its defaults.
    """

    name: str
    trainers: tuple[str, ...]
    noises: tuple[float, ...]
    seeds: tuple[int, ...]
    samples: int | None = None
    epochs: int = 30
    batch: int = 256
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    start_epochs: int = 40
    start_batch: int = 512
    architecture: str = "half-preact-resnet-32-64-128"
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)

    def dataset(self, noise: float) -> str:
        """The draw of a noise level."""
        return f"fashion-web:noise={noise:g}" + ("" if self.samples is None else f",n={self.samples}")

    def cells(self) -> list[tuple[str, float, int]]:
        """Every training: trainer, noise, seed."""
        return [(t, n, s) for s, n, t in product(self.seeds, self.noises, self.trainers)]


PLANS = {
    "lesson": Plan(
        "lesson",
        trainers=("mixup", "small-loss", "lsa", "alternate", "pls", "pls-lsa", "oracle"),
        noises=(0.2, 0.4, 0.6, 0.8),
        seeds=(0, 1, 2),
    )
}


def find_plan(name: str) -> Plan:
    """The plan of an experiment.

    Raises:
        InputError: there is none of this name.
    """
    if name not in PLANS:
        raise InputError(f"there is no experiment called {name!r}; there are {', '.join(PLANS)}")
    return PLANS[name]


def run_cell(plan: Plan, cell: tuple[str, float, int], folder: Path, report: Report | None = None) -> dict[str, Any]:
    """One training of the plan, from where it stood; its row, stored beside its run.

    Args:
        plan: the experiment.
        cell: trainer, noise, seed.
        folder: of the experiment.
        report: progress.

    Raises:
        InputError: something cannot be trained; the message says what.
    """
    from .encoders.checkpoint import load_encoder
    from .trainers.train import Recipe, train

    trainer, noise, seed = cell
    path = folder / "rows" / f"{trainer}-{noise:g}-{seed}.json"
    said = json.loads(json.dumps(asdict(plan)))
    if path.exists() and (found := read_json(path))["plan"] == said:
        return dict(found["row"])
    dataset = open_dataset(plan.dataset(noise))
    start = load_encoder(make_start(plan, noise, folder, report))
    recipe = Recipe(
        trainer=trainer, parameters=plan.parameters.get(trainer, {}), epochs=plan.epochs, batch=plan.batch,
        learning_rate=plan.learning_rate, weight_decay=plan.weight_decay, seed=seed,
    )  # fmt: skip
    run = folder / "runs" / path.stem
    for p in train(dataset, recipe, run, start):
        if report:
            report(f"{trainer}, {noise:.0%} noise, seed {seed}", (p.epoch + p.share) / p.epochs)
    row = summary(TrainingRun(run), dataset, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"plan": said, "row": row})
    return row


def make_start(plan: Plan, noise: float, folder: Path, report: Report | None = None) -> Path:
    """Weights of the contrastive encoder of a noise level, trained on its draw unless it is there."""
    from .encoders.train import Recipe, train_encoder

    name = f"{plan.name}-{noise:g}"
    path = folder / "starts" / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        recipe = Recipe(epochs=plan.start_epochs, batch=plan.start_batch, architecture=plan.architecture)
        for p in train_encoder(open_dataset(plan.dataset(noise)), recipe, path.parent, name):
            if report:
                report(f"SimCLR start, {noise:.0%} noise", (p.epoch + p.share) / p.epochs)
    return path


def summary(run: TrainingRun, dataset: NoisyDataset, cell: tuple[str, float, int]) -> dict[str, Any]:
    """The row of a training: accuracies, and how good the flags were that it worked with.

    Detection figures are means over the epochs of the last quarter that had a detector, an even number of them, so
    that two detectors that take turns count alike; None where there was none. ``course`` has them epoch by epoch.
    """
    assert dataset.truth is not None
    kind, course = dataset.truth.kind, dict[str, list[Any]]()
    keys = ("auroc_ood", "balanced_accuracy", "clean_kept", "precision")
    before: tuple[str, NDArray[np.bool_], Any] = ("", np.zeros(len(kind), bool), None)
    for e in range(len(run.epochs)):
        detector, flags, scores = before
        found = decision(flags, kind) if detector else {}
        ranks = ranking(scores.astype(np.float64), kind) if scores is not None else {}
        row = {"accuracy": run.epochs[e]["accuracy"], "detector": detector, **found, **ranks}
        for key in ("accuracy", "detector", *keys):
            course.setdefault(key, []).append(row.get(key))
        after = run.epoch(e)
        before = (after.detector, after.flags, after.scores)
    some = [e for e, detector in enumerate(course["detector"]) if detector]
    some = some[-max(2, len(run.epochs) // 8 * 2) :]
    trainer, noise, seed = cell
    known = {key: [course[key][e] for e in some if course[key][e] is not None] for key in keys}
    return {
        "trainer": trainer,
        "noise": noise,
        "seed": seed,
        "accuracy_best": max(course["accuracy"]),
        "accuracy_last": course["accuracy"][-1],
        **{key: fmean(values) if values else None for key, values in known.items()},
        "seconds": round(sum(epoch["seconds"] for epoch in run.epochs), 1),
        "course": course,
    }


def collect(plan: Plan, folder: Path) -> dict[str, Any]:
    """What is known so far: the plan, the rows that are there in its order, the starts, and means over seeds."""
    rows, starts = [], {}
    for trainer, noise, seed in plan.cells():
        path = folder / "rows" / f"{trainer}-{noise:g}-{seed}.json"
        if path.exists():
            rows.append(read_json(path)["row"])
    for noise in plan.noises:
        path = folder / "starts" / f"{plan.name}-{noise:g}.json"
        if path.exists():
            card = read_json(path)
            starts[f"{noise:g}"] = {key: card[key] for key in ("device", "seconds", "epochs", "sha256")}
    return {"plan": json.loads(json.dumps(asdict(plan))), "rows": rows, "starts": starts, "table": table(rows)}


def table(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and standard deviations over the seeds: one row a trainer and noise level."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["trainer"], row["noise"]), []).append(row)
    keys = ("accuracy_best", "accuracy_last", "auroc_ood", "balanced_accuracy", "clean_kept", "precision")
    out = []
    for (trainer, noise), same in groups.items():
        means: dict[str, Any] = {"trainer": trainer, "noise": noise, "seeds": len(same)}
        for key in keys:
            values = [row[key] for row in same if row[key] is not None]
            means[key] = fmean(values) if values else None
            means[f"{key}_sd"] = stdev(values) if len(values) > 1 else None
        out.append(means)
    return out

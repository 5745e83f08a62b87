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
from .base.files import digest, read_json, write_json
from .base.methods import find_method, method_options
from .base.training_run import TrainingRun
from .data import NoisyDataset, open_dataset
from .data.fashion_web import Draw
from .metrics.detection import decision, ranking
from .spec import check_seed

Report = Callable[[str, float], None]
Cell = tuple[str, float, int]


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
        warmup: share of the epochs after which trainers that warm up begin to divide the samples; 0 = as they would.
        parameters: trainer -> what else it is told that differs from its defaults.
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
    warmup: float = 0.0
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for trainer in self.trainers:
            self.told(trainer)
        if not (self.trainers and self.noises and self.seeds):
            raise InputError("an experiment needs at least one trainer, one noise level and one seed")
        for seed in self.seeds:
            check_seed(seed)
        for noise in self.noises:
            Draw.parse(self.dataset(noise).partition(":")[2])
        if min(self.epochs, self.start_epochs) < 1:
            raise InputError(f"training needs at least one epoch, got {min(self.epochs, self.start_epochs)}")

    def dataset(self, noise: float) -> str:
        """The draw of a noise level."""
        return f"fashion-web:noise={noise:g}" + ("" if self.samples is None else f",n={self.samples}")

    def cells(self) -> list[Cell]:
        """Every training: trainer, noise, seed."""
        return [(t, n, s) for s, n, t in product(self.seeds, self.noises, self.trainers)]

    def told(self, trainer: str) -> dict[str, Any]:
        """What a trainer is told that differs from its defaults.

        Raises:
            InputError: there is no such trainer, or it has no such parameter.
        """
        given = self.parameters.get(trainer, {})
        options = method_options(find_method("trainer", trainer), given)
        if self.warmup and "warmup" in options:
            given = {"warmup": max(1, round(self.warmup * self.epochs))} | given
        return given

    def budget(self, trainer: str) -> dict[str, Any]:
        """All that a training depends on besides its cell: plans that agree in it share rows."""
        values = {k: v for k, v in asdict(self).items() if k not in ("trainers", "noises", "seeds", "parameters")}
        return json.loads(json.dumps(values | {"parameters": self.parameters.get(trainer, {})}))  # type: ignore[no-any-return]


PLANS = {
    "lesson": Plan(
        "lesson",
        trainers=("mixup", "small-loss", "lsa", "alternate", "pls", "pls-lsa", "oracle"),
        noises=(0.2, 0.4, 0.6, 0.8),
        seeds=(0, 1, 2),
        samples=3_000,
        epochs=24,
        batch=64,
        learning_rate=0.05,
        start_epochs=100,
        start_batch=256,
        warmup=1 / 6,
        parameters={
            "lsa": {"layer": "final"},
            "alternate": {"layer": "final"},
            "pls-lsa": {"layer": "final", "balance": 1.0},
        },
    )
}
"""Of the lesson: few pictures and small batches, so that a laptop gets through many epochs and steps. Detectors keep
the paper's threshold. What differs: the plane cuts the last layer, where these small networks separate foreign pictures
best; an epoch is 47 steps, a quarter of one of the paper's smallest, so warming up takes a sixth of the epochs; and
PLS-LSA has PLS's balance penalty, as on WebVision in the paper. Without it one class of seven was lost: all shirts
were flagged and guessed to be something else (recall 0.00, accuracy 0.74 against 0.84 of mixup at 20 % noise).
"""


def find_plan(name: str) -> Plan:
    """The plan of an experiment.

    Raises:
        InputError: there is none of this name.
    """
    if name not in PLANS:
        raise InputError(f"there is no experiment called {name!r}; there are {', '.join(PLANS)}")
    return PLANS[name]


def run(plan: Plan, folder: Path, share: tuple[int, int] = (1, 1), report: Report | None = None) -> dict[str, Any]:
    """Train what is missing of an experiment, and collect what is there.

    It can be cut off at any moment: a row is kept as soon as its training is done, a training goes on from its last
    whole epoch. After every row ``NAME.json`` in the folder holds what is known so far.

    Args:
        plan: what.
        folder: where.
        share: (i, n) only every n-th training, from the i-th on, so that n processes do the whole.
        report: progress, of the whole.

    Returns:
        As `collect`.

    Raises:
        InputError: something cannot be trained; the message says what.
    """
    part, parts = share
    cells = plan.cells()[part - 1 :: parts]
    folder.mkdir(parents=True, exist_ok=True)
    for i, cell in enumerate(cells):

        def told(what: str, done: float, i: int = i) -> None:
            if report:
                report(f"{i + 1} of {len(cells)}: {what}", (i + done) / len(cells))

        run_cell(plan, cell, folder, told)
        write_json(folder / f"{plan.name}.json", collect(plan, folder))
    return collect(plan, folder)


def run_cell(plan: Plan, cell: Cell, folder: Path, report: Report) -> dict[str, Any]:
    """One training of the plan, from where it stood; its row, stored beside its run."""
    from .encoders.checkpoint import load_encoder
    from .trainers.train import Recipe, train

    trainer, noise, seed = cell
    if (row := stored_row(plan, cell, folder)) is not None:
        return row
    dataset = open_dataset(plan.dataset(noise))
    start = load_encoder(make_start(plan, noise, folder, lambda what, done: report(what, START * done)))
    recipe = Recipe(
        trainer=trainer, parameters=plan.told(trainer), epochs=plan.epochs, batch=plan.batch,
        learning_rate=plan.learning_rate, weight_decay=plan.weight_decay, seed=seed,
    )  # fmt: skip
    where = run_folder(plan, cell, folder)
    for p in train(dataset, recipe, where, start):
        report(f"{trainer}, {noise:.0%} noise, seed {seed}", START + (1 - START) * (p.epoch + p.share) / p.epochs)
    row = summary(TrainingRun(where), dataset, cell)
    path = row_file(plan, cell, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, row)
    return row


START = 0.3
"""Share of the progress of a training that is its start's."""


def stored_row(plan: Plan, cell: Cell, folder: Path) -> dict[str, Any] | None:
    """The row of a training that was done at the plan's budget, if there is one."""
    path = row_file(plan, cell, folder)
    return dict(read_json(path)) if path.exists() else None


def run_folder(plan: Plan, cell: Cell, folder: Path) -> Path:
    """Where the run of a cell is; trainings at another budget are elsewhere."""
    trainer, noise, seed = cell
    return folder / "runs" / f"{trainer}-{noise:g}-{seed}-{digest(plan.budget(trainer))[:6]}"


def row_file(plan: Plan, cell: Cell, folder: Path) -> Path:
    """Where the row of a cell is."""
    return folder / "rows" / f"{run_folder(plan, cell, folder).name}.json"


def start_file(plan: Plan, noise: float, folder: Path) -> Path:
    """Where the weights are that all trainings on a draw start from."""
    key = digest(plan.samples, plan.start_epochs, plan.start_batch, plan.architecture)
    return folder / "starts" / f"{plan.name}-{noise:g}-{key[:6]}.safetensors"


def make_start(plan: Plan, noise: float, folder: Path, report: Report) -> Path:
    """Weights of the contrastive encoder of a noise level, trained on its draw unless they are there."""
    from filelock import FileLock

    from .encoders.train import Recipe, train_encoder

    path = start_file(plan, noise, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    recipe = Recipe(epochs=plan.start_epochs, batch=plan.start_batch, architecture=plan.architecture)
    with FileLock(path.with_suffix(".lock")):  # a process that needs it too waits for the one that makes it
        if not path.exists():
            for p in train_encoder(open_dataset(plan.dataset(noise)), recipe, path.parent, path.stem):
                report(f"SimCLR start, {noise:.0%} noise", (p.epoch + p.share) / p.epochs)
    return path


def summary(run: TrainingRun, dataset: NoisyDataset, cell: Cell) -> dict[str, Any]:
    """The row of a training: accuracies, and how good the flags were that it worked with.

    Detection figures are means over the epochs of the last quarter that had a detector, an even number of them, so
    that two detectors that take turns count alike; None where there was none. ``correlation`` is Spearman's, between
    the linear detector's scores and the losses that the small-loss rule goes by, after the same epochs. ``course`` has
    all figures epoch by epoch.
    """
    from scipy.stats import spearmanr

    assert dataset.truth is not None
    kind, course, alike = dataset.truth.kind, dict[str, list[Any]](), list[float]()
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
        if after.detector == "lsa" and after.scores is not None and e >= len(run.epochs) * 3 // 4:
            alike.append(float(spearmanr(after.scores, after.losses(dataset.observed.labels)).statistic))
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
        "correlation": fmean(alike) if alike else None,
        "seconds": round(sum(epoch["seconds"] for epoch in run.epochs), 1),
        "course": course,
    }


def collect(plan: Plan, folder: Path) -> dict[str, Any]:
    """What is known so far: the plan, the rows that are there in its order, the starts, and means over seeds."""
    rows, starts = [], {}
    for cell in plan.cells():
        if (row := stored_row(plan, cell, folder)) is not None:
            rows.append(row)
    for noise in plan.noises:
        path = start_file(plan, noise, folder).with_suffix(".json")
        if path.exists():
            card = read_json(path)
            starts[f"{noise:g}"] = {key: card[key] for key in ("device", "seconds", "epochs", "sha256")}
    return {"plan": json.loads(json.dumps(asdict(plan))), "rows": rows, "starts": starts, "table": table(rows)}


COLUMNS = {
    "accuracy_best": "best accuracy",
    "accuracy_last": "last accuracy",
    "auroc_ood": "OOD AUROC",
    "balanced_accuracy": "balanced accuracy",
    "clean_kept": "clean kept",
    "precision": "precision",
    "correlation": "rank correlation",
}
"""Figures of a row that are averaged over the seeds."""


def table(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means and standard deviations over the seeds: one row a trainer and noise level."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["trainer"], row["noise"]), []).append(row)
    out = []
    for (trainer, noise), same in groups.items():
        means: dict[str, Any] = {"trainer": trainer, "noise": noise, "seeds": len(same)}
        for key in COLUMNS:
            values = [row[key] for row in same if row[key] is not None]
            means[key] = fmean(values) if values else None
            means[f"{key}_sd"] = stdev(values) if len(values) > 1 else None
        out.append(means)
    return out

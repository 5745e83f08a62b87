"""A small experiment made up by hand, for tests of the lesson: results of four levels, and the story of one."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np

from chaffinch.base.files import write_json
from chaffinch.data import CLEAN, OOD, open_dataset
from chaffinch.experiment import PLANS, Plan, table
from chaffinch.lesson import Story

DRAW = "fashion-web:noise=0.6,n=240"
ACCURACY = {"mixup": 0.80, "small-loss": 0.79, "lsa": 0.78, "alternate": 0.81, "pls": 0.82, "pls-lsa": 0.84,
            "oracle": 0.90}  # fmt: skip
FOUND = {"small-loss": 0.85, "lsa": 0.97, "alternate": 0.92, "pls": 0.86, "pls-lsa": 0.93, "oracle": 1.0}


def row(trainer: str, noise: float, seed: int, accuracy: float, found: float | None = None) -> dict:
    """A row as the experiment leaves it."""
    return {
        "trainer": trainer, "noise": noise, "seed": seed, "accuracy_best": accuracy + 0.01, "accuracy_last": accuracy,
        "auroc_ood": found, "balanced_accuracy": found, "clean_kept": None if found is None else 1.75 - found,
        "precision": found, "correlation": 0.5 if trainer == "lsa" else None, "seconds": 360.0, "course": {},
    }  # fmt: skip


def results(rows: list[dict] | None = None, plan: Plan = PLANS["lesson"]) -> dict:
    """Results of the experiment; every trainer, level and seed, unless rows are given."""
    if rows is None:
        rows = [
            row(t, noise, seed, ACCURACY[t] - noise / 10 + 0.002 * seed, FOUND.get(t))
            for t, noise, seed in plan.cells()
        ]
    starts = {"0.6": {"device": "CPU", "seconds": 720.0, "epochs": 40, "sha256": "0"}}
    return {"plan": asdict(plan), "rows": rows, "starts": starts, "table": table(rows)}


def story(**changes) -> Story:
    """A story of 240 pictures and six epochs: foreign ones lie to the right, 14 clean pictures are culprits."""
    dataset = open_dataset(DRAW)
    kind, n = dataset.truth.kind, len(dataset)
    rng = np.random.default_rng(0)
    foreign, noisy = kind == OOD, kind != CLEAN
    plane = rng.normal(size=(n, 2)).astype(np.float32)
    plane[:, 0] += np.where(foreign, 3, -3)
    lost = np.zeros(n, np.float32)
    lost[np.flatnonzero(kind == CLEAN)[:14]] = np.linspace(1, 0.25, 14)
    turns = ("", "", "lsa", "small-loss", "lsa", "small-loss")
    flags = np.stack([{"": np.zeros(n, bool), "lsa": foreign | (lost > 0), "small-loss": noisy}[who] for who in turns])
    values = {
        "dataset": DRAW, "xy": rng.normal(size=(n, 2)).astype(np.float32), "plane": plane,
        "linear_scores": plane[:, 0], "loss_scores": noisy + rng.random(n).astype(np.float32),
        "linear_flags": plane[:, 0] > 0, "loss_flags": noisy, "turns": turns, "flags": flags,
        "accuracy": np.linspace(0.6, 0.8, 6).astype(np.float32), "lost": lost,
        "detail": np.where(lost > 0, 5, 20).astype(np.float32) + rng.random(n).astype(np.float32),
        "told": {"auroc_best_line": 0.991, "looks": 4, "seed": 0},
    }  # fmt: skip
    return Story(**(values | changes))


def write(folder: Path) -> Path:
    """The results, and the story of 60 % noise, as files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "lesson.json", results())
    story().save(folder / "lesson-0.6.npz")
    return folder

"""How time and memory grow with the number of samples, for what a first look at a dataset needs.

python benchmarks/scale.py [--json] [--sizes 1000 10000 100000 1000000]

Synthetic features of 128 dimensions in 7 classes, 15 % of the labels wrong and 20 % of the samples foreign, in a file
(``arrays:PATH.npz``) that a process of its own opens for each size, with an empty workspace. Seconds are wall-clock,
imports and compilation included; memory is the most that the process held during a step. The total is from the file to
a map, the flags of all these detectors and the verdict: at 1,000,000 it must take at most 10 minutes and 8 GB on two
cores. After that: the record of a quick head, which other detectors need, and pictures through the encoder ``simclr``.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chaffinch.base.files import asset
from chaffinch.data import MISLABELLED, OOD, Observed
from chaffinch.metrics.detection import ranking
from chaffinch.metrics.verdict import three_way
from chaffinch.study import Study
from chaffinch.workspace import Workspace

Row = dict[str, Any]

DETECTORS = ("lsa", "small-loss", "knn-label", "knn-distance", "confident-learning", "mahalanobis")


def mixture(
    n: int, dim: int, classes: int, *, wrong: float, foreign: float, latent: int = 16
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int8]]:
    """Unit features (n, dim), given labels and kinds: Gaussians that overlap in a few latent directions, and noise.

    Foreign samples come from three times as many clusters of their own, and their labels are drawn at random.
    """
    rng = np.random.default_rng(0)
    kind = rng.choice(3, n, p=[1 - wrong - foreign, wrong, foreign]).astype(np.int8)
    cluster = np.where(kind == OOD, classes + rng.integers(0, 3 * classes, n), rng.integers(0, classes, n))
    centres = rng.normal(0, 0.8, (4 * classes, latent)).astype(np.float32)
    out = rng.normal(size=(latent, dim)).astype(np.float32) / np.float32(np.sqrt(dim))
    X = np.empty((n, dim), np.float32)
    for start in range(0, n, 65_536):
        rows = slice(start, start + 65_536)
        near = centres[cluster[rows]]
        x = (near + rng.standard_normal(near.shape, dtype=np.float32)) @ out
        x += np.float32(0.5 / np.sqrt(dim)) * rng.standard_normal(x.shape, dtype=np.float32)
        X[rows] = x / np.linalg.norm(x, axis=1, keepdims=True)
    y = np.where(kind == MISLABELLED, cluster + rng.integers(1, max(classes, 2), n), cluster) % classes
    return X, np.where(kind == OOD, rng.integers(0, classes, n), y), kind


def observed(X: NDArray[np.float32], y: NDArray[np.int64]) -> Observed:
    """The features and labels as a dataset."""
    return Observed(y, tuple(map(str, range(int(y.max()) + 1))), np.arange(len(y)).astype(str), features=X)


def resident(*, peak: bool) -> float:
    """Megabytes of memory the process holds, or the most it held since `measured` began."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the most since the process began
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (1e6 if sys.platform == "darwin" else 1e3)
    name = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


def measured(work: Callable[[], Any]) -> tuple[Any, float, float, float]:
    """Result and seconds of some work, the process's memory before it, and the most meanwhile (MB)."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).malloc_trim(0)  # gives back what is free, or the work would seem to need less
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    before, start = resident(peak=False), time.perf_counter()
    result = work()
    return result, time.perf_counter() - start, before, resident(peak=True)


PICTURES = 2000
"""Pictures that are embedded to time one."""


def steps(path: Path, home: Path) -> Iterator[Row]:
    """A row for each step on the arrays in a file, as soon as it is done; the total; then what embedding costs."""
    n, dim, classes = 0, 0, 0
    done: list[Row] = []

    def row(step: str, work: Callable[[], Any]) -> tuple[Any, Row]:
        cpu = time.process_time()
        result, seconds, _, peak = measured(work)
        line = {"step": step, "ours_s": seconds, "peer": None, "peer_s": None, "ratio": None, "peak_mb": peak}
        line["cpu_s"] = time.process_time() - cpu
        done.append(line)
        return result, line

    def open_it() -> Study:
        study = Study(f"arrays:{path}", "features", workspace=Workspace(home))
        study.key  # noqa: B018  the hash that every result is kept under
        return study

    study, line = row("open the file", open_it)
    assert study.features is not None
    assert study.truth is not None
    (n, dim), classes, kind = study.features.shape, len(study.observed.classes), study.truth.kind
    size = {"n": n, "what": f"{n:,} x {dim} x {classes}"}
    yield size | line
    found, line = row("neighbours", lambda: study.evidence.neighbors)
    yield size | line | {"recall": found.recall, "method": "exact" if found.recall == 1 else "cells"}
    found, line = row("probe", lambda: study.evidence.probe)
    yield size | line
    for slug in DETECTORS:
        found, line = row(slug, lambda slug=slug: study.detect(slug))
        ranked = ranking(found.scores, kind)
        yield size | line | {name: ranked[name] for name in ("auroc_ood", "auroc_mislabelled", "auroc_any")}
    verdict, line = row("verdict", study.verdict)
    yield size | line | {"macro_f1": three_way(verdict.proba, kind)["macro_f1"]}
    xy, line = row("map", study.map)
    yield size | line | {"trustworthiness": study.map_trust()["trustworthiness"]}

    def draw() -> str:
        from chaffinch.figures.map import scatter

        figure = scatter(xy, study.observed.labels, study.observed.classes, suspicion=verdict.noise)
        return str(figure.to_json())

    found, line = row("first figure", draw)
    yield size | line | {"json_mb": len(found) / 1e6}
    spent = {name: sum(line[name] for line in done) for name in ("ours_s", "cpu_s")}
    total = {"step": "total", "peer": None, "peer_s": None, "ratio": None, **spent}
    yield size | total | {"peak_mb": max(line["peak_mb"] for line in done)}
    found, line = row("quick head", lambda: study.evidence.history)
    yield size | line
    with np.load(asset("fashion-web", "pool.npz")) as pool:
        images = pool["id_images"][: min(n, PICTURES)]
    from chaffinch.encoders.checkpoint import load_encoder

    encoder = load_encoder(asset("encoders", "simclr.safetensors"))
    found, line = row("embed, a picture", lambda: encoder.embed(images))
    yield size | line | {"ours_s": line["ours_s"] / len(images), "pictures": len(images)}


def measure(n: int) -> Iterator[Row]:
    """The rows of `steps` for n samples, from a process of its own."""
    with tempfile.TemporaryDirectory(prefix="chaffinch-scale-") as folder:
        path = Path(folder) / "mixture.npz"
        X, y, kind = mixture(n, 128, 7, wrong=0.15, foreign=0.20)
        np.savez(path, features=X, labels=y, kind=kind)
        del X
        command = [sys.executable, __file__, "--file", str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            yield from map(json.loads, child.stdout)
        if child.returncode:
            raise SystemExit(f"{n:,} samples: the process ended with {child.returncode}")


def growth(rows: Sequence[Row]) -> dict[str, float]:
    """For each step the exponent e in seconds ~ n^e, by least squares over all sizes."""
    out = {}
    for step in dict.fromkeys(row["step"] for row in rows):
        n, s = ([np.log(row[key]) for row in rows if row["step"] == step] for key in ("n", "ours_s"))
        out[step] = float(np.polyfit(n, s, 1)[0])
    return out


def cell(row: Row) -> str:
    """Time, memory and what else is told of a step, for the table."""
    seconds, memory = row["ours_s"], row["peak_mb"]
    time_told = f"{1000 * seconds:.1f} ms" if seconds < 0.1 else f"{seconds:.1f} s" if seconds < 100 else clock(seconds)
    told = [time_told, f"{memory / 1000:.1f} GB" if memory >= 1000 else f"{memory:.0f} MB"]
    if "recall" in row:
        told.append("exact" if row["method"] == "exact" else f"recall {row['recall']:.3f}")
    told += [f"{row['json_mb']:.1f} MB of JSON"] if "json_mb" in row else []
    return ", ".join(told)


def clock(seconds: float) -> str:
    """Minutes and seconds."""
    return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, a column for each size."""
    sizes = sorted({row["n"] for row in rows})
    at = {(row["step"], row["n"]): row for row in rows}
    lines = [["step", *(f"{n:,}" for n in sizes)], ["---"] * (len(sizes) + 1)]
    lines += [[step, *(cell(at[step, n]) for n in sizes)] for step in dict.fromkeys(row["step"] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Measure and print; each row is told on standard error as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    sizes = [1000, 10_000, 100_000, 1_000_000]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="numbers of samples")
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # the process of one size
    options = parser.parse_args()
    if options.file:
        for row in steps(options.file, options.file.parent / "home"):
            print(json.dumps(row), flush=True)
        return
    rows: list[Row] = []
    for n in options.sizes:
        for row in measure(n):
            rows.append(row)
            scores = {k: v for k, v in row.items() if k.startswith(("auroc", "macro", "trust"))}
            told = ", ".join([f"{row['cpu_s']:.1f} s of one core", *(f"{k} {v:.3f}" for k, v in scores.items())])
            print(f"{row['n']:>9,} {row['step']:20s} {cell(row)}; {told}", file=sys.stderr, flush=True)
    if options.json:
        grown = growth(rows) if len(options.sizes) > 1 else {}
        print(json.dumps([*rows, *({"what": "growth", "step": k, "exponent": e} for k, e in grown.items())], indent=1))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()

"""How time and memory grow with the number of samples, for what a first look at a dataset needs.

python benchmarks/scale.py [--json] [--sizes 10000 100000 1000000]

Synthetic features of 128 dimensions in 7 classes, 15 % of the labels wrong and 20 % of the samples foreign. At
1,000,000 all of it must finish on two cores in 24 GB.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chaffinch import registry
from chaffinch.data import MISLABELLED, OOD, Observed
from chaffinch.evidence import Evidence
from chaffinch.metrics.detection import ranking
from chaffinch.metrics.verdict import three_way
from chaffinch.verdict import judge

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


def steps(n: int, dim: int, classes: int) -> Iterator[Row]:
    """A row for each step on n samples, as soon as it is done."""
    X, y, kind = mixture(n, dim, classes, wrong=0.15, foreign=0.20)
    evidence = Evidence(observed(X, y), X)

    def row(name: str, work: Callable[[], Any]) -> tuple[Any, Row]:
        result, seconds, _, peak = measured(work)
        size = {"what": f"{name}, {n:,} x {dim} x {classes}", "step": name, "n": n}
        return result, {**size, "ours_s": seconds, "peer": None, "peer_s": None, "ratio": None, "peak_mb": peak}

    found, line = row("neighbours", lambda: evidence.neighbors)
    yield line | {"recall": found.recall}
    found, line = row("probe", lambda: evidence.probe)
    yield line
    for slug in DETECTORS:
        detector = registry.get("detector", slug)()
        found, line = row(slug, lambda d=detector: d.fit(**evidence.gather(d)))
        ranked = ranking(found.scores_, kind)
        yield line | {name: ranked[name] for name in ("auroc_ood", "auroc_mislabelled", "auroc_any")}
    found, line = row("verdict", lambda: judge(X, y, classes))
    yield line | {"macro_f1": three_way(found.proba, kind)["macro_f1"]}


def growth(rows: Sequence[Row]) -> list[Row]:
    """For each step the exponent e in seconds ~ n^e, by least squares over all sizes."""
    out = []
    for step in dict.fromkeys(row["step"] for row in rows):
        of = [row for row in rows if row["step"] == step]
        n, s = ([np.log(row[key]) for row in of] for key in ("n", "ours_s"))
        out.append({"what": f"{step}, growth of time", "step": step, "exponent": float(np.polyfit(n, s, 1)[0])})
    return out


def main() -> None:
    """Measure and print; each row of the table as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="numbers of samples")
    options = parser.parse_args()
    rows: list[Row] = []
    for n in options.sizes:
        for row in steps(n, 128, 7):
            rows.append(row)
            if not options.json:
                told = ", ".join(f"{k} {v:.3f}" for k, v in row.items() if k.startswith(("auroc", "recall", "macro")))
                print(f"{row['what']:44s} {row['ours_s']:9.2f} s   peak {row['peak_mb']:7.0f} MB   {told}", flush=True)
    grown = growth(rows) if len(options.sizes) > 1 else []
    if options.json:
        print(json.dumps([*rows, *grown], indent=1))
        return
    for row in grown:
        print(f"{row['step']:44s} seconds ~ n^{row['exponent']:.2f}")


if __name__ == "__main__":
    main()

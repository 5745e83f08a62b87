"""Out-of-sample class probabilities: `chaffinch.base.linear` against scikit-learn, side by side in one run.

python benchmarks/probe.py [--json] [--threads 1 2] [--full] [--large]

On fashion-web, seen through the shipped encoder and as the first 64 principal components of its pixels, and on
synthetic data of 100 classes.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from chaffinch.base.linear import linear_probe
from chaffinch.base.threads import blas_threads
from chaffinch.study import Study

Row = dict[str, Any]


def scikit_learn(X: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, threads: int) -> NDArray[np.float64]:
    """The peer: five folds of LogisticRegression(C=1) on standardised features."""
    out = np.zeros((len(y), n_classes))
    with blas_threads(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Z = StandardScaler().fit_transform(X)
        for seen, held in StratifiedKFold(5, shuffle=True, random_state=0).split(Z, y):
            model = LogisticRegression(C=1.0, max_iter=1000).fit(Z[seen], y[seen])
            out[np.ix_(held, model.classes_)] = model.predict_proba(Z[held])
    return out


def ours(X: NDArray[np.float32], y: NDArray[np.int64], n_classes: int, threads: int) -> NDArray[np.float64]:
    """The product, with its defaults (it chooses its penalty and fits the head as well)."""
    return linear_probe(X, y, n_classes, threads=threads).pred_probs


def timed(
    methods: dict[str, Callable[[], NDArray[np.float64]]], repeats: int
) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """Median seconds and result of each; the methods take turns, so that a busy moment hits all."""
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    results = {}
    for _ in range(repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            results[name] = method()
            seconds[name].append(time.perf_counter() - start)
    return {name: (float(np.median(seconds[name])), results[name]) for name in methods}


def peak_mb(method: Callable[[], object]) -> float:
    """Most memory that arrays of Python and numpy took beyond what was there, in a run of its own."""
    tracemalloc.start()
    method()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e6


def quality(p: NDArray[np.float64], y: NDArray[np.int64], kind: NDArray[np.int64], prefix: str) -> Row:
    """AUROC of 1 - p[y] for any noise and for wrong labels alone, and log losses, lower being better."""
    own = np.clip(p[np.arange(len(y)), y], 1e-12, 1)
    known = kind < 2
    return {
        f"{prefix}_auroc_any": float(roc_auc_score(kind > 0, -own)),
        f"{prefix}_auroc_mislabelled": float(roc_auc_score(kind[known] == 1, -own[known])),
        f"{prefix}_log_loss_given": float(-np.log(own).mean()),
        f"{prefix}_log_loss_clean": float(-np.log(own[kind == 0]).mean()),
    }


def compare(
    what: str, X: NDArray[np.float32], y: NDArray[np.int64], kind: NDArray[np.int64], threads: Sequence[int] = (1, 2)
) -> list[Row]:
    """One row for each number of threads, and one for the best of each side."""
    c = int(y.max()) + 1
    linear_probe(X[:200], y[:200], c)  # imports
    methods: dict[str, Callable[[], NDArray[np.float64]]] = {}
    for t in threads:
        methods[f"ours {t}"] = lambda t=t: ours(X, y, c, t)  # type: ignore[misc]
        methods[f"peer {t}"] = lambda t=t: scikit_learn(X, y, c, t)  # type: ignore[misc]
    done = timed(methods, 3)
    memory = peak_mb(lambda: ours(X, y, c, 1))
    pairs = {f"{t} thread{'s' * (t > 1)}": (f"ours {t}", f"peer {t}") for t in threads}
    best = tuple(min((f"{side} {t}" for t in threads), key=lambda name: done[name][0]) for side in ("ours", "peer"))
    rows = []
    for name, (a, b) in {**pairs, "best threads of each": best}.items():
        (ours_s, p), (peer_s, q) = done[a], done[b]
        row = {
            "what": f"5-fold probabilities, {what} {len(X)}x{X.shape[1]}x{c}, {name}",
            "ours_s": ours_s,
            "peer": "scikit-learn LogisticRegression(C=1, max_iter=1000)",
            "peer_s": peer_s,
            "ratio": peer_s / ours_s,
            "peak_mb": memory,
        }
        rows.append(row | quality(p, y, kind, "ours") | quality(q, y, kind, "peer"))
    return rows


def synthetic(n: int, dim: int, classes: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Gaussian classes with 20 % symmetric wrong labels."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, n)
    centres = rng.normal(size=(classes, dim)).astype(np.float32) * np.float32(4 / np.sqrt(dim))
    X = rng.standard_normal((n, dim), dtype=np.float32)
    X += centres[truth]
    wrong = rng.random(n) < 0.2
    y = np.where(wrong, (truth + rng.integers(1, classes, n)) % classes, truth)
    return X, y, wrong.astype(np.int64)


def scale(n: int, dim: int, classes: int, full: bool, threads: int = 1) -> Row:
    """One run of ours on synthetic data, and of the peer where ``full``."""
    X, y, kind = synthetic(n, dim, classes)
    done = timed({"ours": lambda: ours(X, y, classes, threads)}, 1)
    ours_s, p = done["ours"]
    row = {
        "what": f"5-fold probabilities, synthetic {n}x{dim}x{classes}, {threads} thread{'s' * (threads > 1)}",
        "ours_s": ours_s,
        "peer": "scikit-learn LogisticRegression(C=1, max_iter=1000)" if full else None,
        "peer_s": None,
        "ratio": None,
        "peak_mb": peak_mb(lambda: ours(X, y, classes, threads)),
    } | quality(p, y, kind, "ours")
    if full:
        peer_s, q = timed({"peer": lambda: scikit_learn(X, y, classes, threads)}, 1)["peer"]
        row |= {"peer_s": peer_s, "ratio": peer_s / ours_s} | quality(q, y, kind, "peer")
    return row


def pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The first 64 principal components of the pixels."""
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    x -= x.mean(axis=0)
    axes = np.linalg.eigh(x.T @ x)[1][:, :-65:-1]
    return x @ axes


def measure(*, threads: Sequence[int] = (1, 2), full: bool = False, large: bool = False) -> list[Row]:
    """All rows; the synthetic data runs on the first of ``threads``."""
    study = Study("fashion-web")
    assert study.features is not None
    assert study.observed.images is not None
    assert study.truth is not None
    y, kind = study.observed.labels, study.truth.kind.astype(np.int64)
    rows = compare("features of fashion-web", study.features, y, kind, threads)
    rows += compare("pixels of fashion-web", pixels(study.observed.images), y, kind, threads)
    rows.append(scale(50_000, 512, 100, full, threads[0]))
    if large:
        rows.append(scale(1_000_000, 128, 7, full, threads[0]))
    return rows


def main() -> None:
    """Print the rows as a table, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="BLAS threads to compare")
    parser.add_argument("--full", action="store_true", help="run scikit-learn on the synthetic data too (slow)")
    parser.add_argument("--large", action="store_true", help="also 1,000,000 x 128 x 7")
    options = parser.parse_args()
    rows = measure(threads=options.threads, full=options.full, large=options.large)
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        peer = "" if row["peer_s"] is None else f" | peer {row['peer_s']:.3f} s | {row['ratio']:.1f} x"
        print(f"{row['what']}\n  ours {row['ours_s']:.3f} s{peer} | peak {row['peak_mb']:.0f} MB")
        for side in ("ours", "peer"):
            values = {k[5:]: v for k, v in row.items() if k.startswith(f"{side}_") and k != f"{side}_s"}
            if values:
                print(f"  {side}: " + ", ".join(f"{k} {v:.4f}" for k, v in values.items()))


if __name__ == "__main__":
    main()

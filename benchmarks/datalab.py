"""Wrong labels, outliers and near duplicates: chaffinch against cleanlab's Datalab, side by side in one run.

python benchmarks/datalab.py [--json] [--rows 50000] [--catalogue-large]

Speed from features and labels to all three; how right either is on fashion-web, where the truth is known; and how long
the whole catalogue of detectors takes. ``pip install -e ".[bench]"`` installs cleanlab; without it the peer's columns
stay empty.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from probe import scikit_learn
from scale import measured, mixture, observed

from chaffinch import registry
from chaffinch.base.errors import InputError
from chaffinch.base.linear import linear_probe
from chaffinch.base.neighbors import near_duplicates, nearest
from chaffinch.base.threads import blas_threads, cores
from chaffinch.data import CLEAN, MISLABELLED, OOD
from chaffinch.detectors.base import Trusted
from chaffinch.evidence import Evidence
from chaffinch.metrics.detection import auroc, sides
from chaffinch.metrics.verdict import three_way
from chaffinch.study import Study
from chaffinch.verdict import judge
from chaffinch.workspace import Workspace

Row = dict[str, Any]
Features, Labels, Probabilities = NDArray[np.float32], NDArray[np.int64], NDArray[np.float64]

PEER = "cleanlab Datalab"
NO_PEER = 'cleanlab is not installed, so the columns of the peer stay empty: pip install -e ".[bench]"'
PROBABILITIES = {
    "ours": lambda X, y, threads: linear_probe(X, y, int(y.max()) + 1, threads=threads).pred_probs,
    "peer": lambda X, y, threads: scikit_learn(X, y, int(y.max()) + 1, threads),
}


def ours(X: Features, y: Labels, p: Probabilities, threads: int) -> dict[str, Any]:
    """Flags and scores of wrong labels and of outliers, and the near duplicates: neighbours are found once."""
    with blas_threads(threads), patch.dict(os.environ, CHAFFINCH_THREADS=str(threads)):
        near = nearest(X, 10)
        label = registry.get("detector", "confident-learning")().fit(None, y, pred_probs=p)
        lonely = registry.get("detector", "knn-distance")().fit(None, y, neighbors=near)
        pairs = near_duplicates(near)
    return {
        "label": label.scores_,
        "label_flags": label.flags_,
        "outlier": lonely.scores_,
        "outlier_flags": lonely.flags_,
        "duplicates": np.isin(np.arange(len(y)), pairs),
    }


def datalab(X: Features, y: Labels, p: Probabilities, threads: int) -> dict[str, Any]:
    """The same from Datalab with its defaults; scores turned so that higher = more suspicious."""
    from cleanlab import Datalab

    with blas_threads(threads), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lab = Datalab(data={"label": y}, label_name="label", verbosity=0)
        lab.find_issues(features=X, pred_probs=p, issue_types={"label": {}, "outlier": {}, "near_duplicate": {}})
        found = lab.get_issues()
    return {
        "label": 1 - found["label_score"].to_numpy(),
        "label_flags": found["is_label_issue"].to_numpy(),
        "outlier": 1 - found["outlier_score"].to_numpy(),
        "outlier_flags": found["is_outlier_issue"].to_numpy(),
        "duplicates": found["is_near_duplicate_issue"].to_numpy(),
    }


ISSUES: dict[str, Callable[..., dict[str, Any]]] = {"ours": ours, "peer": datalab}


def data(name: str, rows: int) -> tuple[Features, Labels]:
    """Features and labels of one of the two sets."""
    if name == "fashion-web":
        study = Study(name)
        assert study.features is not None
        return study.features, study.observed.labels
    return mixture(rows, 512, 100, wrong=0.10, foreign=0.05)[:2]


def speed(name: str, rows: int, repeats: int, known: list[str]) -> Iterator[Row]:
    """Probabilities, issues, and both; the sides and their numbers of threads take turns."""
    X, y = data(name, rows)
    size = f"{name} {len(X):,} x {X.shape[1]} x {int(y.max()) + 1}"
    counts = sorted({1, cores()})
    few = slice(0, 2000)
    taken: dict[tuple[str, str, int], list[float]] = {}
    for side in known:  # imports
        ISSUES[side](X[few], y[few], PROBABILITIES[side](X[few], y[few], 1), 1)
    for _ in range(repeats):
        for threads in counts:
            for side in known:
                start = time.perf_counter()
                p = PROBABILITIES[side](X, y, threads)
                middle = time.perf_counter()
                ISSUES[side](X, y, p, threads)
                end = time.perf_counter()
                taken.setdefault((side, "probabilities", threads), []).append(middle - start)
                taken.setdefault((side, "issues", threads), []).append(end - middle)
    median = {key: float(np.median(seconds)) for key, seconds in taken.items()}
    best = {
        (side, step): min((median[side, step, threads], threads) for threads in counts)
        for side in known
        for step in ("probabilities", "issues")
    }
    peak = {side: memory(side, name, rows, best[side, "issues"][1]) for side in known}
    for step, what in (("probabilities", "5-fold probabilities"), ("issues", "labels, outliers, near duplicates")):
        (ours_s, ours_t), (peer_s, peer_t) = best["ours", step], best.get(("peer", step), (None, None))
        row = result(f"{what}, {size}", ours_s, peer_s)
        yield row | {"ours_threads": ours_t, "peer_threads": peer_t}
    totals = {side: best[side, "probabilities"][0] + best[side, "issues"][0] for side in known}
    row = result(f"both, {size}", totals["ours"], totals.get("peer"))
    yield row | {"peak_mb": peak["ours"], "peer_peak_mb": peak.get("peer")}


def result(what: str, ours_s: float, peer_s: float | None = None) -> Row:
    """One row of the table; ratio: how many times as long the peer takes."""
    ratio = None if peer_s is None else peer_s / ours_s
    peer = None if peer_s is None else PEER
    return {"what": what, "ours_s": ours_s, "peer": peer, "peer_s": peer_s, "ratio": ratio, "peak_mb": None}


def memory(side: str, name: str, rows: int, threads: int) -> float:
    """Most memory (MB) that one side takes beyond data and imports, in a fresh process."""
    command = [sys.executable, __file__, "--rows", str(rows), "--alone", side, name, str(threads)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])


def alone(side: str, name: str, rows: int, threads: int) -> None:
    """What `memory` runs."""
    X, y = data(name, rows)
    few = slice(0, 2000)
    ISSUES[side](X[few], y[few], PROBABILITIES[side](X[few], y[few], 1), 1)
    _, _, before, peak = measured(lambda: ISSUES[side](X, y, PROBABILITIES[side](X, y, threads), threads))
    print(peak - before)


def quality(study: Study, known: list[str]) -> Iterator[Row]:
    """How right both are, from the same features and probabilities."""
    assert study.features is not None
    assert study.truth is not None
    X, y, kind, p = study.features, study.observed.labels, study.truth.kind, study.evidence.pred_probs
    found, seconds = {}, {}
    for side in known:
        found[side], seconds[side], _, _ = measured(lambda s=side: ISSUES[s](X, y, p, 1))
    verdict, took, _, _ = measured(lambda: judge(X, y, len(study.observed.classes)))
    row = result(f"three-way macro-F1, {study.dataset.name}", took, seconds.get("peer"))
    row["ours_macro_f1"] = three_way(verdict.proba, kind)["macro_f1"]
    if "peer" in known:
        row |= {f"peer_{order}": value for order, value in called(found["peer"], kind).items()}
        row["peer_macro_f1"] = max(called(found["peer"], kind).values())
    yield row
    scores: dict[str, Mapping[str, NDArray[np.float64]]] = {
        "mislabelled": {
            "ours": found["ours"]["label"],
            "peer": found.get("peer", {}).get("label"),
            "verdict": verdict.proba[:, MISLABELLED],
        },
        "ood": {
            "ours": found["ours"]["outlier"],
            "peer": found.get("peer", {}).get("outlier"),
            "verdict": verdict.proba[:, OOD],
        },
    }
    for find, by in scores.items():
        rows, positive = sides(kind, find)
        row = result(f"AUROC of {find}, {study.dataset.name}", seconds["ours"], seconds.get("peer"))
        yield row | {f"{side}_auroc": auroc(s[rows], positive[rows]) for side, s in by.items() if s is not None}
    if "peer" in known:
        row = result(f"near duplicates, {study.dataset.name}", seconds["ours"], seconds["peer"])
        yield (
            row
            | {f"{side}_flagged": int(found[side]["duplicates"].sum()) for side in known}
            | {"both_flagged": int((found["ours"]["duplicates"] & found["peer"]["duplicates"]).sum())}
        )


def called(found: Mapping[str, Any], kind: NDArray[np.int8]) -> dict[str, float]:
    """Macro-F1 of Datalab's flags taken as kinds, where both are set the label or the outlier deciding."""
    kinds = {
        "label_first": np.where(found["label_flags"], MISLABELLED, np.where(found["outlier_flags"], OOD, CLEAN)),
        "outlier_first": np.where(found["outlier_flags"], OOD, np.where(found["label_flags"], MISLABELLED, CLEAN)),
    }
    return {order: three_way(np.eye(3)[codes], kind)["macro_f1"] for order, codes in kinds.items()}


def catalogue(name: str, evidence: Evidence) -> Iterator[Row]:
    """Seconds and memory of each piece of evidence and each detector, and the sum; nothing is taken from a store."""
    detectors = {slug: cls() for slug, cls in registry.methods("detector").items()}
    evidence.k = max(evidence.k, *(getattr(detector, "k", 0) for detector in detectors.values()))
    total, largest = 0.0, 0.0
    for piece in ("neighbors", "probe", "history", "trusted"):
        _, seconds, before, peak = measured(lambda p=piece: getattr(evidence, p))
        total, largest = total + seconds, max(largest, peak - before)
        yield result(f"evidence {piece}, {name}", seconds) | {"peak_mb": peak - before}
    for slug, detector in detectors.items():
        try:
            _, seconds, before, peak = measured(lambda d=detector: d.fit(**evidence.gather(d)))
        except InputError as error:
            print(f"{slug} cannot run on {name}: {error}", file=sys.stderr)
            continue
        total, largest = total + seconds, max(largest, peak - before)
        yield result(f"{slug}, {name}", seconds) | {"peak_mb": peak - before}
    yield result(f"the whole catalogue, {name}", total) | {"peak_mb": largest}


def large(rows: int) -> Evidence:
    """Evidence about the synthetic set; 1 % of its samples are known to be clean."""
    X, y, kind = mixture(rows, 512, 100, wrong=0.10, foreign=0.05)
    clean = np.flatnonzero(kind == CLEAN)[: rows // 100]
    return Evidence(observed(X, y), X, trusted=lambda: Trusted(X[clean], y[clean], clean))


def measure(*, rows: int = 50_000, catalogue_large: bool = False) -> Iterator[Row]:
    """All rows, each as soon as it is known."""
    known = ["ours", *(["peer"] if find_spec("cleanlab") else [])]
    if "peer" not in known:
        print(NO_PEER, file=sys.stderr)
    yield from speed("fashion-web", rows, 3, known)
    yield from speed("synthetic", rows, 1, known)
    with tempfile.TemporaryDirectory() as folder:
        study = Study("fashion-web", workspace=Workspace(folder))
        yield from quality(study, known)
        fresh = Evidence(study.observed, study.features, trusted=lambda: study.evidence.trusted)
        yield from catalogue("fashion-web", fresh)
    if catalogue_large:
        yield from catalogue(f"synthetic {rows:,} x 512 x 100", large(rows))


def main() -> None:
    """Print the rows as a table, or as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--rows", type=int, default=50_000, help="samples of the synthetic set")
    parser.add_argument("--catalogue-large", action="store_true", help="every detector on the synthetic set too")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        side, name, threads = options.alone
        return alone(side, name, options.rows, int(threads))
    rows = []
    for row in measure(rows=options.rows, catalogue_large=options.catalogue_large):
        rows.append(row)
        if not options.json:
            peer = "" if row["peer_s"] is None else f"   peer {row['peer_s']:8.2f} s   {row['ratio']:5.1f} x"
            peak = "" if row["peak_mb"] is None else f"   peak {row['peak_mb']:6.0f} MB"
            print(f"{row['what']:66s} {row['ours_s']:8.2f} s{peer}{peak}", flush=True)
            more = {k: v for k, v in list(row.items())[6:] if v is not None}
            if more:
                print("  " + ", ".join(f"{k} {v:.4g}" for k, v in more.items()), flush=True)
    if options.json:
        print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()

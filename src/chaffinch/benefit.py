"""What cleaning does to a classifier: test accuracy of a linear one, trained before and after.

It is a logistic regression on the encoder's features (the quick head, see `chaffinch.base.linear`), trained once on
all samples under their given labels, and once on those that are kept under their final ones. Two accuracies alone do
not say whether one is better; so both trainings are repeated on samples drawn with replacement, the same draw for both,
and judged by test samples drawn with replacement too (bootstrap).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .base.errors import InputError
from .base.files import digest
from .base.linear import linear_head, linear_probe
from .study import OWN_FEATURES, VERSIONS, Study
from .workspace import Arrays, pack, unpack

REPEATS = 10

Report = Callable[[str, float], None]


def lacking(study: Study) -> str:
    """Why the benefit cannot be measured here, or nothing."""
    if not len(study.test_rows()):
        return f"{study.dataset.name} has no test split to measure accuracy on"
    if study.observed.images is None or study.encoder == OWN_FEATURES:
        return "the features came with the data, so those of the test split are not known"
    return ""


def known(study: Study, final: NDArray[np.int64], repeats: int = REPEATS) -> bool:
    """Can the benefit be had without measuring?"""
    return study.workspace.has("benefit", _key(study, final, repeats))


def _key(study: Study, final: NDArray[np.int64], repeats: int) -> str:
    return digest(study.key, study.test_key, study.seed, final, repeats, VERSIONS["benefit"])


def benefit(
    study: Study, final: NDArray[np.int64], *, repeats: int = REPEATS, report: Report | None = None
) -> dict[str, Any]:
    """Test accuracy before and after; stored, or measured now.

    Args:
        study: the dataset and its encoder; its seed draws.
        final: (N,) labels after cleaning, -1 = dropped.
        repeats: of the bootstrap.
        report: progress.

    Returns:
        ``before``, ``after`` and ``gain``: accuracies on the whole sets, and their difference; each ``..._sd``:
        standard deviation over the repeats; ``better``: share of the repeats in which there is a gain;
        ``train_before``, ``train_after``, ``test``: samples; ``repeats``.

    Raises:
        InputError: there is no test split with features, or fewer than two classes are kept.
    """
    if reason := lacking(study):
        raise InputError(reason)
    key = _key(study, final, repeats)
    found = study.workspace.remember("benefit", key, lambda: _measure(study, final, repeats, report))
    return unpack(found["benefit"])


def _measure(study: Study, final: NDArray[np.int64], repeats: int, report: Report | None) -> Arrays:
    tell = report or (lambda what, share: None)
    tell("test pictures", 0.0)
    features, test = study.features, study.test_features()
    if features is None or test is None:
        raise InputError(lacking(study) or "there are no features")
    tested, truth = test
    kept, c = final >= 0, len(study.observed.classes)
    if len(np.unique(final[kept])) < 2:
        raise InputError("fewer than two classes are kept, so there is no classifier to train")
    probes = [study.evidence.probe, linear_probe(features[kept], final[kept], c, seed=study.seed)]
    right = [(tested @ W.T + b).argmax(axis=1) == truth for W, b in (probe.head for probe in probes)]
    rng = np.random.default_rng([study.seed, 47])
    drawn = np.empty((repeats, 2))
    for r in range(repeats):
        tell("accuracy before and after", r / repeats)
        rows, judges = rng.integers(0, len(final), len(final)), rng.integers(0, len(truth), len(truth))
        for i, (labels, probe) in enumerate(zip((study.observed.labels, final), probes, strict=True)):
            some = rows[labels[rows] >= 0]
            W, b = linear_head(features[some], labels[some], c, penalty=probe.penalty)
            drawn[r, i] = ((tested[judges] @ W.T + b).argmax(axis=1) == truth[judges]).mean()
    tell("accuracy before and after", 1.0)
    before, after = (float(values.mean()) for values in right)
    gains = drawn[:, 1] - drawn[:, 0]
    sds = {name: float(values.std(ddof=1)) for name, values in
           (("before_sd", drawn[:, 0]), ("after_sd", drawn[:, 1]), ("gain_sd", gains))}  # fmt: skip
    figures = {"before": before, "after": after, "gain": after - before, **sds, "better": float((gains > 0).mean())}
    sizes = {"train_before": len(final), "train_after": int(kept.sum()), "test": len(truth), "repeats": repeats}
    return {"benefit": pack({name: round(value, 4) for name, value in figures.items()} | sizes)}


def in_words(found: dict[str, Any]) -> str:
    """One line on what `benefit` found."""
    return (
        f"a linear classifier on the features is right on {found['before']:.1%} ± {found['before_sd']:.1%} of "
        f"{found['test']:,} test samples before and {found['after']:.1%} ± {found['after_sd']:.1%} after: "
        f"{100 * found['gain']:+.1f} ± {100 * found['gain_sd']:.1f} points, a gain in "
        f"{round(found['better'] * found['repeats'])} of {found['repeats']} repeats"
    )

"""What a loss did, in numbers: every encoder on one dataset, measured the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import registry
from .base.errors import InputError
from .base.files import digest
from .base.linear import linear_probe
from .base.neighbors import nearest_in
from .card import KINDS
from .data import OOD, NoisyDataset
from .metrics.detection import auroc
from .metrics.geometry import alignment, effective_rank, isotropy, uniformity
from .spec import Cut
from .study import OWN_FEATURES, Study, embeddings, encoder_cards, run_detectors
from .workspace import Workspace, pack, unpack

Row = dict[str, Any]
Report = Callable[[str, float], None]

VIEWS = 2_000
"""Alignment is measured on two views of at most so many pictures."""

NEIGHBOURS = 30
"""Votes of the k-nearest-neighbour classifier."""

SAME = ("loss", "loss_parameters", "architecture", "dataset_digest", "epochs", "batch", "learning_rate")
"""Encoders whose cards agree in these and differ in the seed are one encoder, trained several times."""


@dataclass(frozen=True)
class Figure:
    """One figure of an encoder: its JSON key, a short name, what it says, and whether more of it is better.

    ``better`` is +1, -1, or 0 where neither is.
    """

    key: str
    name: str
    help: str
    better: int


FIGURES = (
    Figure("auroc_ood_linear", "OOD, best line", "AUROC of out-of-distribution samples against the rest by the best "
           "linear separation that was taught the true kinds, out of fold: how well any straight cut could do.", 1),
    Figure("verdict_macro_f1", "Verdict F1", "Macro-F1 of the verdict's three kinds on these features.", 1),
    Figure("knn_accuracy", "kNN accuracy", f"Share of clean test pictures whose {NEIGHBOURS} nearest training "
           "pictures, under their given labels, vote for the right class.", 1),
    Figure("linear_accuracy", "Linear accuracy", "Share of clean test pictures that a linear probe trained on the "
           "given labels gets right.", 1),
    Figure("alignment", "Alignment", "Mean squared distance between two augmented views of a picture on the unit "
           "sphere; low = the same picture stays in its place.", -1),
    Figure("uniformity", "Uniformity", "log mean exp(-2 d²) over pairs of pictures on the unit sphere; low = spread "
           "evenly.", -1),
    Figure("effective_rank", "Effective rank", "How many dimensions carry the features.", 0),
    Figure("isotropy", "Isotropy", "1 = no direction stands out.", 0),
    Figure("seconds_per_epoch", "Seconds an epoch", "Of training, on the device that the model card names.", -1),
)  # fmt: skip
"""What an encoder is measured by."""


def measure(study: Study, report: Report | None = None) -> Row:
    """All figures of one encoder on one dataset, stored or measured now.

    Those that need the truth, a test split or a model card are missing where there is none.

    Raises:
        InputError: there is nothing to embed, or the encoder cannot embed it.
    """

    def make() -> dict[str, NDArray[Any]]:
        return {"row": pack(_measure(study, report or (lambda what, share: None)))}

    return unpack(study.workspace.remember("encoder", figures_key(study), make)["row"])


def figures_key(study: Study) -> str:
    """The key under which the figures of an encoder are stored: it changes with every detector's version."""
    return digest(study.key, study.seed, study.detection_keys(), study.verdict_key(), [f.key for f in FIGURES])


def known(study: Study) -> bool:
    """Can the figures be had without measuring?"""
    return study.workspace.has("encoder", figures_key(study))


def _measure(study: Study, report: Report) -> Row:
    X = study.embed(_within(report, 0.0, 0.2))
    if X is None:
        raise InputError(f"{study.dataset.name} has neither pictures nor features")
    row: Row = {}
    observed, truth = study.observed, study.truth
    if truth is not None and 0 < (foreign := truth.kind == OOD).sum() < len(foreign):
        out_of_fold = linear_probe(X, foreign.astype(np.int64), 2, seed=study.seed).pred_probs[:, 1]
        row["auroc_ood_linear"] = auroc(out_of_fold, foreign)
    report("test pictures", 0.2)
    if (test := study.test_features()) is not None:
        features, labels = test
        near = nearest_in(X, features, NEIGHBOURS)
        votes = np.zeros((len(labels), len(observed.classes)))
        np.add.at(votes, (np.arange(len(labels))[:, None], observed.labels[near.indices]), near.similarity)
        W, b = study.evidence.head
        row["knn_accuracy"] = float((votes.argmax(axis=1) == labels).mean())
        row["linear_accuracy"] = float(((features @ W.T + b).argmax(axis=1) == labels).mean())
    report("geometry", 0.35)
    if (views := study.two_views(VIEWS)) is not None:
        row["alignment"] = alignment(*views)
    row |= {"uniformity": uniformity(X), "effective_rank": effective_rank(X), "isotropy": isotropy(X)}
    cuts = [Cut(slug) for slug in registry.methods("detector")]
    done, skipped = run_detectors(study, cuts, skip=True, report=_within(report, 0.4, 0.9))
    if truth is not None:
        figures = {d.slug: study.figures(d, d.own) for d in done}
        wanted = ("auroc_ood", "auroc_mislabelled")
        row["detectors"] = {slug: {key: found.get(key) for key in wanted} for slug, found in figures.items()}
    row["skipped"] = skipped
    verdict = study.verdict(report=_within(report, 0.9, 1.0))
    row["called"] = dict(zip(KINDS, np.bincount(verdict.kinds, minlength=len(KINDS)).tolist(), strict=True))
    row["verdict_macro_f1"] = study.judged(verdict).get("macro_f1")
    if study.encoder != OWN_FEATURES:
        card = study.card()
        row["seconds_per_epoch"] = card["seconds"] / card["epochs"]
    return {key: value for key, value in row.items() if value is not None}


def _within(report: Report, start: float, end: float) -> Report:
    """Tells of a part of the work as a part of the whole."""
    return lambda what, share: report(what, start + (end - start) * share)


def line_up(
    dataset: NoisyDataset,
    names: Iterable[str] | None = None,
    *,
    workspace: Workspace,
    seed: int = 0,
    report: Report | None = None,
    skip: bool = True,
) -> tuple[dict[str, Row], dict[str, str]]:
    """Measure encoders on one dataset.

    Args:
        dataset: on what.
        names: which (see `chaffinch.study.embeddings`); None = every one that is at hand.
        workspace: where encoders and results are.
        seed: of everything that draws.
        report: progress.
        skip: collect what cannot be measured, with the reason, instead of raising.

    Returns:
        name -> figures; those of an encoder trained with several seeds are means, under the name with the lowest seed,
        with ``seeds`` and ``sd`` (sample standard deviations, by key). And name -> reason for those left out.

    Raises:
        InputError: an encoder cannot be measured and ``skip`` is False.
    """
    cards = {name: card for name, (_, card) in encoder_cards(workspace).items()}
    wanted = list(names) if names is not None else [n for name, card in cards.items() for n in embeddings(name, card)]
    rows: dict[str, Row] = {}
    failed: dict[str, str] = {}
    for i, name in enumerate(wanted):

        def tell(what: str, share: float, name: str = name, i: int = i) -> None:
            if report:
                report(f"{name}: {what}", (i + share) / len(wanted))

        try:
            rows[name] = measure(Study(dataset, name, workspace=workspace, seed=seed), tell)
        except InputError as error:
            if not skip:
                raise
            failed[name] = str(error)
    if report:
        report("encoders", 1.0)
    return _over_seeds(rows, cards), failed


def _over_seeds(rows: Mapping[str, Row], cards: Mapping[str, Row]) -> dict[str, Row]:
    """Rows of encoders that differ in the seed only, as one row each."""
    groups: dict[str, list[str]] = {}
    for name in rows:
        base, _, layer = name.partition(":")
        card = cards.get(base, {})
        groups.setdefault(digest(layer, *(card.get(key, base) for key in SAME)), []).append(name)
    out = {}
    for group in groups.values():
        group.sort(key=lambda name: int(cards.get(name.partition(":")[0], {}).get("seed", 0)))
        out[group[0]] = _mean([rows[name] for name in group])
    return out


def _mean(rows: list[Row]) -> Row:
    """Means of several rows' figures, and their spread."""
    keys = [f.key for f in FIGURES if all(f.key in row for row in rows)]
    merged = rows[0] | {key: fmean(row[key] for row in rows) for key in keys} | {"seeds": len(rows)}
    merged["sd"] = {key: stdev(row[key] for row in rows) for key in keys} if len(rows) > 1 else {}
    if all("detectors" in row for row in rows):
        merged["detectors"] = {
            slug: {key: _mean_known([row["detectors"].get(slug, {}).get(key) for row in rows]) for key in found}
            for slug, found in rows[0]["detectors"].items()
        }
    return merged


def _mean_known(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there else None

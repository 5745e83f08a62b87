"""What a loss did, in numbers: every encoder on one dataset, measured the same way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from . import registry
from .base.errors import InputError
from .base.files import digest
from .card import KINDS
from .data import OOD, NoisyDataset
from .metrics.geometry import alignment, effective_rank, isotropy, uniformity
from .metrics.probing import knn_accuracy, linear_accuracy, linear_separability
from .spec import Cut
from .study import OWN_FEATURES, Study, default_encoder, embeddings, encoder_cards, run_detectors
from .workspace import Workspace, pack, unpack

Row = dict[str, Any]
Report = Callable[[str, float], None]

VIEWS = 2_000
"""Alignment is measured on two views of at most so many pictures."""

NEIGHBOURS = 30
"""Votes of the k-nearest-neighbour classifier."""

SAME = (
    "loss", "loss_parameters", "architecture", "channels", "sizes", "dataset_digest", "epochs", "batch",
    "learning_rate", "weight_decay", "augment", "about",
)  # fmt: skip
"""Encoders whose cards agree in these and differ in the seed are one encoder, trained several times."""


@dataclass(frozen=True)
class Figure:
    """One figure of an encoder: its JSON key, a short name, what it says, and whether more of it is better.

    ``better`` is +1, -1, or 0 where neither is; ``source`` is the paper that measures by it.
    """

    key: str
    name: str
    help: str
    better: int
    source: str = ""


AUROC = "AUROC: Fawcett, Pattern Recognition Letters 2006"

FIGURES = (
    Figure("auroc_ood_linear", "OOD, best line", "AUROC of out-of-distribution samples against the rest by the best "
           "linear separation that was taught the true kinds, out of fold: how well any straight cut could do.", 1,
           "Albert et al., ECCV 2024, arXiv 2407.05528"),
    Figure("verdict_macro_f1", "Verdict F1", "Macro-F1 of the verdict's three kinds on these features.", 1,
           "mean of the classes' F1: Opitz, Burst 2019, arXiv 1911.03347"),
    Figure("knn_accuracy", "kNN accuracy", f"Share of clean test pictures whose {NEIGHBOURS} nearest training "
           "pictures, under their given labels, vote for the right class, each with its similarity.", 1,
           "after Wu, Xiong, Yu, Lin, CVPR 2018, arXiv 1805.01978"),
    Figure("linear_accuracy", "Linear accuracy", "Share of clean test pictures that a linear probe trained on the "
           "given labels gets right.", 1, "Alain, Bengio 2016, arXiv 1610.01644"),
    Figure("alignment", "Alignment", "Mean squared distance between two augmented views of a picture on the unit "
           "sphere; low = the same picture stays in its place.", -1, "Wang, Isola, ICML 2020, arXiv 2005.10242"),
    Figure("uniformity", "Uniformity", "log mean exp(-2 d²) over pairs of pictures on the unit sphere; low = spread "
           "evenly.", -1, "Wang, Isola, ICML 2020, arXiv 2005.10242"),
    Figure("effective_rank", "Effective rank", "How many dimensions carry the features.", 0,
           "Roy, Vetterli, EUSIPCO 2007"),
    Figure("isotropy", "Isotropy", "1 = no direction stands out.", 0, "Mu, Viswanath, ICLR 2018, arXiv 1702.01417"),
    Figure("seconds_per_epoch", "Seconds an epoch", "Median of its training. Of the shipped encoders: of a short "
           "training on an idle machine, which their model cards name (timed_on), so that they can be compared.", -1),
)  # fmt: skip
"""What an encoder is measured by."""

FOUND = {"ood": "foreign", "mislabelled": "wrong label", "any": "any noise"}
"""What the AUROC of a detector says it finds."""


def with_detectors(slugs: Iterable[str]) -> tuple[Figure, ...]:
    """What an encoder is measured by, and the AUROC of these detectors on its features for what each looks for."""
    more = []
    for slug in slugs:
        card = registry.get("detector", slug).card
        words, key = FOUND[sought(slug)], f"detectors.{slug}.auroc_{sought(slug)}"
        help = f"AUROC of the detector {card.name} on these features ({words}): 0.5 is guessing, 1 is perfect."
        more.append(Figure(key, f"{card.name} AUC", help, 1, AUROC))
    return (*FIGURES, *more)


def sought(slug: str) -> str:
    """What a detector looks for: ``ood``, ``mislabelled``, or ``any`` noise."""
    finds = registry.get("detector", slug).card.finds
    return next(iter(finds)) if len(finds) == 1 else "any"


def reading(row: Row, figure: Figure) -> float | None:
    """The value of a figure in a row; None where it was not or could not be measured."""
    at: Any = row
    for part in figure.key.split("."):
        at = at.get(part) if isinstance(at, Mapping) else None
    return None if at is None else float(at)


def better(figure: Figure, one: float | None, other: float | None) -> int:
    """Which of two values is better: -1 the first, 1 the second, 0 neither, or nobody can say."""
    if one is None or other is None or not figure.better or one == other:
        return 0
    return 1 if (other > one) == (figure.better > 0) else -1


def table(rows: Mapping[str, Row], cards: Mapping[str, Row], figures: Sequence[Figure] = FIGURES) -> pd.DataFrame:
    """One row an encoder: its name, loss, epochs and seeds, and the figures that at least one of them has."""
    lines = []
    for name, row in rows.items():
        card = cards.get(name.partition(":")[0], {})
        about = {"encoder": name, "loss": card.get("loss"), "epochs": card.get("epochs"), "seeds": row.get("seeds", 1)}
        lines.append(about | {f.key: reading(row, f) for f in figures})
    frame = pd.DataFrame(lines, columns=["encoder", "loss", "epochs", "seeds", *(f.key for f in figures)])
    numbers = [f.key for f in figures]
    frame[numbers] = frame[numbers].astype(float)
    return frame.drop(columns=[key for key in numbers if frame[key].isna().all()])


def heights(values: NDArray[np.float64], figures: Sequence[Figure]) -> NDArray[np.float64]:
    """Where on its axis each value stands, 0 to 1, so that up is better on every axis that has a better end.

    Args:
        values: (R, F), NaN = not known.
        figures: F.

    Returns:
        (R, F), NaN where it is not known; a half where all are equal.
    """
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    same = high == low
    share = np.where(same & ~np.isnan(values), 0.5, (values - low) / np.where(same, 1.0, high - low))
    return np.where([f.better < 0 for f in figures], 1 - share, share)


def together(study: Study, within: NDArray[np.bool_], k: int = 10) -> float:
    """How far selected samples keep to themselves: share of their k nearest neighbours that are selected too.

    Raises:
        MissingEvidence: there are no features.
    """
    with study.lock:
        near = study.evidence.neighbors.indices[:, :k]
    return float(within[near[within]].mean()) if within.any() else float("nan")


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
    parts = study.key, study.test_key, study.seed, study.detection_keys(), study.verdict_key(), [f.key for f in FIGURES]
    return digest(*parts)


def known(study: Study) -> bool:
    """Can the figures be had without measuring?"""
    return study.workspace.has("encoder", figures_key(study))


def stored(workspace: Workspace, key: str) -> Row | None:
    """The figures that are stored under a key, if there are any."""
    found = workspace.find("encoder", key)
    return None if found is None else unpack(found["row"])


def only(
    one: NDArray[np.bool_], other: NDArray[np.bool_], gap: NDArray[np.float64], within: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Positions of the samples that one flags and the other does not, the widest gap first.

    Args:
        one, other: (N,) flags.
        gap: (N,) by how much more suspicious a sample is to the one.
        within: only these; None = all.
    """
    order = np.argsort(-gap, kind="stable")
    chosen = one & ~other if within is None else one & ~other & within
    return order[chosen[order]]


def _measure(study: Study, report: Report) -> Row:
    X = study.embed(_within(report, 0.0, 0.2))
    if X is None:
        raise InputError(f"{study.dataset.name} has neither pictures nor features")
    row: Row = {}
    observed, truth = study.observed, study.truth
    if truth is not None:
        row["auroc_ood_linear"] = linear_separability(X, truth.kind == OOD, study.seed)
    report("test pictures", 0.2)
    if (test := study.test_features()) is not None:
        row["knn_accuracy"] = knn_accuracy(X, observed.labels, *test, NEIGHBOURS)
        row["linear_accuracy"] = linear_accuracy(*study.evidence.head, *test)
    report("geometry", 0.35)
    if (views := study.two_views(VIEWS)) is not None:
        row["alignment"] = alignment(*views)
    row |= {"uniformity": uniformity(X), "effective_rank": effective_rank(X), "isotropy": isotropy(X)}
    cuts = [Cut(slug) for slug in registry.methods("detector")]
    done, skipped = run_detectors(study, cuts, skip=True, report=_within(report, 0.4, 0.9))
    if truth is not None:
        figures = {d.slug: study.figures(d, d.own) for d in done}
        wanted = ("auroc_ood", "auroc_mislabelled", "auroc_any")
        row["detectors"] = {slug: {key: found.get(key) for key in wanted} for slug, found in figures.items()}
    row["skipped"] = skipped
    verdict = study.verdict(report=_within(report, 0.9, 1.0))
    row["called"] = dict(zip(KINDS, np.bincount(verdict.kinds, minlength=len(KINDS)).tolist(), strict=True))
    row["verdict_macro_f1"] = study.judged(verdict).get("macro_f1")
    if study.encoder != OWN_FEATURES and (seconds := study.card()["seconds_per_epoch"]):
        row["seconds_per_epoch"] = seconds
    return {key: value for key, value in row.items() if value is not None}


def _within(report: Report, start: float, end: float) -> Report:
    """Tells of a part of the work as a part of the whole."""
    return lambda what, share: report(what, start + (end - start) * share)


def at_hand(cards: Mapping[str, Row], usual: str) -> list[str]:
    """The features that are measured where nobody names any: of all encoders, but those that were trained elsewhere.

    Args:
        cards: name -> model card.
        usual: the encoder of the dataset for those who choose none (`default_encoder`); it is measured in any case.
    """
    chosen = {name: card for name, card in cards.items() if name == usual or not card.get("about")}
    return [full for name, card in chosen.items() for full in embeddings(name, card)]


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
        names: which (see `chaffinch.study.embeddings`); None = those `at_hand`.
        workspace: where encoders and results are.
        seed: of everything that draws.
        report: progress.
        skip: collect what cannot be measured, with the reason, instead of raising.

    Returns:
        name -> figures; those of an encoder trained with several seeds are means, under the name with the lowest seed,
        with ``encoders`` (their names), ``seeds`` (how many) and ``sd`` (sample standard deviations, by key). And
        name -> reason for those left out.

    Raises:
        InputError: an encoder cannot be measured and ``skip`` is False.
    """
    found = encoder_cards(workspace)
    cards, usual = {name: card for name, (_, card) in found.items()}, default_encoder(dataset.observed, found)[0]
    wanted = list(names) if names is not None else at_hand(cards, usual)
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
    return over_seeds(rows, cards), failed


def over_seeds(rows: Mapping[str, Row], cards: Mapping[str, Row]) -> dict[str, Row]:
    """Rows of encoders that differ in the seed only, as one row each; ``encoders`` names those it is the mean of."""
    groups: list[tuple[str, dict[int, str]]] = []  # what they have in common; seed -> name
    for name in rows:
        base, _, layer = name.partition(":")
        card = cards.get(base, {})
        common, seed = digest(layer, *(card.get(key, base) for key in SAME)), int(card.get("seed", 0))
        # a seed that the group has already is a training repeated, not one more of it
        group = next((seeds for key, seeds in groups if key == common and seed not in seeds), None)
        if group is None:
            groups.append((common, {seed: name}))
        else:
            group[seed] = name
    ordered = [[seeds[seed] for seed in sorted(seeds)] for _, seeds in groups]
    return {group[0]: _mean([rows[name] for name in group]) | {"encoders": group} for group in ordered}


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

"""The Intrinsic Strategy: what lies next to a classifier's misses was probably filed under the wrong class."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.neighbors import nearest_in, unit_rows
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels, probabilities


class IntrinsicStrategy(Detector):
    r"""Samples of a class next to misses that the classifier took for that class share the misses' true class.

    A miss of class c is a sample with another label that the out-of-sample prediction puts into c: perhaps because
    samples like it were filed under c. So with :math:`S_c` = the misses of c, for each sample j labelled c

    .. math:: r_j = \max_{s \in S_c} \cos(h_j, h_s), \qquad
        s_j = (1 - p_{j,c}) + \big(r_j - \cos(h_j, \mu_c)\big)

    Flags: for every miss its k nearest among the samples labelled c. Suggestion: the label of the nearest miss.

    The paper has one catch-all class ("no relation"), takes all other labels as clean and eliminates what it flags; set
    ``negative`` for that. With None every class is the catch-all in turn. Then a miss may itself be the mislabelled one
    and would flag the clean samples around it; misses that the classifier is as sure of as of that class's own samples
    are therefore left out.

    The paper gives no score. Here r is made comparable between classes by the similarity to the centre of the own
    class, and 1 - p ranks what no miss is near to. The latter is also the plain baseline, which wins wherever the
    classifier has not learnt the noise; ``info_["baseline"]`` shows it beside.

    Source: Parekh, Anand, Awekar, 2023, arXiv 2311.12298.

    Args:
        k: nearest samples that each miss flags.
        negative: code of the one class searched; None = every class in turn.
        min_similarity: cosine below which a sample is not flagged; None = no such gate.
    """

    card = MethodCard(
        slug="tacred-intrinsic",
        name="Next to misses (intrinsic)",
        paper="Noise in Relation Classification Dataset TACRED: Characterization and Reduction "
        "(Parekh, Anand, Awekar; 2023)",
        arxiv="2311.12298",
        year=2023,
        formula=r"s_j = (1-p_{j,y_j}) + \max_{s\in S_{y_j}}\cos(h_j,h_s) - \cos(h_j,\mu_{y_j}),\quad "
        r"S_c = \{i : y_i\neq c,\ \arg\max p_i = c\}",
        summary="Where a classifier errs, it was often misled: looks for wrong labels right beside its errors. Finds "
        "noise that the classifier itself has learnt to believe.",
        fails_when="The classifier makes no errors but those the labels make; then it flags little, or clean pictures "
        "beside a wrong label, and the plain disagreement with the classifier is better.",
        finds={"mislabelled"},
    )

    def __init__(self, k: int = 3, negative: int | None = None, min_similarity: float | None = None) -> None:
        self.k = k
        self.negative = negative
        self.min_similarity = min_similarity

    def fit(self, X: Any, y: Labels, *, pred_probs: Array | None = None) -> IntrinsicStrategy:
        """Score every sample.

        Args:
            X: (N, D) features.
            y: (N,) given labels.
            pred_probs: (N, C) out-of-sample probabilities.

        Raises:
            InputError: a parameter out of range, or nobody carries the class ``negative``.
        """
        if self.k < 1:
            raise InputError(f"tacred-intrinsic: k must be at least 1, got {self.k}")
        if self.negative is not None and not (y == self.negative).any():
            raise InputError(f"tacred-intrinsic: no sample is labelled {self.negative}, which negative names")
        p = probabilities(X, y, pred_probs)
        own, predicted = p[np.arange(len(y)), y], p.argmax(axis=1)
        searched = np.unique(y) if self.negative is None else np.array([self.negative])
        excess, known = np.zeros(len(y)), np.zeros(len(y), bool)
        self.flags_, self.suggestions_ = np.zeros(len(y), bool), y.copy()
        seeds, torn = np.zeros(p.shape[1], np.int64), 0
        for c in searched:
            filed = np.flatnonzero(y == c)
            misses = (y != c) & (predicted == c)
            if self.negative is None:
                misses &= p[:, c] < own[filed].mean()
            if not misses.any():
                continue
            missed = np.flatnonzero(misses)
            seeds[c] = len(missed)
            excess[filed], flags, nearest, claims = self._beside(X, filed, missed, y)
            known[filed], self.flags_[filed] = True, flags
            self.suggestions_[filed[flags]] = y[missed[nearest[flags]]]
            torn += claims
        if known.any():
            excess[~known] = excess[known].min()
        self.scores_ = 1 - own + excess
        if self.negative is not None and (y != self.negative).any():  # taken as clean: below all others
            clean = y != self.negative
            self.scores_[clean] = self.scores_[~clean].min() - own[clean]
        baseline = np.isin(y, searched) & (predicted != y)
        self.info_ = {
            "k": self.k,
            "seeds": seeds.tolist(),
            "flagged": np.bincount(y[self.flags_], minlength=len(seeds)).tolist(),
            "claimed_by_several": torn,
            "baseline": {"flagged": int(baseline.sum()), "shared": int((baseline & self.flags_).sum())},
        }
        if not known.any():
            self.info_["note"] = (
                "the classifier missed nothing, so there is nothing to look beside: the scores are its plain doubt in "
                "the given label, and no sample is flagged"
            )
        return self

    def _beside(self, X: Any, filed: Labels, missed: Labels, y: Labels) -> tuple[Array, Flags, Labels, int]:
        """Of the samples filed under a class: excess similarity, flags, nearest miss, and how many labels claim two."""
        found = nearest_in(X[filed], X[missed], self.k)
        claims = np.unique(np.column_stack([found.indices.ravel(), np.repeat(y[missed], found.k)]), axis=0)
        claimed = np.bincount(claims[:, 0], minlength=len(filed))
        near = nearest_in(X[missed], X[filed], 1)
        r = near.similarity[:, 0].astype(np.float64)
        unit = unit_rows(X[filed])
        centre = unit.mean(axis=0, dtype=np.float64)
        typical = unit @ (centre / max(float(np.linalg.norm(centre)), 1e-10))
        flags = claimed > 0 if self.min_similarity is None else (claimed > 0) & (r >= self.min_similarity)
        return r - typical, flags, near.indices[:, 0], int((flags & (claimed > 1)).sum())

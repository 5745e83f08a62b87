"""The Extrinsic Strategy: trusted samples vote on the label of every other."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError, MissingEvidence
from ..base.neighbors import nearest_in
from ..card import MethodCard
from .base import Detector, Labels, Trusted

TIE = 1e-3
"""Weight of the similarity within a vote: it orders equal votes and overturns none, for fewer than 1000 voters."""

BLOCK = 16384
"""Samples whose votes are counted at once."""


class ExtrinsicStrategy(Detector):
    r"""The k nearest samples known to be right vote; a label they contradict is suspicious.

    .. math:: q_{jc} = \tfrac1k \sum_{m \in NN_k(j)} [y_m = c], \qquad s_j = 1 - q_{j,y_j}, \qquad
        \text{flag}_j = [\arg\max_c q_{jc} \ne y_j]

    Neighbours by cosine. Equal votes are ordered by similarity. The paper does this for one catch-all class and for the
    others apart; here it is one vote for all. A trusted sample does not vote on itself, and is flagged only if its own
    trusted label says so. A class without any trusted sample cannot be confirmed, so its samples are left at one half.

    Source: Parekh, Anand, Awekar, 2023, arXiv 2311.12298; the number of neighbours is not given there.

    Args:
        k: trusted neighbours that vote.
        balanced: weigh votes by one over the class's number of trusted samples; without it frequent classes win.
        min_similarity: cosine below which a neighbour abstains; None = all vote. Where all abstain the score is one
            half.
    """

    card = MethodCard(
        slug="tacred-extrinsic",
        name="Trusted neighbours (extrinsic)",
        paper="Noise in Relation Classification Dataset TACRED: Characterization and Reduction "
        "(Parekh, Anand, Awekar; 2023)",
        arxiv="2311.12298",
        year=2023,
        formula=r"s_j = 1 - \tfrac1k\sum_{m\in NN_k(j)\cap \mathrm{trusted}} [y_m = y_j]",
        summary="A few pictures known to be right vote on the label of every other. Cannot be misled by consistent "
        "noise, as no doubtful label has a vote.",
        fails_when="The trusted pictures are few or miss whole kinds of picture; foreign pictures have no like among "
        "them and get a vote all the same.",
        finds={"mislabelled"},
    )

    def __init__(self, k: int = 10, balanced: bool = False, min_similarity: float | None = None) -> None:
        self.k = k
        self.balanced = balanced
        self.min_similarity = min_similarity

    def fit(self, X: Any, y: Labels, *, trusted: Trusted | None = None) -> ExtrinsicStrategy:
        """Score every sample.

        Args:
            X: (N, D) features.
            y: (N,) given labels.
            trusted: samples whose labels are known to be right.

        Raises:
            MissingEvidence: there are no trusted samples.
            InputError: too few of them, one of them twice, or k out of range.
        """
        if trusted is None or not len(trusted):
            raise MissingEvidence(
                self.card.slug, "trusted", "mark rows known to be clean with 'trusted' (N,) in the arrays"
            )
        rows = trusted.rows
        if not 1 <= self.k < 1 / TIE:
            raise InputError(f"tacred-extrinsic: k must be 1 to {1 / TIE - 1:.0f}, got {self.k}")
        inside = rows[rows >= 0]
        if len(np.unique(inside)) < len(inside):
            raise InputError("tacred-extrinsic: trusted rows: a sample is there twice; name each once")
        if len(rows) == 1 and len(inside):
            raise InputError("tacred-extrinsic: one trusted sample cannot vote on itself; give at least two")
        n_classes = int(max(y.max(), trusted.y.max())) + 1
        counts = np.bincount(trusted.y, minlength=n_classes)
        weights = 1 / np.maximum(counts, 1) if self.balanced else np.ones(n_classes)
        k = min(self.k, len(rows) - int(len(inside) > 0))
        self.scores_, self.suggestions_ = np.empty(len(y)), y.copy()
        for start in range(0, len(y), BLOCK):
            part = np.arange(start, min(start + BLOCK, len(y)))
            found = nearest_in(trusted.X, X[part], k + 1)
            own = rows[found.indices] == part[:, None]
            own[~own.any(axis=1), k:] = True  # not among them: drop the farthest, if there is one too many
            labels = trusted.y[found.indices[~own].reshape(-1, k)]
            similarity = found.similarity[~own].reshape(-1, k).astype(np.float64)
            w = weights[labels]
            votes = np.zeros((len(part), n_classes))
            cast = w * (1 + TIE * similarity)
            if self.min_similarity is not None:
                cast[similarity < self.min_similarity] = 0.0
            for label, vote in zip(labels.T, cast.T, strict=True):
                votes[np.arange(len(part)), label] += vote
            for_it = votes[np.arange(len(part)), y[part]]
            self.scores_[part] = 0.5 + (votes.sum(axis=1) - 2 * for_it) / (2 * w.sum(axis=1))
            decided = (votes.max(axis=1) > for_it) & (counts[y[part]] > 0)
            self.suggestions_[part[decided]] = votes[decided].argmax(axis=1)
        self.scores_[counts[y] == 0] = 0.5
        self.suggestions_[inside] = trusted.y[rows >= 0]
        self.flags_ = self.suggestions_ != y
        self.info_ = {"k": k, "trusted": len(trusted), "trusted_per_class": counts.tolist()}
        notes = []
        if k < self.k:
            notes.append(f"there are only {len(trusted)} trusted samples, so {k} vote instead of {self.k}")
        if unknown := sorted(set(y[counts[y] == 0].tolist())):
            notes.append(f"no trusted sample carries label {', '.join(map(str, unknown))}, so it was not judged")
        if notes:
            self.info_["note"] = "; ".join(notes)
        return self

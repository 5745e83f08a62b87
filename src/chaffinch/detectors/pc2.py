"""Pseudo-classification: does a picture match its label, and does the prediction hold still?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.mixture import fit_mixture
from ..base.runs import History, recorded
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels


class PseudoClassification(Detector):
    r"""Small losses are trusted, and the more so where the prediction has not moved since the warm-up.

    With p after the last epoch and the bank b after the warm-up, two mixtures give w = P(low loss) and
    u = P(low oscillation), where the oscillation is :math:`\mathrm{KL}(p_i \Vert b_i)`:

    .. math:: m_i = \begin{cases} w_i + (1-w_i)\,u_i\,[u_i > \tfrac12] & w_i > t \\ w_i & \text{otherwise} \end{cases},
        \qquad s_i = 1 - m_i, \qquad \text{flag}_i = [w_i \le t]

    s is computed as a product of P(high), which keeps apart what is almost certain, and grows by a billionth with each
    nat of loss, because posteriors of 1 would tie. Where no sample falls below t, the hundredth with the largest losses
    is flagged, as in the paper. The paper matches pictures with captions; here the pair is a picture and its given
    label, the pair's loss is the cross-entropy, and the prediction is the pseudo-class. Only trusted pairs are
    corrected, as there: a wrong label that a classifier steadily contradicts would be cleared otherwise.

    Source: Duan, Gu, Ying, Qi, Meng, Shi, ACM Multimedia 2024, arXiv 2408.01349.

    Args:
        threshold: t, P(low loss) up to which a sample is flagged.
        warm_up: epochs before the prediction is banked.
        stop: epochs used, counted from the start; None = all.
        seed: of the mixtures' initialisation.

    Attributes:
        oscillation_: (N,) nats between the banked and the last prediction.
    """

    card = MethodCard(
        slug="pc2",
        name="Prediction oscillation (PC²)",
        paper="PC²: Pseudo-Classification Based Pseudo-Captioning for Noisy Correspondence Learning in Cross-Modal "
        "Retrieval (Duan, Gu, Ying, Qi, Meng, Shi; ACM Multimedia 2024)",
        arxiv="2408.01349",
        year=2024,
        formula=r"s_i = 1 - \big(w_i + (1-w_i)\,u_i\,[u_i>\tfrac12]\,[w_i>t]\big),\quad u_i = "
        r"P\big(\mathrm{low}\mid \mathrm{KL}(p_i\,\Vert\,b_i)\big)",
        summary="Labels that are hard to believe are suspicious; among the others, pictures of which the classifier "
        "has changed its mind are looked at first.",
        fails_when="Nothing is memorised, for then predictions of wrong and right labels are equally steady and only "
        "the loss counts; rare clean pictures have large losses and move much.",
        finds={"mislabelled"},
    )
    uses_features = False

    oscillation_: Array

    def __init__(self, threshold: float = 0.5, warm_up: int = 5, stop: int | None = None, seed: int = 0) -> None:
        self.threshold = threshold
        self.warm_up = warm_up
        self.stop = stop
        self.seed = seed

    def fit(self, X: Any, y: Labels, *, history: History | None = None) -> PseudoClassification:
        """Score every sample.

        Args:
            X: not used.
            y: (N,) given labels.
            history: record of a training on them, longer than the warm-up.

        Raises:
            InputError: all losses are equal, or the record is too short.
        """
        record = recorded(history, "pc2", stop=self.stop)
        if record.epochs < 2:
            raise InputError("pc2: oscillation needs two epochs or more, the history has one; record more")
        if not 1 <= self.warm_up < record.epochs:
            raise InputError(
                f"pc2: warm_up must be from 1 to {record.epochs - 1}, less than the {record.epochs} epochs, "
                f"got {self.warm_up}; lower it or record more epochs"
            )
        log_p = record.after[-1].astype(np.float64)
        losses = -log_p[np.arange(len(y)), y]
        mixture = fit_mixture(losses, seed=self.seed)
        noisy = mixture.monotone_posterior(losses)
        trusted = 1.0 - noisy > self.threshold
        self.info_ = {
            "means": (mixture.low + (mixture.high - mixture.low) * mixture.means).tolist(),
            "weights": mixture.weights.tolist(),
            "bank_epoch": self.warm_up,
        }
        if trusted.all():
            trusted[np.argsort(-losses, kind="stable")[: max(1, len(y) // 100)]] = False
            self.info_["note"] = "no label was hard to believe, so the hundredth with the largest losses is flagged"
        self.oscillation_ = divergence(log_p, record.after[self.warm_up - 1])
        unstable = np.zeros(len(y))
        if np.ptp(self.oscillation_) > 0:
            unstable = fit_mixture(self.oscillation_, seed=self.seed).monotone_posterior(self.oscillation_)
        self.scores_ = mismatch(noisy, unstable, trusted) * (1.0 + 1e-9 * losses)
        self.flags_ = ~trusted
        self.suggestions_ = log_p.argmax(axis=1)
        self.info_["stable"] = float(np.mean(unstable < 0.5))
        return self


def divergence(log_p: Array, log_bank: Any) -> Array:
    """KL(p || bank) of each row, (N,) nats, never below 0."""
    change = log_p - log_bank.astype(np.float64)
    return np.asarray(np.maximum(np.einsum("nc,nc->n", np.exp(log_p), change), 0.0))


def mismatch(noisy: Array, unstable: Array, trusted: Flags) -> Array:
    """1 - m, 0 to 1, from 1 - w and 1 - u: as a product, it keeps apart what is almost certain."""
    return np.asarray(noisy * np.where(trusted & (unstable < 0.5), unstable, 1.0))

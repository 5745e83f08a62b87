"""The small-loss rule with DivideMix's two-component mixture."""

from __future__ import annotations

from typing import Any

from ..base.mixture import fit_mixture
from ..card import MethodCard
from .base import Array, Detector, Labels, own_label_loss, probabilities


class SmallLoss(Detector):
    r"""Samples whose given label costs a large loss are suspicious; a mixture finds where "large" begins.

    .. math:: s_i = -\log p_{i,y_i}, \qquad \text{flag}_i = [P(\text{high component} \mid s_i) > t]

    The score is the loss itself. The mixture's posterior is made monotone before it is cut: with unequal
    variances it would call the very smallest losses noisy again.

    Source: Li, Socher, Hoi, DivideMix, ICLR 2020, arXiv 2002.07394; the losses here are out-of-sample losses of
    a linear probe, where the paper takes those of a network in training.

    Args:
        threshold: posterior above which a sample is flagged.
        seed: of the mixture's initialisation.
    """

    card = MethodCard(
        slug="small-loss",
        name="Small loss (mixture)",
        paper="DivideMix: Learning with Noisy Labels as Semi-supervised Learning (Li, Socher, Hoi; ICLR 2020)",
        arxiv="2002.07394",
        year=2020,
        formula=r"s_i = -\log p_{i,y_i},\quad \mathrm{flag}_i = [P(\mathrm{high}\mid s_i) > t]",
        summary="A label the classifier cannot be brought to believe is probably wrong. Ranks wrong labels well; "
        "cannot tell them from foreign pictures.",
        fails_when="Rare or hard clean pictures have large losses too; foreign pictures that resemble the class "
        "they were filed under have small ones.",
        finds={"mislabelled"},
    )
    uses_features = False

    def __init__(self, threshold: float = 0.5, seed: int = 0) -> None:
        self.threshold = threshold
        self.seed = seed

    def fit(self, X: Any, y: Labels, *, pred_probs: Array | None = None) -> SmallLoss:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without ``pred_probs``.
            y: (N,) given labels.
            pred_probs: (N, C) out-of-sample probabilities.

        Raises:
            InputError: all losses are equal.
        """
        p = probabilities(X, y, pred_probs)
        self.scores_ = own_label_loss(p, y)
        mixture = fit_mixture(self.scores_, seed=self.seed)
        posterior = mixture.monotone_posterior(self.scores_)
        self.flags_ = posterior > self.threshold
        self.suggestions_ = p.argmax(axis=1)
        self.info_ = {
            "means": (mixture.low + (mixture.high - mixture.low) * mixture.means).tolist(),
            "weights": mixture.weights.tolist(),
            "threshold": float(self.scores_[self.flags_].min()) if self.flags_.any() else None,
        }
        return self

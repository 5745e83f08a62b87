"""Two-stage detection: is the label wrong, and can the guess that would replace it be trusted?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.mixture import fit_mixture
from ..base.runs import History, recorded
from ..card import MethodCard
from .base import Array, Detector, Flags, Labels


class PseudoLoss(Detector):
    r"""Stage 1 calls large losses noisy; stage 2 asks whether prediction and guess agree on what else they could be.

    With p after the last epoch and the guess :math:`q_c \propto \hat p_c^\gamma` from the prediction :math:`\hat p`
    seen in that epoch's training:

    .. math:: \text{flag}_i = [P(\text{high} \mid -\log p_{i,y_i}) > t], \qquad \pi_i = -\sum_c q_{ic} \log p_{ic}

    .. math:: s_i = \begin{cases} 1 + \pi_i & \text{flagged} \\
        \log p_{i,y_i} / \log p^* & \text{otherwise} \end{cases}

    where :math:`-\log p^*` is the smallest flagged loss, so that flags are scores from 1. The pseudo-loss is small if
    both predictions are sure of one class: the sample is mislabelled and the guess is its suggestion. It is large for
    samples nobody can name, which are mostly foreign and come first. The paper uses both stages to train, and has no
    single score; this is the order in which its training trusts samples. A mixture on the flagged samples'
    pseudo-losses gives the weight of each guess; where it is at most 1/2, the given label stays as the suggestion.

    Source: Albert, Arazo, Krishna, O'Connor, McGuinness, WACV 2023, arXiv 2210.04578.

    Args:
        threshold: t, posterior above which a sample is noisy.
        gamma: sharpens the guess; 1 = not at all.
        stop: epochs used, counted from the start; None = all.
        seed: of the mixtures' initialisation.

    Attributes:
        pseudo_loss_: (N,) the pseudo-loss of every sample.
        guess_weight_: (N,) trust in the sample's target: 1 for samples not flagged, else in the guess.
    """

    card = MethodCard(
        slug="pls",
        name="Pseudo-loss (PLS)",
        paper="Is your noise correction noisy? PLS: Robustness to label noise with two stage detection "
        "(Albert, Arazo, Krishna, O'Connor, McGuinness; WACV 2023)",
        arxiv="2210.04578",
        year=2023,
        formula=r"s_i = \begin{cases}1+\pi_i & P(\mathrm{high}\mid -\log p_{i,y_i})>t\\"
        r"\log p_{i,y_i}/\log p^* & \text{otherwise}\end{cases},\quad \pi_i=-\sum_c q_{ic}\log p_{ic}",
        summary="First finds labels that are hard to believe, then puts those first for which the classifier knows no "
        "better label either: foreign pictures before wrong labels.",
        fails_when="Foreign pictures look so much like one class that the classifier is sure of it, or it contradicts "
        "wrong labels so strongly that those of foreign pictures pass; hard clean pictures, once flagged, come before "
        "wrong labels.",
        finds={"mislabelled", "ood"},
    )
    uses_features = False

    pseudo_loss_: Array
    guess_weight_: Array

    def __init__(self, threshold: float = 0.95, gamma: float = 2.0, stop: int | None = None, seed: int = 0) -> None:
        self.threshold = threshold
        self.gamma = gamma
        self.stop = stop
        self.seed = seed

    def fit(self, X: Any, y: Labels, *, history: History | None = None) -> PseudoLoss:
        """Score every sample.

        Args:
            X: not used.
            y: (N,) given labels.
            history: record of a training on them.

        Raises:
            InputError: all losses are equal, or gamma is not positive.
        """
        record = recorded(history, "pls", stop=self.stop)
        if not 0 < self.gamma < np.inf:
            raise InputError(f"pls: gamma must be positive, got {self.gamma}; 2 is usual")
        log_p = np.minimum(record.after[-1].astype(np.float64), 0.0)  # rounding may exceed 0
        losses = -log_p[np.arange(len(y)), y]
        mixture = fit_mixture(losses, seed=self.seed)
        noisy = mixture.monotone_posterior(losses) > self.threshold
        cut = float(losses[noisy].min()) if noisy.any() else None
        guess = sharpen(record.seen[-1].astype(np.float64), self.gamma)
        self.pseudo_loss_ = -np.einsum("nc,nc->n", guess, log_p)
        self.guess_weight_, note = self._weigh(noisy)
        self.scores_ = np.where(noisy, 1.0 + self.pseudo_loss_, losses / (cut or losses.max()))
        self.flags_ = noisy
        trusted = noisy & (self.guess_weight_ > 0.5)
        self.suggestions_ = np.where(trusted, guess.argmax(axis=1), y)
        self.info_ = {
            "means": (mixture.low + (mixture.high - mixture.low) * mixture.means).tolist(),
            "weights": mixture.weights.tolist(),
            "loss_threshold": cut,
            "threshold": 1.0,
            "trusted_guesses": int(trusted.sum()),
            **note,
        }
        return self

    def _weigh(self, noisy: Flags) -> tuple[Array, dict[str, str]]:
        """Stage 2: the weight of each sample's target (N,), and a note if the stage could not be run."""
        weight = np.ones(len(noisy))
        values = self.pseudo_loss_[noisy]
        if len(np.unique(values)) < 2:
            return weight, {"note": "too few samples were flagged to tell good guesses from bad; all are suggested"}
        weight[noisy] = 1.0 - fit_mixture(values, seed=self.seed).monotone_posterior(values)
        return weight, {}


def sharpen(log_probs: Array, gamma: float) -> Array:
    """Probabilities (N, C) to the power gamma, normalised."""
    q = np.exp(gamma * (log_probs - log_probs.max(axis=1, keepdims=True)))
    return np.asarray(q / q.sum(axis=1, keepdims=True))

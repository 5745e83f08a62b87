"""PLS-LSA+: two networks that guess together and must agree before a sample is flagged."""

from __future__ import annotations

import torch
from torch import Tensor

from ..card import MethodCard
from .base import Division, Site, Trainer, log_probs
from .pls_lsa import PlsLsa


class PlsLsaPlus(PlsLsa):
    r"""PLS-LSA with two networks from the same start, one trained after the other within an epoch.

    From the second epoch on, a guess is the mean of both networks' probabilities on one weak view. After an epoch each
    network divides the samples by its own losses, activations and guesses; a sample is flagged if both flag it, and its
    guess is trusted by the mean of the two, w = 1 for samples that are not flagged. Predictions are the mean of both
    networks' logits.

    Differs from the released code where that looks unintended: each network keeps its own guesses.

    Source: Albert, Valmadre, Arazo, Krishna, O'Connor, McGuinness, ECCV 2024, arXiv 2407.05528.

    Args:
        threshold: posterior above which a sample is flagged, or seeds the plane.
        layer: whose activations the plane cuts.
        gamma: how much a guess is sharpened.
        contrast: weight of the contrastive term; 0 leaves it out.
        temperature: of the contrastive term.
        balance: weight of the balance penalty of PLS.
        weigh: trust guesses as far as their pseudo-loss says; otherwise fully.
        alpha: of mixup.
        warmup: epochs of plain mixup first, at least 1.
    """

    card = MethodCard(
        slug="pls-lsa-plus",
        name="PLS-LSA+",
        paper=PlsLsa.card.paper,
        arxiv="2407.05528",
        year=2024,
        formula=r"\text{flags} = \text{flags}^1 \wedge \text{flags}^2,\qquad w = \tfrac12 (w^1 + w^2),\qquad"
        r" q \propto \big(\tfrac12 (p^1 + p^2)\big)^\gamma",
        summary="PLS-LSA with two networks that check one another: a sample is flagged only if both doubt it.",
        fails_when="As PLS-LSA, and at twice the cost; networks from one start make many of the same mistakes.",
    )
    networks = 2

    def setup(self, site: Site) -> None:
        """Start both networks' guesses (2, N, C) at the given labels."""
        super().setup(site)
        self.guess = self.guess.repeat(2, 1, 1)

    def consult(self, k: int, x: Tensor, epoch: int) -> Tensor:
        """The mean of both networks' probabilities; in the first epoch, when one has learnt nothing, its own."""
        if epoch == 0:
            return super().consult(k, x, epoch)
        return torch.stack([log_probs(net(x)).exp() for net in self.nets]).mean(0)

    def remember(self, k: int, rows: Tensor, q: Tensor) -> None:
        """Keep guesses (B, C) of network k."""
        self.guess[k, rows] = q

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Flagged by both; trusted by the mean."""
        if epoch < self.warmup - 1:
            return Trainer.divide(self, looks, epoch)
        one, two = (
            self.trusting(self.flag(look, epoch), look["logits"], guess)
            for look, guess in zip(looks, self.guess, strict=True)
        )
        return merged(one, two)


def merged(one: Division, two: Division) -> Division:
    """Two networks' divisions as one: flags of both, everything else the mean, trust 1 where not flagged."""

    def mean(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return None if a is None or b is None else (a + b) / 2

    flags, weights = one.flags & two.flags, mean(one.weights, two.weights)
    if weights is not None:
        weights = weights.masked_fill(~flags, 1.0)
    notes = dict.fromkeys(note for note in (one.note, two.note) if note)
    return Division(
        flags, mean(one.scores, two.scores), one.detector, weights, mean(one.pseudo_losses, two.pseudo_losses),
        mean(one.targets, two.targets), "; ".join(notes),
    )  # fmt: skip

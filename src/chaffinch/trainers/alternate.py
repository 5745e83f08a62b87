"""Two detectors in turn, an epoch each; what they flag is left out."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ..base.errors import InputError
from ..card import MethodCard
from .base import Division, kept_only
from .dividing import check_warmup, flagged_by
from .mixup import Mixup


class Alternate(Mixup):
    r"""Mixup on the samples that a detector kept; the linear detector and the small-loss rule take turns.

    After each epoch e from the last of the warm-up on, entry e mod 2 of (linear separation, small loss) divides all
    samples by what the network says of the plain pictures; flagged ones are left out of epoch e + 1. An epoch has the
    same number of steps whatever is left, so that trainers compare at the same budget.

    - Small loss: the given labels' cross-entropies, two Gaussian components, noisy where the posterior of the higher
      one is above the threshold.
    - Linear: a balanced logistic plane through the layer's pooled activations, seeded by the small-loss rule.

    Source: Albert, Valmadre, Arazo, Krishna, O'Connor, McGuinness, ECCV 2024, arXiv 2407.05528 (the alternation alone,
    without its guesses and its contrastive term).

    Args:
        alpha: of mixup.
        threshold: posterior above which a sample is flagged, or seeds the plane.
        layer: whose activations the plane cuts.
        warmup: epochs of plain mixup first, at least 1.
    """

    card = MethodCard(
        slug="alternate",
        name="Alternating detectors",
        paper="An accurate detection is not all you need to combat label noise in web-noisy datasets "
        "(Albert, Valmadre, Arazo, Krishna, O'Connor, McGuinness; ECCV 2024)",
        arxiv="2407.05528",
        year=2024,
        formula=r"\text{flags}_{e+1} = \begin{cases} \mathrm{linear}(h, \ell) & e \text{ even}\\"
        r" [P(\mathrm{high}\mid \ell) > t] & e \text{ odd} \end{cases}",
        summary="The linear detector and the small-loss rule take turns, an epoch each, and what is flagged is left "
        "out. Simple clean pictures that the linear detector throws away come back every other epoch.",
        fails_when="Leaving out costs more than it saves: what is flagged teaches nothing, not even to guess.",
    )
    turns: ClassVar[tuple[str, ...]] = ("lsa", "small-loss")

    def __init__(self, alpha: float = 1.0, threshold: float = 0.95, layer: str = "layer2", warmup: int = 1) -> None:
        super().__init__(alpha)
        if not 0 < threshold < 1:
            raise InputError(f"threshold must lie between 0 and 1, got {threshold}")
        self.threshold, self.layer, self.warmup = float(threshold), layer, check_warmup(warmup)
        self.layers = (layer,)

    def visit(self, k: int, epoch: int, rng: torch.Generator) -> Tensor:
        """Positions of the kept samples, again and again until there are N."""
        return kept_only(self.flags, rng)

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Let the detector whose turn it is divide the samples."""
        if epoch < self.warmup - 1:
            return super().divide(looks, epoch)
        (look,) = looks
        detector = self.turns[epoch % len(self.turns)]
        return flagged_by(detector, look["logits"], self.labels, look[self.layer], self.threshold)

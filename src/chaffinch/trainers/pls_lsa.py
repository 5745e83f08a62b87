"""PLS-LSA: two-stage detection whose first stage alternates between a linear detector and the small-loss rule."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..card import MethodCard
from .base import Batch, Division, Step, Trainer, log_probs
from .dividing import flagged_by
from .mixing import Mix, draw_mix, mixed_ce, same_class, sharpen
from .pls import PseudoLossSelection


class PlsLsa(PseudoLossSelection):
    r"""Guessed labels for what is flagged, and two detectors that take turns in flagging.

    After each epoch e from the last of the warm-up on, entry e mod 2 of (linear separation, small loss) flags samples
    for epoch e + 1:

    - Small loss: posterior of the large-loss component above the threshold.
    - Linear: a balanced logistic plane through the layer's pooled activations, seeded by the small-loss rule.

    Either throws away what the other keeps: the linear one simple clean pictures on the foreign side, the small-loss
    rule hard ones. As in PLS, a flagged sample learns from its guess :math:`q \propto \hat p^\gamma` (of one weak
    view) as far as its pseudo-loss is trusted, and mixtures carry both targets. Flagged samples enter the mixtures as
    strong views. The contrastive term pulls a mixture towards the classes of both its pictures,

    .. math:: L_{con} = \frac1B \sum_i \Big[\lambda \frac{-\sum_j T^a_{ij} \log \mathrm{sm}_j(s_{ij})}{\sum_j T^a_{ij}}
        + (1-\lambda) \frac{-\sum_j T^b_{ij} \log \mathrm{sm}_j(s_{ij})}{\sum_j T^b_{ij}}\Big], \quad
        T^a_{ij} = [\hat c_i = \hat c_j],\; T^b_{ij} = [\hat c_{o(i)} = \hat c_j]

    and is not weighted. The warm-up is plain mixup. Unless asked for there is no balance penalty. The learning rate is
    a cosine from the first epoch on.

    Differs from the released code in the strong views: its random resized crop is a shift here, as in weak views.

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
        warmup: epochs of plain mixup first, at least 1 (the released code counts from 0).
    """

    card = MethodCard(
        slug="pls-lsa",
        name="PLS-LSA",
        paper="An accurate detection is not all you need to combat label noise in web-noisy datasets "
        "(Albert, Valmadre, Arazo, Krishna, O'Connor, McGuinness; ECCV 2024)",
        arxiv="2407.05528",
        year=2024,
        formula=r"L = \frac{\sum_i w_i\,CE(x_i, t_i)}{\sum_i w_i} + L_{con},\qquad \text{flags}_{e+1} ="
        r" \begin{cases} \mathrm{linear}(h, \ell) & e \text{ even}\\ [P(\mathrm{high}\mid\ell) > t] & e \text{ odd}"
        r" \end{cases}",
        summary="The linear detector and the small-loss rule take turns, an epoch each. What is flagged is not left "
        "out: its label is guessed, and guesses count as far as they can be trusted.",
        fails_when="There is hardly any foreign noise, so the linear detector has nothing to find; or the features it "
        "cuts do not come from a contrastive start.",
    )
    turns: ClassVar[tuple[str, ...]] = ("lsa", "small-loss")

    def __init__(
        self,
        threshold: float = 0.95,
        layer: str = "layer2",
        gamma: float = 2.0,
        contrast: float = 1.0,
        temperature: float = 0.2,
        balance: float = 0.0,
        weigh: bool = True,
        alpha: float = 1.0,
        warmup: int = 1,
    ) -> None:
        super().__init__(warmup, threshold, gamma, contrast, temperature, balance, weigh, alpha)
        self.layer, self.layers = layer, (layer,)

    def rate(self, epoch: int) -> float:
        """A cosine from the first epoch on."""
        return Trainer.rate(self, epoch)

    def step(self, k: int, batch: Batch) -> Step:
        """Guess from one weak view, learn from mixtures of weak views of kept and strong ones of flagged samples.

        In the warm-up guesses are made, but what is learnt is plain mixup.
        """
        flagged = self.flags[batch.rows]
        x = batch.weak()
        if bool(flagged.any()):
            x = torch.where(flagged[:, None, None, None], batch.strong(), x)
        view = batch.weak()
        with torch.no_grad():
            p = self.consult(k, view, batch.epoch)
        q = sharpen(p, self.gamma)
        self.remember(k, batch.rows, q)
        t = torch.where(flagged[:, None], q, F.one_hot(batch.y, self.classes).float())
        mix = draw_mix(len(t), self.alpha, batch.rng)
        if batch.epoch < self.warmup:
            return Step(mixed_ce(self.nets[k](mix(x)), t, self.weights[batch.rows], mix), p.log())
        return self.learn(k, mix(x), t, self.weights[batch.rows], mix, batch, p.log())

    def consult(self, k: int, x: Tensor, epoch: int) -> Tensor:
        """Probabilities (B, C) that a guess is made from."""
        return log_probs(self.nets[k](x)).exp()

    def remember(self, k: int, rows: Tensor, q: Tensor) -> None:
        """Keep guesses (B, C) of network k."""
        self.guess[rows] = q

    def contrast_targets(self, classes: Tensor, w: Tensor, mix: Mix) -> Tensor:
        """(B, B) what each mixture (row) is pulled towards: the classes of both its pictures, unweighted."""
        own = same_class(classes, classes)
        partner = own[mix.order]
        return mix.lam * own / own.sum(1, keepdim=True) + (1 - mix.lam) * partner / partner.sum(1, keepdim=True)

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Flags by the detector whose turn it is, trust by the pseudo-loss."""
        if epoch < self.warmup - 1:
            return Trainer.divide(self, looks, epoch)
        (look,) = looks
        return self.trusting(self.flag(look, epoch), look["logits"], self.guess)

    def flag(self, look: dict[str, Tensor], epoch: int) -> Division:
        """The flags of one network's look."""
        detector = self.turns[epoch % len(self.turns)]
        return flagged_by(detector, look["logits"], self.labels, look[self.layer], self.threshold)

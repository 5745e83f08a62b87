"""Generalised cross-entropy: labels that are not believed hardly pull, or not at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..base.errors import InputError
from ..card import MethodCard
from ..losses.gce import GeneralisedCrossEntropy as GeneralisedCrossEntropyLoss
from .base import Batch, Division, Step, Trainer, log_probs


class GeneralisedCrossEntropy(Trainer):
    r"""Cross-entropy in which a sample counts less, the less its label is believed; on weak views.

    With the probability :math:`p_y` of the given label,

    .. math:: \ell = \begin{cases} (1 - p_y^q)/q & \text{kept}\\ (1 - k^q)/q & \text{cut} \end{cases}, \qquad
        \frac{\partial \ell}{\partial z} = \begin{cases} p_y^q\,(p - e_y) & \text{kept}\\ 0 & \text{cut} \end{cases}

    which is cross-entropy for q → 0 and half the absolute error for q = 1. With k = 0 nothing is cut and nothing
    detected. Truncated, k > 0: after epoch ``start`` and every later one, the samples are cut (flagged) to whose label
    the network, in evaluation mode, gives the plain picture a probability of k or less. A cut sample still passes
    through the network, but its loss is a constant, so it has no pull; it comes back when its label is believed again.

    Differs from the widely used code: that cuts from epoch 40 on, every 10 epochs, by the stored network of the best
    *test* accuracy and on augmented views; here the current network decides on plain pictures, after every epoch. If it
    believes no label at all nothing is cut, as nothing could ever be learnt again.

    Source: Zhang, Sabuncu, NeurIPS 2018, arXiv 1805.07836.

    Args:
        q: above 0 to 1; how much less an unlikely label counts.
        k: samples whose label is no more likely than this are cut, 0 to below 1; 0 cuts none, the paper's is 0.5.
        start: epochs before any sample is cut, at least 1: an untrained network believes no label. About a third of
            a training of 14 epochs; the code's is 40 of 120.
    """

    card = MethodCard(
        slug="gce",
        name="Generalised cross-entropy",
        paper=GeneralisedCrossEntropyLoss.card.paper,
        arxiv="1805.07836",
        year=2018,
        formula=r"\ell = \frac{1 - p_y^{\,q}}{q},\qquad \frac{\partial \ell}{\partial z} = p_y^{\,q}\,(p - e_y),\qquad"
        r" \text{flag} = [p_y \le k]",
        summary="A classifier learns the given labels, but one that it does not believe hardly pulls. If wanted, a "
        "label that it believes less than k has no pull at all until it is believed again.",
        fails_when="There are many classes or the network starts slowly: at first no label is believed, and some "
        "classes may never be learnt, least of all once they are cut. Hard but correctly labelled pictures are "
        "ignored as well.",
    )

    def __init__(self, q: float = 0.7, k: float = 0.0, start: int = 5) -> None:
        super().__init__()
        if start < 1:
            raise InputError(f"start must be at least 1 epoch, got {start}")
        self.loss, self.start = GeneralisedCrossEntropyLoss(q, k), int(start)

    def step(self, k: int, batch: Batch) -> Step:
        """The loss on weak views; that of cut samples is constant."""
        logits, cut = self.nets[k](batch.weak()), self.flags[batch.rows]
        log_own = own(log_probs(logits), batch.y)
        floor = (1 - self.loss.k**self.loss.q) / self.loss.q
        total = self.loss.value(log_own).masked_fill(cut, floor).mean()
        parts = {"p_y": float(log_own.detach().exp().mean())}
        return Step(total, logits, parts | {"cut": float(cut.float().mean())} if self.loss.k else parts)

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Cut the labels that are not believed, if truncated and the start is over."""
        if not self.loss.k or epoch + 1 < self.start:
            return super().divide(looks, epoch)
        (look,) = looks
        return believed(own(log_probs(look["logits"]), self.labels), self.labels, self.loss.k)


def own(log_p: Tensor, y: Tensor) -> Tensor:
    """(N,) entry of the given label (N,) in each row (N, C)."""
    return log_p.gather(1, y[:, None])[:, 0]


def believed(log_own: Tensor, labels: Tensor, k: float) -> Division:
    """Flag the samples whose label has a probability of k or less; none if that were all.

    Args:
        log_own: (N,) logarithms of the probabilities of the given labels.
        labels: (N,) they, for a note on classes that are cut as a whole.
        k: above 0.
    """
    flags, note = log_own <= math.log(k), ""
    if bool(flags.all()):
        flags, note = torch.zeros_like(flags), f"no label is believed more than {k:g}, so nothing is cut"
    elif lost := sorted({*labels.tolist()} - {*labels[~flags].tolist()}):
        note = f"every sample of {len(lost)} class(es) is cut, the first being class {lost[0]}"
    return Division(flags, -log_own, "gce", note=note)

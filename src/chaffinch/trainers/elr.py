"""Early-learning regularisation: a classifier held to what it said before it learnt wrong labels by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from ..card import MethodCard
from ..losses.elr import EarlyLearningRegularisation as EarlyLearningLoss
from .base import Division
from .ce import ByLoss


class EarlyLearningRegularisation(ByLoss):
    r"""ELR: cross-entropy, and a pull of each prediction towards its own average over all visits so far.

    With p the softmax of the logits of a weak view, cut to [1e-4, 1 - 1e-4], and a running target :math:`t_i` of each
    sample, from 0 and without gradient,

    .. math:: t_i \leftarrow \beta t_i + (1-\beta) \frac{p_i}{\sum_c p_{ic}}, \qquad
        L = \frac1B \sum_i \Big[-\log p_{i,y_i} + \lambda \log\big(1 - \langle p_i, t_i \rangle\big)\Big]

    The second term is below 0 and is minimised, so the loss becomes negative. It undoes the pull of a wrong label once
    t favours another class. After every epoch a sample is flagged where :math:`\max_c t_{ic} > t_{i,y_i}`, with the
    score :math:`1 - t_{i,y_i} / \sum_c t_{ic}`. Flags only inform: no sample is left out, and nothing else depends on
    them.

    Differs from the released code: no epochs of pure cross-entropy first (they are 0 in all its settings), and the
    learning rate is the cosine of all trainers.

    Source: Liu, Niles-Weed, Razavian, Fernandez-Granda, NeurIPS 2020, arXiv 2007.00151.

    Args:
        beta: weight of the past in the target, 0 to below 1; 0.7 for 10 classes, 0.9 for 100 in the paper.
        lam: lambda, weight of the pull, 0 (cross-entropy) or more; 3 for 10 classes, 7 for 100, and 1 where wrong
            labels always go to the same class.
    """

    card = MethodCard(
        slug="elr",
        name="Early-learning regularisation (ELR)",
        paper=EarlyLearningLoss.card.paper,
        arxiv="2007.00151",
        year=2020,
        formula=r"L = \frac1B\sum_i \big[-\log p_{i,y_i} + \lambda\log(1 - \langle p_i, t_i\rangle)\big],\qquad"
        r" t_i \leftarrow \beta t_i + (1-\beta)\,p_i",
        summary="A classifier learns the labels, and is also held to what it said of each picture so far. Right labels "
        "are learnt first, so a mislabelled picture stays with its true class. Where the average of what was said "
        "contradicts the label, the sample is flagged, but it is not left out.",
        fails_when="The early decisions are wrong, as when wrong labels always go to the same class: they are frozen. "
        "Too large a lambda freezes them too early. A foreign picture is flagged only if it resembles another class.",
    )

    loss: EarlyLearningLoss

    def __init__(self, beta: float = 0.7, lam: float = 3.0) -> None:
        super().__init__(EarlyLearningLoss(beta, lam))

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Flag the samples whose target contradicts the label."""
        return contradicted(self.loss.target, self.labels)


def contradicted(target: Tensor, labels: Tensor) -> Division:
    """Flag where another class has a larger target than the given label; a tie does not contradict.

    Args:
        target: (N, C) averages of predictions, 0 or more; rows are divided by their sum, so that samples compare that
            were visited a different number of times. A row of zeros, of a sample never visited, says nothing: 1/C each.
        labels: (N,) given labels.
    """
    total = target.sum(1, keepdim=True)
    share = torch.where(total > 0, target / total.clamp(min=1e-8), 1 / target.shape[1])
    own = share.gather(1, labels[:, None])[:, 0]
    return Division(share.max(1).values > own, 1 - own, "elr", targets=share)

"""Early-learning regularisation: a classifier held to what it said before it learnt wrong labels by heart."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, check_weights
from .ce import log_probs, mean_of_views


class EarlyLearningRegularisation(ContrastiveLoss):
    r"""Cross-entropy, and a pull of each prediction towards its own average over all visits so far.

    With p the softmax of the logits, cut to [1e-4, 1 - 1e-4], and a running target :math:`t_i` of each picture,

    .. math:: t_i \leftarrow \beta t_i + (1-\beta) \frac{p_i}{\sum_c p_{ic}}, \qquad
        \ell_i = -\log p_{i,y_i} + \lambda \log\big(1 - \langle p_i, t_i \rangle\big)

    The second term is below 0 and falls as p agrees with t. Its gradient with respect to the logits is
    :math:`\lambda\, p_c (\langle p, t\rangle - t_c) / (1 - \langle p, t\rangle)`, which for a wrong label undoes the
    pull of cross-entropy once t favours another class. t starts at 0, is updated once per visit before the loss is
    taken (in training mode) and gets no gradient. Cross-entropy takes p uncut.

    With several views, t takes the mean of their predictions and the loss is the mean over them. ELR+ (two networks,
    their moving averages, mixup) is not part of it.

    Source: Liu, Niles-Weed, Razavian, Fernandez-Granda, NeurIPS 2020, arXiv 2007.00151.

    Args:
        beta: weight of the past in the target, 0 to below 1.
        lam: lambda, weight of the regulariser, 0 (cross-entropy) or more; wrong labels that always go to the same
            class want less, such as 1.
    """

    card = MethodCard(
        slug="elr",
        name="Early-learning regularisation (ELR)",
        paper="Early-Learning Regularization Prevents Memorization of Noisy Labels "
        "(Liu, Niles-Weed, Razavian, Fernandez-Granda; NeurIPS 2020)",
        arxiv="2007.00151",
        year=2020,
        formula=r"\ell_i = -\log p_{i,y_i} + \lambda\log\big(1 - \langle p_i, t_i\rangle\big),\qquad"
        r" t_i \leftarrow \beta t_i + (1-\beta)\,p_i",
        summary="A classifier learns the given labels, and each picture is also pulled towards what the classifier "
        "said of it so far. Right labels are learnt first, so a mislabelled picture is kept with its true class and "
        "its wrong label loses its pull.",
        fails_when="The early decisions are wrong, as when wrong labels always go to the same class: they are frozen. "
        "Too large a lambda freezes them too early.",
    )
    needs = frozenset({"logits", "y", "index"})
    views = 1

    target: Tensor

    def __init__(self, beta: float = 0.7, lam: float = 3.0) -> None:
        super().__init__()
        if not 0 <= beta < 1:
            raise InputError(f"beta must be from 0 to below 1, got {beta}")
        check_weights(lam=lam)
        self.beta, self.lam = float(beta), float(lam)

    def setup(self, sizes: Sizes) -> None:
        """Start the targets (N, C) at 0."""
        self.register_buffer("target", torch.zeros(sizes.samples, sizes.classes))

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, C) logits, (B,) labels and (B,) positions; in training mode it updates the targets."""
        assert batch.index is not None
        log_p, log_own = log_probs(batch)
        p = clipped(log_p)
        t = self.visit(p.detach(), batch.index)
        pull = self.lam * regulariser(p, t[:, None])  # (B, V)
        return mean_of_views(pull - log_own, log_own, regulariser=float(pull.detach().mean()))

    def visit(self, p: Tensor, index: Tensor) -> Tensor:
        """Targets (B, C) of the samples, first updated with their predictions (B, V, C) if in training mode.

        Those that are not in the dataset (index -1) have none: theirs is 0.
        """
        own = index >= 0
        t = (self.target[index.clamp_min(0)] * own[:, None]).to(p.dtype)
        if self.training:
            t = torch.where(own[:, None], self.beta * t + (1 - self.beta) * (p / p.sum(-1, keepdim=True)).mean(1), t)
            self.target[index[own]] = t[own].to(self.target.dtype)
        return t


def clipped(log_p: Tensor) -> Tensor:
    """Probabilities from their logarithms, cut to [1e-4, 1 - 1e-4]."""
    return log_p.exp().clamp(1e-4, 1 - 1e-4)


def regulariser(p: Tensor, t: Tensor) -> Tensor:
    """log(1 - <p, t>) over the last dimension."""
    return torch.log1p(-(p * t).sum(-1))

"""Early-learning regularisation's running target, compared with the given label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..base.errors import InputError
from ..base.runs import History, recorded
from ..card import MethodCard
from .base import Array, Detector, Labels


class EarlyLearning(Detector):
    r"""What a classifier said of a sample all along, averaged over its visits, contradicts a wrong label.

    .. math:: t_i \leftarrow \beta t_i + (1-\beta) \frac{p_i}{\sum_c p_{ic}}, \qquad
        s_i = 1 - \frac{t_{i,y_i}}{\sum_c t_{ic}}, \qquad \text{flag}_i = \Big[\max_c t_{ic} > t_{i,y_i}\Big]

    p is the prediction seen in training, cut to [1e-4, 1 - 1e-4]; t starts at zero and every epoch is one visit. The
    largest target is the suggestion. In the paper t also steers the training, which keeps the early decision alive;
    here the training is plain, so a record that ends in memorised labels is better read up to an earlier ``stop``.

    Source: Liu, Niles-Weed, Razavian, Fernandez-Granda, NeurIPS 2020, arXiv 2007.00151.

    Args:
        beta: weight of the past, 0 to below 1.
        stop: epochs used, counted from the start; None = all.
    """

    card = MethodCard(
        slug="elr",
        name="Early learning (ELR target)",
        paper="Early-Learning Regularization Prevents Memorization of Noisy Labels "
        "(Liu, Niles-Weed, Razavian, Fernandez-Granda; NeurIPS 2020)",
        arxiv="2007.00151",
        year=2020,
        formula=r"t_i \leftarrow \beta t_i + (1-\beta)\,p_i,\quad s_i = 1 - t_{i,y_i}/\textstyle\sum_c t_{ic}",
        summary="A classifier learns right labels first. If what it said of a picture while it learnt speaks for "
        "another class, the label is probably wrong, and that class is the suggestion.",
        fails_when="The classifier has learnt the wrong labels by heart; wrong labels always go to the same class; "
        "foreign pictures are believed as soon as one class suits them.",
        finds={"mislabelled"},
    )
    uses_features = False

    def __init__(self, beta: float = 0.7, stop: int | None = None) -> None:
        self.beta = beta
        self.stop = stop

    def fit(self, X: Any, y: Labels, *, history: History | None = None) -> EarlyLearning:
        """Score every sample.

        Args:
            X: not used.
            y: (N,) given labels.
            history: record of a training on them.

        Raises:
            InputError: beta is out of range, or the record has fewer epochs than ``stop``.
        """
        record = recorded(history, "elr", stop=self.stop)
        if not 0 <= self.beta < 1:
            raise InputError(f"elr: beta must be from 0 to below 1, got {self.beta}; 0.7 is usual")
        target = running_target(record.seen, self.beta)
        own = target[np.arange(len(y)), y]
        best = target.argmax(axis=1)
        self.scores_ = 1.0 - own / target.sum(axis=1)
        self.flags_ = target.max(axis=1) > own  # a tie does not contradict the label
        self.suggestions_ = np.where(self.flags_, best, y)
        self.info_ = {"beta": self.beta, "epochs": record.epochs}
        return self


def running_target(seen: NDArray[np.floating], beta: float) -> Array:
    """The average (N, C) after the last of E visits; its rows sum to ``1 - beta**E``.

    Args:
        seen: (E, N, C) log-probabilities.
        beta: weight of the past.
    """
    target = np.zeros(seen.shape[1:])
    for log_probs in seen:
        p = np.exp(log_probs.astype(np.float64))
        np.clip(p, 1e-4, 1 - 1e-4, out=p)
        p *= (1 - beta) / p.sum(axis=1, keepdims=True)
        target *= beta
        target += p
    return target

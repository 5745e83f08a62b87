"""The largest logit: how strongly does any class respond?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..card import MethodCard
from .base import Array, Detector, Labels
from .msp import most_suspicious

BLOCK = 65_536
"""Samples worked on at a time."""


class MaxLogit(Detector):
    r"""The largest logit, negated: it keeps the scale that the softmax divides out.

    .. math:: s_i = -\max_c z_{ic}

    Where classes overlap, a familiar picture spreads its probability over several of them and looks unsure; its
    logits stay large. The price is that a constant added to a row moves its score, so all rows must come from models
    that share their scale (the probe's do). The paper cuts where 95 % of clean data pass; here a budget takes that
    place.

    Source: Hendrycks, Basart, Mazeika, Zou, Kwon, Mostajabi, Steinhardt, Song, ICML 2022, arXiv 1911.11132.

    Args:
        budget: share of samples that its own rule flags.
    """

    card = MethodCard(
        slug="max-logit",
        name="Largest logit",
        paper="Scaling Out-of-Distribution Detection for Real-World Settings "
        "(Hendrycks, Basart, Mazeika, Zou, Kwon, Mostajabi, Steinhardt, Song; ICML 2022)",
        arxiv="1911.11132",
        year=2022,
        formula=r"s_i = -\max_c z_{ic}",
        summary="A picture to which no class responds strongly is probably foreign. Fairer than probabilities where "
        "classes overlap.",
        fails_when="Foreign pictures of one kind were all filed under the same label, or the scores come from models "
        "that were trained separately and differ in scale.",
        finds={"ood"},
    )
    uses_features = False

    def __init__(self, budget: float = 0.1) -> None:
        self.budget = budget

    def fit(self, X: Any, y: Labels, *, logits: Array | None = None) -> MaxLogit:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without ``logits``.
            y: (N,) given labels; they only train the probe.
            logits: (N, C) out-of-sample logits before the softmax, all on one scale.

        Raises:
            InputError: log-probabilities instead of logits, all samples alike, or a budget out of range.
        """
        self.scores_ = -true_logits(X, y, logits, "max-logit").max(axis=1)
        self.flags_ = most_suspicious(self.scores_, self.budget, "max-logit")
        self.info_ = {"budget": self.budget}
        return self


def true_logits(X: Any, y: Labels, logits: Array | None, asked_by: str) -> Array:
    """The given out-of-sample logits, or those of a linear probe on X; (N, C) float64.

    Raises:
        InputError: the given ones are logarithms of probabilities.
    """
    if logits is None:
        from ..base.linear import linear_probe

        # Each row comes from the model of its fold. Those models share penalty, scaling and gauge (the logits of a
        # sample sum to zero), so their rows compare without being standardised within the fold first.
        return linear_probe(X, y, int(y.max()) + 1).logits
    if np.abs(log_sum_exp(logits)).max() < 1e-3:
        raise InputError(
            f"{asked_by}: the logits are logarithms of probabilities, whose scale is lost; "
            "give the classifier's output before the softmax, or use msp"
        )
    return logits


def log_sum_exp(z: Array, temperature: float = 1.0) -> Array:
    """(N,) T log of the sum of exp(z/T) over the columns of z (N, C), free of overflow."""
    out = np.empty(len(z))
    for a in range(0, len(z), BLOCK):
        rows = z[a : a + BLOCK]
        top = rows.max(axis=1)
        out[a : a + BLOCK] = top + temperature * np.log(np.exp((rows - top[:, None]) / temperature).sum(axis=1))
    return out

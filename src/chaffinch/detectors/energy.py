"""Free energy of the logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..card import MethodCard
from .base import Array, Detector, Labels
from .max_logit import log_sum_exp, true_logits
from .msp import most_suspicious


class Energy(Detector):
    r"""The free energy of a sample's logits, high where no class responds.

    .. math:: s_i = E(x_i) = -T \log \sum_c e^{z_{ic}/T}

    A smooth largest logit: :math:`-\max z - T \log C \le s \le -\max z`. The energy itself is already larger for
    foreign samples; only benchmarks negate it. The paper's best figures come from fine-tuning with outliers at hand,
    which is not done here, and its cut from clean data, whose place a budget takes.

    Source: Liu, Wang, Owens, Li, NeurIPS 2020, arXiv 2010.03759.

    Args:
        temperature: T, above 0. Towards 0 the score is that of max-logit; large values leave only the mean of a
            row, which is the same for all rows of the probe.
        budget: share of samples that its own rule flags.
    """

    card = MethodCard(
        slug="energy",
        name="Energy",
        paper="Energy-based Out-of-distribution Detection (Liu, Wang, Owens, Li; NeurIPS 2020)",
        arxiv="2010.03759",
        year=2020,
        formula=r"s_i = -T\log\sum_c e^{z_{ic}/T}",
        summary="Adds up the responses of all classes: a picture that moves none of them is probably foreign.",
        fails_when="Foreign pictures of one kind were all filed under the same label, or the scores come from models "
        "that were trained separately and differ in scale.",
        finds={"ood"},
    )
    uses_features = False

    def __init__(self, temperature: float = 1.0, budget: float = 0.1) -> None:
        self.temperature = temperature
        self.budget = budget

    def fit(self, X: Any, y: Labels, *, logits: Array | None = None) -> Energy:
        """Score every sample.

        Args:
            X: (N, D) features; needed only without ``logits``.
            y: (N,) given labels; they only train the probe.
            logits: (N, C) out-of-sample logits before the softmax, all on one scale.

        Raises:
            InputError: a temperature or budget out of range, log-probabilities instead of logits, or all samples alike.
        """
        if not 0 < self.temperature < np.inf:
            raise InputError(f"energy: the temperature must be above 0, got {self.temperature}; the paper's is 1")
        z = true_logits(X, y, logits, "energy")
        # The folds of the probe share penalty and gauge (logits of a sample sum to zero): their energies may be pooled.
        self.scores_ = -log_sum_exp(z, self.temperature)
        self.flags_ = most_suspicious(self.scores_, self.budget, "energy")
        self.info_ = {"budget": self.budget, "temperature": self.temperature}
        return self

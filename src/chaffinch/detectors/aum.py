"""The area under the margin of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.runs import History, recorded
from ..card import MethodCard
from .base import Detector, Labels


class AreaUnderMargin(Detector):
    r"""Over a whole training, a wrong label's logit hardly ever leads: other samples of the true class pull it down.

    .. math:: \mathrm{AUM}_i = \frac1{|T|} \sum_{e \in T} \Big(z^e_{i,y_i} - \max_{c \ne y_i} z^e_{i,c}\Big), \qquad
        s_i = -\mathrm{AUM}_i, \qquad \text{flag}_i = [\mathrm{AUM}_i < \tau]

    The margins are those seen in training, before the step. The paper sets :math:`\tau` to the 99th percentile of the
    AUMs of threshold samples, which carry an extra class that does not exist; that takes a second training with C + 1
    logits. Who ran it gives their AUMs; otherwise :math:`\tau = 0`: another class led on average.

    Source: Pleiss, Zhang, Elenberg, Weinberger, NeurIPS 2020, arXiv 2001.10528.

    Args:
        skip: epochs left out at the start, when margins are mostly luck.
        stop: epochs used, counted from the start, the skipped ones included; None = all. Stop before the learning
            rate drops, for then the network learns wrong labels by heart.
        threshold_aums: AUMs of threshold samples, any number.
    """

    card = MethodCard(
        slug="aum",
        name="Area under the margin (AUM)",
        paper="Identifying Mislabeled Data using the Area Under the Margin Ranking "
        "(Pleiss, Zhang, Elenberg, Weinberger; NeurIPS 2020)",
        arxiv="2001.10528",
        year=2020,
        formula=r"s_i = -\frac{1}{|T|}\sum_{e\in T}\big(z^e_{i,y_i}-\max_{c\neq y_i} z^e_{i,c}\big)",
        summary="Watches a classifier learn. If other classes keep leading over the given label, the label is "
        "probably wrong. Steadier than the loss of any one moment.",
        fails_when="The training went on until it knew wrong labels by heart; rare or hard clean pictures lag behind "
        "as well. Foreign pictures have small margins, not negative ones, and are found less often.",
        finds={"mislabelled"},
    )
    uses_features = False

    def __init__(self, skip: int = 1, stop: int | None = None, threshold_aums: Sequence[float] | None = None) -> None:
        self.skip = skip
        self.stop = stop
        self.threshold_aums = threshold_aums

    def fit(self, X: Any, y: Labels, *, history: History | None = None) -> AreaUnderMargin:
        """Score every sample.

        Args:
            X: not used.
            y: (N,) given labels.
            history: record of a training on them.

        Raises:
            InputError: no epoch is left, or threshold AUMs are empty or not finite.
        """
        record = recorded(history, "aum", stop=self.stop)
        if not 0 <= self.skip < record.epochs:
            raise InputError(f"aum: skip must leave one of {record.epochs} epochs or more, got {self.skip}; lower it")
        least = 0.0
        if self.threshold_aums is not None:
            samples = np.asarray(self.threshold_aums, np.float64)
            if samples.ndim != 1 or not len(samples) or not np.isfinite(samples).all():
                raise InputError("aum: threshold_aums must be finite numbers, at least one; or leave it out")
            least = float(np.percentile(samples, 99))
        margins = record.margins(y)  # (E, N)
        aum = margins[self.skip :].mean(axis=0)
        self.scores_ = -aum
        self.flags_ = aum < least
        self.info_ = {
            "threshold": 0.0 - least,
            "epochs": [self.skip, record.epochs],
            "margins": {
                side: margins[:, rows].mean(axis=1).tolist() if rows.any() else None
                for side, rows in (("flagged", self.flags_), ("kept", ~self.flags_))
            },
        }
        return self

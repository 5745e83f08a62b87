"""Mahalanobis distance to the nearest class, less the distance to everything."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.gaussian import fit_classes, fit_gaussians
from ..base.neighbors import Neighbors
from ..card import MethodCard
from .base import Detector, Labels, cut


class RelativeMahalanobis(Detector):
    r"""How much farther a sample is from its nearest class than from the set as a whole.

    .. math:: s_i = \min_c d_c^2(x_i) - d_0^2(x_i)

    Each :math:`d_c^2` is the squared Mahalanobis distance to a class mean under the covariance that the classes share,
    :math:`d_0^2` that to one Gaussian for all samples: directions that tell no classes apart cancel. Scores may be
    negative. The suggestion is the nearest class.

    The paper fits both on clean data. Here the classes are fitted on seeds (in each class the 30 % that their
    neighbours confirm), but the background on all samples, foreigners included: it absorbs their bulk. Both get the
    same ridge in absolute terms, because a difference of two large numbers lives on equal treatment.

    Source: Ren, Fort, Liu, Roy, Padhy, Lakshminarayanan, 2021, arXiv 2106.09022.

    Args:
        fit_on: what the class part is fitted on: ``seeds``; ``trimmed``, samples nearest to their own mean; or
            ``plain``, all samples.
        h: share of each class to fit on; None = .3 as seeds, .5 trimmed. It must not exceed the clean share of the set.
        ridge: added to the diagonal of both covariances, in units of the mean variance within classes; None = as much
            as Ledoit and Wolf would shrink the class part.
        normalise: bring rows to length 1 first.
        budget: share of samples that its own rule flags; the paper's threshold needs clean data.
    """

    card = MethodCard(
        slug="relative-mahalanobis",
        name="Relative Mahalanobis",
        paper="A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection "
        "(Ren, Fort, Liu, Roy, Padhy, Lakshminarayanan; 2021)",
        arxiv="2106.09022",
        year=2021,
        formula=r"s_i = \min_c d_c^2(x_i) - d_0^2(x_i)",
        summary="A picture that fits the whole collection better than any one class is probably foreign. Good at "
        "foreigners that look much like the classes.",
        fails_when="Foreign pictures of one kind were always filed under the same class and so become one; a lone "
        "oddity is far from the background too, and may pass.",
        finds={"ood"},
    )

    def __init__(
        self,
        fit_on: str = "seeds",
        h: float | None = None,
        ridge: float | None = 0.1,
        normalise: bool = True,
        budget: float = 0.1,
    ) -> None:
        self.fit_on = fit_on
        self.h = h
        self.ridge = ridge
        self.normalise = normalise
        self.budget = budget

    def fit(self, X: Any, y: Labels, *, neighbors: Neighbors | None = None) -> RelativeMahalanobis:
        """Score every sample.

        Args:
            X: (N, D) features.
            y: (N,) given labels; they say which samples make which mean.
            neighbors: cosine neighbours, at least 10 of them; they choose the seeds.

        Raises:
            InputError: a parameter is out of range, no class has two samples, or all scores are equal (all samples are
                the same, or one class was fitted plainly: it is the background).
        """
        classes, ridge, self.info_ = fit_classes(
            X, y, fit_on=self.fit_on, h=self.h, ridge=self.ridge, neighbors=neighbors, unit=self.normalise
        )
        background = fit_gaussians(X, np.zeros_like(y), unit=self.normalise)
        nearest, self.suggestions_ = classes.nearest(X, ridge=ridge, unit=self.normalise)
        self.scores_ = nearest - background.nearest(X, ridge=ridge, unit=self.normalise)[0]
        if np.ptp(self.scores_) < 1e-9:
            raise InputError(
                "relative-mahalanobis: all scores are equal: either all samples are the same, or there is one class "
                "only and it is the background; the latter can be told apart with fit_on='seeds'"
            )
        self.flags_ = cut(self.scores_, self.scores_ > 0, budget=self.budget)
        self.info_["budget"] = self.budget
        self.info_["threshold"] = float(self.scores_[self.flags_].min()) if self.flags_.any() else None
        return self

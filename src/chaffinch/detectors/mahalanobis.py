"""Mahalanobis distance to the nearest class."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..base.errors import InputError
from ..base.gaussian import fit_classes
from ..base.neighbors import Neighbors
from ..card import MethodCard
from .base import Detector, Labels, cut


class Mahalanobis(Detector):
    r"""Distance to the nearest class mean, in units of the spread that all classes share.

    .. math:: s_i = \min_c\, (x_i - \mu_c)^\top \Sigma^{-1} (x_i - \mu_c), \qquad
        \Sigma = \tfrac1n \sum_j (x_j - \mu_{y_j})(x_j - \mu_{y_j})^\top

    The suggestion is the nearest class. The given label of a sample plays no part in its own score, so swapped labels
    inside the classes are not found.

    The paper fits on clean data, and outliers hide from a fit they take part in (n samples have squared distances of
    mean D to their own class, whatever they are). So means and covariance come from seeds here: in each class the 30 %
    whose 10 nearest neighbours carry the same label most often. Features are brought to length 1 first, which helps
    (Müller and Hein 2025). One layer, no perturbation of the input: the paper tunes both on known foreigners.

    Source: Lee, Lee, Lee, Shin, NeurIPS 2018, arXiv 1807.03888.

    Args:
        fit_on: ``seeds``; ``trimmed``, samples nearest to their own mean, which withstands about 30 % noise; or
            ``plain``, all samples.
        h: share of each class to fit on; None = .3 as seeds, .5 trimmed. It must not exceed the clean share of the set.
        ridge: added to the diagonal of the covariance, in units of the mean variance; None = as much as Ledoit and Wolf
            would shrink, which is little where samples are many, and 1e-6 at least.
        normalise: bring rows to length 1 first.
        budget: share of samples that its own rule flags; the paper's threshold needs clean data.
    """

    card = MethodCard(
        slug="mahalanobis",
        name="Mahalanobis distance",
        paper="A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks "
        "(Lee, Lee, Lee, Shin; NeurIPS 2018)",
        arxiv="1807.03888",
        year=2018,
        formula=r"s_i = \min_c\,(x_i-\mu_c)^\top \Sigma^{-1} (x_i-\mu_c)",
        summary="A picture far from the centre of every class belongs to none. The centres come from the samples that "
        "their neighbours confirm.",
        fails_when="Foreign pictures of one kind were always filed under the same class: they confirm each other and "
        "become a class (the neighbour distance still sees them); or a class has several centres.",
        finds={"ood"},
    )

    def __init__(
        self,
        fit_on: str = "seeds",
        h: float | None = None,
        ridge: float | None = None,
        normalise: bool = True,
        budget: float = 0.1,
    ) -> None:
        self.fit_on = fit_on
        self.h = h
        self.ridge = ridge
        self.normalise = normalise
        self.budget = budget

    def fit(self, X: Any, y: Labels, *, neighbors: Neighbors | None = None) -> Mahalanobis:
        """Score every sample.

        Args:
            X: (N, D) features.
            y: (N,) given labels; they say which samples make which mean.
            neighbors: cosine neighbours, at least 10 of them; they choose the seeds.

        Raises:
            InputError: a parameter is out of range, no class has two samples, or all samples are the same.
        """
        classes, ridge, self.info_ = fit_classes(
            X, y, fit_on=self.fit_on, h=self.h, ridge=self.ridge, neighbors=neighbors, unit=self.normalise
        )
        self.scores_, self.suggestions_ = classes.nearest(X, ridge=ridge, unit=self.normalise)
        if np.ptp(self.scores_) < 1e-9:
            raise InputError("mahalanobis: all samples are equally far from their nearest class; no feature differs")
        self.flags_ = cut(self.scores_, self.scores_ > 0, budget=self.budget)
        self.info_["budget"] = self.budget
        self.info_["threshold"] = float(self.scores_[self.flags_].min()) if self.flags_.any() else None
        return self

"""RCAL: rare classes are filled up with features drawn from repaired class Gaussians."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import InputError
from ..base.threads import blas_threads
from ..card import MethodCard
from ..detectors.rcal import RepresentationCalibration, borrow, class_gaussians
from ..losses.base import check_weights
from .base import Batch, Division, Site, Step, Trainer
from .mixing import draw_mix, mixed_ce, weighted_ce


class RepresentationResampling(Trainer):
    r"""RCAL: a classifier learns from pictures and, for rare classes, from features drawn out of their Gaussian.

    Before the first epoch, with features z of the start, which have to be learnt without labels: the detector `rcal`
    drops the local outliers of each given class, the rest gives a mean and a covariance, and rare classes lean on
    their nearest common ones (:math:`\mu'_k, \Sigma'_k` there). Class k lacks :math:`M_k = \phi \max_c n_c - n_k`
    samples, counted by given labels. Each step draws :math:`S \approx B \sum_k M_k / N` features, their class in
    proportion to M, and the network's linear classifier g learns from them beside the mixtures of pictures:

    .. math:: L = CE_{mix}(g(f(x^m))) + \min(1, \tfrac SB)\, \frac1S \sum_s CE(g(\hat z_s), k_s)
        + \beta\, \frac{\sum_i \|f(x_i) - z_i\|^2 / B}{\sum_j \|z_j\|^2 / N}

    with :math:`\hat z_s \sim N(\mu'_{k_s}, \Sigma'_{k_s})`. The last term keeps the features f(x) of weak views near z,
    so that what is drawn there fits what the classifier sees. Flags are the outliers: left out of the Gaussians, but
    not of the mixtures.

    The paper's equations are known in words only; chosen here: what `rcal` chooses (shrinkage to the pooled covariance
    instead of a ridge, rare = fewer than half the median class, a mean borrows only what pays); Gaussians of the
    features as they are, since that is what the classifier reads; the weight of drawn features, which fades where few
    are missing; and the unit of beta, the mean square length of z. From scratch there are no such features, and it says
    so.

    Source: Zhang, Zhao, Yao, Yuan, Huang, ICCV 2023, arXiv 2211.10955.

    Args:
        beta: how firmly features are kept; 0 frees them.
        fill: every class is filled up to so many times the largest; 0 draws nothing, 1 draws for all but the largest,
            more draws for that one, too.
        gamma: how much of a rare class's statistics is borrowed, 0 (nothing) to 1.
        borrowed: common classes to borrow from.
        tail: a class is rare below this share of the median class size; 0 = none is.
        alpha: of mixup.
    """

    card = MethodCard(
        slug="rcal",
        name="Gaussian resampling (RCAL)",
        paper="When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method "
        "(Zhang, Zhao, Yao, Yuan, Huang; ICCV 2023)",
        arxiv="2211.10955",
        year=2023,
        formula=r"L = CE_{mix} + CE(g(\hat z), k) + \beta\,\overline{\|f(x)-z\|^2} / \overline{\|z\|^2},\qquad"
        r" \hat z \sim N(\mu'_k, \Sigma'_k)",
        summary="Describes each class by one cloud of features, without its outliers, and lets rare classes lean on "
        "common ones. The classifier learns from pictures and from features drawn out of these clouds, until all "
        "classes are alike large.",
        fails_when="Classes are alike large already (nothing is drawn, and wrong labels are learnt as by mixup), one "
        "cloud does not fit a class, or the start knows little of the pictures, to which features are held.",
    )

    z: Tensor
    centres: Tensor
    factors: Tensor
    missing: Tensor
    square: Tensor
    suspicion: Tensor
    outlier: Tensor

    def __init__(
        self,
        beta: float = 0.3,
        fill: float = 1.0,
        gamma: float = 0.5,
        borrowed: int = 3,
        tail: float = 0.5,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        check_weights(beta=beta, fill=fill, alpha=alpha)
        for name, share in (("gamma", gamma), ("tail", tail)):
            if not 0 <= share <= 1:
                raise InputError(f"{name} must be between 0 and 1, got {share}")
        if borrowed < 1:
            raise InputError(f"borrowed must be at least 1, got {borrowed}")
        self.beta, self.fill, self.alpha = beta, fill, alpha
        self.gamma, self.borrowed, self.tail = gamma, borrowed, tail
        self.note = ""

    def setup(self, site: Site) -> None:
        """Keep the start's features (N, F), and make the Gaussians: centres (C, F) and factors (C, F, F)."""
        super().setup(site)
        z, y = site.features().float(), site.labels.cpu().numpy()
        Z, counts = z.double().cpu().numpy(), np.bincount(y, minlength=site.classes)
        found = RepresentationCalibration(gamma=self.gamma, borrowed=self.borrowed, tail=self.tail).fit(Z, y)
        rare = np.isin(np.arange(y.max() + 1), found.info_["rare"])
        with blas_threads(1):
            gaussians = class_gaussians(Z, y, ~found.flags_)
            gaussians = borrow(gaussians, counts[: len(rare)], rare, self.gamma, self.borrowed)
            factors = np.linalg.cholesky(gaussians.covariances)
        self.note = str(found.info_.get("note", ""))
        kept = {
            "z": Z, "centres": gaussians.centres, "factors": factors, "suspicion": found.scores_,
            "missing": missing_samples(counts[: len(rare)], self.fill), "square": (Z**2).sum(axis=1).mean(),
        }  # fmt: skip
        for name, values in kept.items():
            self.register_buffer(name, torch.as_tensor(values, dtype=torch.float32, device=z.device))
        self.register_buffer("outlier", torch.as_tensor(found.flags_, device=z.device))
        self.flags.copy_(self.outlier)

    def step(self, k: int, batch: Batch) -> Step:
        """Mixtures, drawn features, and the distance from the start's features."""
        net, x, b = self.nets[k], batch.weak(), len(batch.rows)
        mix = draw_mix(b, self.alpha, batch.rng)
        y = F.one_hot(batch.y, self.classes).float()
        mixed = mixed_ce(net(mix(x)), y, torch.ones_like(y[:, 0]), mix)
        h = net.body.features(x)
        moved = ((h.float() - self.z[batch.rows]) ** 2).sum(1).mean() / self.square
        total, parts = mixed + self.beta * moved, {"mixtures": mixed, "distance": moved}
        if size := round(b * float(self.missing.sum()) / len(self.labels)):
            drawn, classes = draw_features(self.centres, self.factors, self.missing, size, batch.rng)
            targets = F.one_hot(classes, self.classes).float()
            term = weighted_ce(net.classify(drawn), targets, torch.ones_like(targets[:, 0]))
            total, parts = total + min(1.0, size / b) * term, parts | {"drawn": term}
        return Step(total, net.classify(h), {name: float(part.detach()) for name, part in parts.items()})

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """The outliers do not change."""
        return Division(self.outlier.clone(), self.suspicion, "rcal", note=self.note)


def missing_samples(counts: NDArray[np.int64], fill: float) -> NDArray[np.float64]:
    """How many samples (C,) each class lacks; a class that nobody carries has no Gaussian to draw from."""
    return np.where(counts > 0, np.maximum(fill * counts.max() - counts, 0.0), 0.0)


def draw_features(
    centres: Tensor, factors: Tensor, missing: Tensor, size: int, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Features (S, F) from the classes' Gaussians, and their classes (S,).

    Args:
        centres: (C, F).
        factors: (C, F, F) lower Cholesky factors of the covariances.
        missing: (C,) how likely each class is, up to a factor.
        size: S.
        rng: on their device.
    """
    classes = torch.multinomial(missing, size, replacement=True, generator=rng)
    noise = torch.randn(size, centres.shape[1], generator=rng, device=centres.device)
    drawn = torch.empty_like(noise)
    for c in range(len(centres)):
        rows = classes == c
        drawn[rows] = centres[c] + noise[rows] @ factors[c].T
    return drawn, classes

"""What trainers share that mix pictures, sharpen guesses and weigh what they are not sure of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..losses.base import unit
from .base import log_probs


@dataclass(frozen=True)
class Mix:
    """One draw of mixup for a batch (Zhang et al. 2018, arXiv 1710.09412).

    Attributes:
        lam: weight of a sample in its own mixture.
        order: (B,) the partner of each sample.
    """

    lam: float
    order: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Each row (B, ...) mixed with its partner."""
        return self.lam * x + (1 - self.lam) * x[self.order]


def draw_mix(b: int, alpha: float, rng: torch.Generator, *, larger: bool = True) -> Mix:
    """Draw lambda from Beta(alpha, alpha), one for the batch, and partners.

    Args:
        b: size of the batch.
        alpha: above 0; at 0 nothing is mixed.
        rng: on the device of the batch.
        larger: take the larger of lambda and 1 - lambda, so that each mixture is mostly the sample itself.
    """
    seed = int(torch.randint(2**31 - 1, (1,), generator=rng, device=rng.device))
    lam = float(np.random.default_rng(seed).beta(alpha, alpha)) if alpha > 0 else 1.0
    return Mix(max(lam, 1 - lam) if larger else lam, torch.randperm(b, generator=rng, device=rng.device))


def weighted_ce(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with soft targets (B, C), the mean weighted by (B,); 0 where all weights are."""
    losses = -(targets * log_probs(logits)).sum(1)
    return (weights * losses).sum() / weights.sum().clamp(min=1e-8)


def mixed_ce(logits: Tensor, targets: Tensor, weights: Tensor, mix: Mix) -> Tensor:
    """Cross-entropy of mixtures against both targets, each half weighted and normalised on its own."""
    own = weighted_ce(logits, targets, weights)
    partner = weighted_ce(logits, targets[mix.order], weights[mix.order])
    return mix.lam * own + (1 - mix.lam) * partner


def sharpen(p: Tensor, gamma: float) -> Tensor:
    """Probabilities (B, C) to the power gamma, normalised again."""
    powered = (p / p.amax(-1, keepdim=True)) ** gamma  # the largest is 1, so a large gamma cannot make all of them 0
    return powered / powered.sum(-1, keepdim=True)


def balance_penalty(logits: Tensor) -> Tensor:
    """How far the mean prediction of a batch is from uniform: the sum over classes of (1/C) log((1/C) / mean p)."""
    c = logits.shape[1]
    mean = log_probs(logits).exp().mean(0).clamp(min=1e-8)
    return -(mean * c).log().mean()


def targeted_contrast(anchors: Tensor, keys: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the similarity of anchors to keys against a target matrix whose rows need not sum to 1.

    Args:
        anchors, keys: (B, D); cosines are taken.
        targets: (B, B), 0 or more; a row of zeros counts 0.
        temperature: above 0.
    """
    log_p = F.log_softmax(unit(anchors) @ unit(keys).T / temperature, dim=1)
    return (-(targets * log_p).sum(1) / targets.sum(1).clamp(min=1e-8)).mean()


def same_class(y: Tensor, other: Tensor) -> Tensor:
    """(B, B) 1 where sample i of ``y`` has the class of sample j of ``other``."""
    return (y[:, None] == other[None, :]).float()

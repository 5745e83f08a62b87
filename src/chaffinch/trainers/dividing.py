"""The two detectors that divide the samples after an epoch, and the trust in new labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..base.errors import InputError
from ..base.mixture import fit_mixture
from ..detectors.lsa import LinearSeparation
from ..detectors.small_loss import SmallLoss
from .base import Division, log_probs

DETECTORS = ("small-loss", "lsa")


def flagged_by(detector: str, logits: Tensor, labels: Tensor, features: Tensor | None, threshold: float) -> Division:
    """Let a detector divide the samples.

    Args:
        detector: ``small-loss``, or ``lsa`` with seeds from the small-loss rule.
        logits: (N, C) of the plain pictures after an epoch.
        labels: (N,) given labels.
        features: (N, D) activations for ``lsa``.
        threshold: posterior of the mixture above which a sample is flagged, or seeds the plane.

    Returns:
        flags, scores and, where the detector has something to say about them, a note. Where it cannot decide (all
        losses are equal), nothing is flagged.
    """
    p, y = log_probs(logits).exp().double().cpu().numpy(), labels.cpu().numpy()
    found: Any = SmallLoss(threshold) if detector == "small-loss" else LinearSeparation(threshold)
    try:
        found.fit(None if features is None else features.cpu().numpy(), y, pred_probs=p)
    except InputError as error:
        return Division(torch.zeros_like(labels, dtype=torch.bool), detector=detector, note=str(error))
    flags = torch.as_tensor(found.flags_, device=labels.device)
    note = str(found.info_.get("note", ""))
    if bool(flags.all()):
        note = f"{detector} flagged every sample"
    elif lost := sorted({*y.tolist()} - {*y[~found.flags_].tolist()}):
        note = f"{detector} flagged every sample of {len(lost)} class(es), the first being class {lost[0]}"
    return Division(flags, torch.as_tensor(found.scores_, device=labels.device).float(), detector, note=note)


def check_warmup(epochs: int) -> int:
    """The epochs before the first division.

    Raises:
        InputError: there is not even one.
    """
    if epochs < 1:
        raise InputError(f"warmup must be at least 1 epoch, got {epochs}")
    return epochs


def trust(pseudo_losses: Tensor, flags: Tensor) -> Tensor:
    """(N,) how far the guessed label of each flagged sample is trusted: posterior of the low pseudo-losses; others 1.

    Two components on the pseudo-losses of the flagged samples alone. All 1 where fewer than three are flagged, they are
    all equal or one is NaN; an infinite one counts as the largest finite one.
    """
    weights = torch.ones_like(pseudo_losses)
    found = pseudo_losses[flags].double()
    if len(found) <= 2 or bool(found.isnan().any()) or not bool(found.isfinite().any()):
        return weights
    found = found.clamp(max=float(found[found.isfinite()].max()))
    values = found.cpu().numpy()
    try:
        low = 1 - fit_mixture(values).monotone_posterior(values)
    except InputError:
        return weights
    weights[flags] = torch.as_tensor(low, device=weights.device, dtype=weights.dtype)
    return weights

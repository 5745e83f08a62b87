"""Two-stage detection: which labels are wrong, and which guesses of the right one can be trusted."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..card import MethodCard
from ..losses.base import check_temperature, check_weights
from .base import Batch, Division, Site, Step, Trainer, log_probs
from .dividing import check_warmup, flagged_by, trust
from .mixing import Mix, balance_penalty, draw_mix, mixed_ce, same_class, sharpen, targeted_contrast

PROJECTION = 128
"""Length of the contrastive head's rows, a linear layer on the features."""


class PseudoLossSelection(Trainer):
    r"""PLS: samples of large loss get a guessed label, and each guess counts as far as it is trusted.

    After each epoch from the last of the warm-up on: a sample is flagged where the posterior of the large-loss
    component of its cross-entropy is above the threshold. While it is trained on, its label is guessed from two weak
    views, :math:`q_i \propto \hat p_i^\gamma`; a flagged sample learns from q instead of its label. The pseudo-loss of
    a guess, :math:`\pi_i = -\sum_c q_{ic} \log p_{ic}` with the prediction of the plain picture after the epoch, is
    small only if both agree and are sure; w is its posterior of the small component among the flagged, 1 for all
    others, from the second epoch of guesses on. With mixup (one lambda, partner o),

    .. math:: L_{cls} = \lambda \frac{\sum_i w_i\, CE(x^m_i, t_i)}{\sum_i w_i}
        + (1-\lambda) \frac{\sum_i w_{o(i)}\, CE(x^m_i, t_{o(i)})}{\sum_i w_{o(i)}}

    to which come the balance penalty :math:`\sum_c \frac1C \log\frac{1/C}{\bar p_c}` and a contrastive term between
    mixtures and views as for training an encoder, whose targets
    :math:`T_{ij} = w_i w_j [\hat c_i = \hat c_j] + (1-w_i)(1-w_j)\delta_{ij}` fade from the class to the sample itself,
    mixed by rows. The learning rate is constant in the warm-up, then a cosine.

    Differs from the released code where that looks unintended: the class of a sample in T is that of its target before
    mixing, and logarithms of softmax are taken directly.

    Source: Albert, Arazo, Krishna, O'Connor, McGuinness, WACV 2023, arXiv 2210.04578.

    Args:
        warmup: epochs of plain mixup first, at least 1.
        threshold: posterior above which a sample is flagged.
        gamma: how much a guess is sharpened.
        contrast: weight of the contrastive term; 0 leaves it out.
        temperature: of the contrastive term.
        balance: weight of the balance penalty.
        weigh: trust guesses as far as their pseudo-loss says; otherwise fully.
        alpha: of mixup.
    """

    card = MethodCard(
        slug="pls",
        name="Pseudo-loss selection (PLS)",
        paper="Is your noise correction noisy? PLS: Robustness to label noise with two stage detection "
        "(Albert, Arazo, Krishna, O'Connor, McGuinness; WACV 2023)",
        arxiv="2210.04578",
        year=2023,
        formula=r"\pi_i = -\sum_c q_{ic}\log p_{ic},\qquad w_i = P(\mathrm{low}\mid \pi_i),\qquad"
        r" L_{cls} = \frac{\sum_i w_i\,CE(x_i, t_i)}{\sum_i w_i}",
        summary="Samples of large loss are not left out: their label is guessed, and a second detector says which "
        "guesses to trust. Guesses that are not trusted fade out of the classification and teach only that a picture "
        "is like itself.",
        fails_when="The guesses are confidently wrong, as when wrong labels always go to the same class; or foreign "
        "pictures resemble a class, and their guess is trusted.",
    )

    guess: Tensor

    def __init__(
        self,
        warmup: int = 1,
        threshold: float = 0.95,
        gamma: float = 2.0,
        contrast: float = 1.0,
        temperature: float = 0.2,
        balance: float = 1.0,
        weigh: bool = True,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        if not 0 < threshold < 1:
            raise InputError(f"threshold must lie between 0 and 1, got {threshold}")
        check_weights(gamma=gamma, contrast=contrast, balance=balance, alpha=alpha)
        self.warmup, self.threshold, self.gamma, self.weigh = check_warmup(warmup), threshold, gamma, weigh
        self.contrast, self.temperature = contrast, check_temperature(temperature)
        self.balance, self.alpha = balance, alpha

    def setup(self, site: Site) -> None:
        """Start the guesses (N, C) at the given labels."""
        super().setup(site)
        self.register_buffer("guess", F.one_hot(site.labels, site.classes).float())

    def make_heads(self, dim: int) -> dict[str, nn.Module]:
        """The contrastive head."""
        return {"contrast": nn.Linear(dim, PROJECTION)} if self.contrast else {}

    def rate(self, epoch: int) -> float:
        """Constant in the warm-up, then a cosine."""
        done = epoch - self.warmup + 1
        return 1.0 if done <= 0 else (1 + math.cos(done * math.pi / (self.epochs - self.warmup + 1))) / 2

    def step(self, k: int, batch: Batch) -> Step:
        """Plain mixup in the warm-up, then all three terms."""
        x, y = batch.weak(), F.one_hot(batch.y, self.classes).float()
        mix = draw_mix(len(y), self.alpha, batch.rng)
        if batch.epoch < self.warmup:
            logits = self.nets[k](mix(x))
            return Step(mixed_ce(logits, y, torch.ones_like(y[:, 0]), mix), logits)
        with torch.no_grad():
            p = torch.stack([log_probs(self.nets[k](view)).exp() for view in (x, batch.weak())]).mean(0)
        q = sharpen(p, self.gamma)
        self.guess[batch.rows] = q
        flagged, w = self.flags[batch.rows], self.weights[batch.rows]
        return self.learn(k, mix(x), torch.where(flagged[:, None], q, y), w, mix, batch, p.log())

    def learn(self, k: int, x: Tensor, t: Tensor, w: Tensor, mix: Mix, batch: Batch, said: Tensor) -> Step:
        """The terms of the loss of mixtures x (B, ...) with targets t (B, C) trusted w (B,)."""
        net = self.nets[k]
        h = net.body.features(x)
        logits = net.classify(h)
        classification = mixed_ce(logits, t, w, mix)
        total, parts = classification, {"classification": float(classification.detach())}
        if self.balance:
            penalty = balance_penalty(logits)
            total, parts = total + self.balance * penalty, parts | {"balance": float(penalty.detach())}
        if self.contrast:
            keys = net.heads["contrast"](net.body.features(batch.contrast()))
            targets = self.contrast_targets(t.argmax(1), w, mix)
            term = targeted_contrast(net.heads["contrast"](h), keys, targets, self.temperature)
            total, parts = total + self.contrast * term, parts | {"contrast": float(term.detach())}
        return Step(total, said, parts)

    def contrast_targets(self, classes: Tensor, w: Tensor, mix: Mix) -> Tensor:
        """(B, B) what each mixture (row) is pulled towards: from its class, w = 1, to itself alone, w = 0."""
        targets = faded_targets(classes, w)
        return mix.lam * targets + (1 - mix.lam) * targets[mix.order]

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Flags by the small-loss rule, trust by the pseudo-loss."""
        (look,) = looks
        if epoch < self.warmup - 1:
            return super().divide(looks, epoch)
        found = flagged_by("small-loss", look["logits"], self.labels, None, self.threshold)
        if epoch < self.warmup:
            return found
        return self.trusting(found, look["logits"], self.guess)

    def trusting(self, found: Division, logits: Tensor, guess: Tensor) -> Division:
        """A division with the pseudo-losses of the guesses and the trust in them."""
        losses = -(guess * log_probs(logits)).sum(1)
        weights = trust(losses, found.flags) if self.weigh else torch.ones_like(losses)
        return Division(
            found.flags, found.scores, found.detector, weights, losses, targets=guess.clone(), note=found.note
        )


def faded_targets(classes: Tensor, w: Tensor) -> Tensor:
    """(B, B) targets of the contrastive term of PLS, from classes (B,) and trust (B,)."""
    alone = torch.diag((1 - w) ** 2)
    return w[:, None] * w[None, :] * same_class(classes, classes) + alone

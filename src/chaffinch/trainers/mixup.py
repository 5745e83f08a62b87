"""Mixup: the plain baseline that all robust trainers start from."""

from __future__ import annotations

from torch.nn import functional as F

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, Step, Trainer
from .mixing import draw_mix, mixed_ce


class Mixup(Trainer):
    r"""Cross-entropy on mixtures of two pictures with both their labels; nothing is detected.

    .. math:: x^m = \lambda x_i + (1-\lambda) x_{o(i)}, \qquad
        L = \lambda\, CE(f(x^m), y_i) + (1-\lambda)\, CE(f(x^m), y_{o(i)}), \quad \lambda \sim \mathrm{Beta}(a, a)

    One lambda and one permutation o a batch, and the larger of lambda and 1 - lambda.

    Source: Zhang, Cisse, Dauphin, Lopez-Paz, ICLR 2018, arXiv 1710.09412.

    Args:
        alpha: a; 0 mixes nothing, which is plain cross-entropy.
    """

    card = MethodCard(
        slug="mixup",
        name="Mixup",
        paper="mixup: Beyond Empirical Risk Minimization (Zhang, Cisse, Dauphin, Lopez-Paz; ICLR 2018)",
        arxiv="1710.09412",
        year=2018,
        formula=r"L = \lambda\,CE(f(x^m), y_i) + (1-\lambda)\,CE(f(x^m), y_{o(i)}),\qquad"
        r" x^m = \lambda x_i + (1-\lambda) x_{o(i)}",
        summary="A classifier learns from mixtures of two pictures and of their labels. It resists wrong labels for a "
        "while, because a mixture is harder to learn by heart, but it never doubts a label.",
        fails_when="The training is long and much is mislabelled: in the end the wrong labels are learnt too.",
    )

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        if not 0 <= alpha < float("inf"):
            raise InputError(f"alpha must be 0 or more and finite, got {alpha}")
        self.alpha = float(alpha)

    def step(self, k: int, batch: Batch) -> Step:
        """Mixup cross-entropy on weak views."""
        mix = draw_mix(len(batch.rows), self.alpha, batch.rng)
        logits = self.nets[k](mix(batch.weak()))
        targets = F.one_hot(batch.y, self.classes).float()
        return Step(mixed_ce(logits, targets, self.weights[batch.rows], mix), logits)

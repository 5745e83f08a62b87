"""MCLRec: two small networks learn further views, in a step of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, check_temperature, check_weights, unit
from .simclr import NTXent


def regulariser(positive: Tensor, negative: Tensor, per_row: bool = False) -> Tensor:
    """How far positive scores (M,) lie above, and negative ones (M, K) below, the line between the two.

    That line is drawn once for all rows, or for each row by itself. 0 when all scores are equal.
    """
    low, high = (positive, negative.amax(1)) if per_row else (positive.amin(), negative.amax())
    o_min, o_max = torch.minimum(low, high), torch.maximum(low, high)
    return (positive - o_min).relu().mean() + (o_max[..., None] - negative).relu().mean()


class MCLRec(ContrastiveLoss):
    r"""Contrastive learning with learnt views: the encoder and two augmenters take turns.

    With unit projections :math:`h^1, h^2` of the two views and unit rows :math:`z^v = w_v(h^v)` that the augmenters
    :math:`w_1, w_2` make of them,

    .. math::
        L_{cl1} &= L_{con}(h^1, h^2), \qquad
        L_{cl2} = L_{con}(z^1, z^2) + L_{con}(h^1, z^2) + L_{con}(h^2, z^1) \\
        R &= \operatorname{mean}[\sigma^+ - o_{min}]_+ + \operatorname{mean}[o_{max} - \sigma^-]_+, \qquad
        o_{min}, o_{max} = \min, \max\{\min \sigma^+, \max \sigma^-\}

    where L_con is NT-Xent over the 2B rows of its two arguments, and σ+ and σ- are the cosines of the pairs and of
    all other rows of :math:`z^1, z^2`. The encoder's step lowers
    :math:`\lambda L_{cl1} + \beta L_{cl2} + \gamma R` while the augmenters rest; then `second`, on the same views seen
    by the encoder just updated, lowers :math:`L_{cl2} + \gamma R` for the augmenters alone. R pulls pairs down and all
    others up towards the line between them, so that the learnt views stay hard to tell apart. No gradient passes
    through the encoder's step.

    Differs from the paper: there is no recommendation loss, so L_cl1 is the main loss with weight 1 and a
    temperature of its own (L_cl2 keeps 1), and γ is a tenth of the default β. h is normalised everywhere, so that
    the length of a projection says nothing. R is the paper's: its authors' program draws the line for each row
    (``per_row``), sums R over three pairings and takes a third step.

    Source: Qin, Yuan, Zhao, Fang, Zhuang, Liu, Liu, Sheng, SIGIR 2023, arXiv 2304.07763.

    Args:
        temperature: of L_cl1, above 0; small values look at the nearest negatives only.
        lam: lambda, weight of L_cl1, 0 or more.
        beta: weight of L_cl2 in the encoder's step, 0 or more.
        gamma: weight of R in both steps, 0 or more; R is smallest where all learnt views are alike, so near 1 and
            above the learnt views of different pictures merge.
        per_row: draw the line of R for each row by itself.
    """

    card = MethodCard(
        slug="mclrec",
        name="MCLRec",
        paper="Meta-optimized Contrastive Learning for Sequential Recommendation "
        "(Qin, Yuan, Zhao, Fang, Zhuang, Liu, Liu, Sheng; SIGIR 2023)",
        arxiv="2304.07763",
        year=2023,
        formula=r"L = \lambda L_{con}(h^1,h^2) + \beta\,[L_{con}(z^1,z^2) + L_{con}(h^1,z^2) + L_{con}(h^2,z^1)]"
        r" + \gamma R,\qquad z^v = w_v(h^v)",
        summary="Two views of one picture attract and all other pictures repel, as in SimCLR, and so do further views "
        "that two small networks learn to make of the embeddings. No labels are used, so wrong labels cannot mislead "
        "it.",
        fails_when="Pictures of one class are pushed apart too (false negatives). A large gamma makes the learnt views "
        "of all pictures alike.",
    )

    augmenters: nn.ModuleList

    def __init__(
        self,
        temperature: float = 0.2,
        lam: float = 1.0,
        beta: float = 0.1,
        gamma: float = 0.01,
        per_row: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        check_weights(lam=lam, beta=beta, gamma=gamma)
        self.lam, self.beta, self.gamma, self.per_row = float(lam), float(beta), float(gamma), bool(per_row)
        self.main, self.crossed = NTXent(temperature), NTXent(1.0)

    def setup(self, sizes: Sizes) -> None:
        """Build the two augmenters, D - D/2 - D/4 - D."""
        d = sizes.projection
        half, quarter = max(1, d // 2), max(1, d // 4)
        self.augmenters = nn.ModuleList(
            nn.Sequential(nn.Linear(d, half), nn.GELU(), nn.Linear(half, quarter), nn.GELU(), nn.Linear(quarter, d))
            for _ in range(2)
        )

    def second_parameters(self) -> list[nn.Parameter]:
        """Those of the augmenters."""
        return list(self.augmenters.parameters())

    def forward(self, batch: Batch) -> LossOut:
        """Loss of the encoder's step, of (B, 2, D) projections, B >= 2.

        R judges the batch as a whole: it is the same in the loss of each sample.
        """
        h = unit(batch.z)
        main = self.main(Batch(z=h))
        learnt, held, parts = self._learnt(h)
        total = self.lam * main.total + self.beta * learnt.total + self.gamma * held
        per_sample = self.lam * main.per_sample + self.beta * learnt.per_sample + self.gamma * held.detach()
        return LossOut(total, per_sample, {"views": float(main.total.detach()), **parts})

    def second(self, batch: Batch) -> Tensor:
        """Loss of the augmenters' step: L_cl2 + gamma R."""
        learnt, held, _ = self._learnt(unit(batch.z.detach()))
        return learnt.total + self.gamma * held

    def _learnt(self, h: Tensor) -> tuple[LossOut, Tensor, dict[str, float]]:
        """L_cl2, R and what is worth plotting, of unit projections (B, 2, D)."""
        b, v, d = h.shape
        if v != 2:
            raise ValueError(f"mclrec needs two views of each sample, got {v}")
        at_least(b, 2, "pictures", self.card.slug)
        h1, h2 = h.unbind(1)
        # entries of size 1, which the layers' initial weights are made for
        z1, z2 = (unit(augmenter(d**0.5 * view)) for augmenter, view in zip(self.augmenters, (h1, h2), strict=True))
        losses = [self.crossed(Batch(z=torch.stack(pair, 1))) for pair in ((z1, z2), (h1, z2), (h2, z1))]
        learnt = LossOut(sum(out.total for out in losses), sum(out.per_sample for out in losses))

        z = torch.cat([z1, z2])
        sample = torch.arange(b, device=z.device).repeat(2)
        negative = (z @ z.T)[sample[:, None] != sample].view(2 * b, 2 * b - 2)
        positive = (z1 * z2).sum(1).repeat(2)
        held = regulariser(positive, negative, self.per_row)
        shown = {"learnt": learnt.total, "regulariser": held, "positive": positive.mean(), "negative": negative.mean()}
        shown["hardest_negative"] = negative.max()
        return learnt, held, {name: float(value.detach()) for name, value in shown.items()}

"""SupReMix: supervised contrast for ordered targets, with pairs mixed in the embedding space."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import beta as beta_law
from torch import Tensor

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, at_least, check_temperature, cosine_rows

GRID = 4096  # cells of the table that turns uniform numbers into Beta ones


class SupReMix(ContrastiveLoss):
    r"""Supervised contrastive loss for a number t per picture, with mixtures as harder positives and negatives.

    Rows with exactly the target of row i are its positives, all others its negatives. Each negative k adds a mixture
    with the anchor in it, a second negative that is nearer and has the target :math:`\lambda t_i + (1-\lambda) t_k`:

    .. math:: m = \lambda z_i + (1-\lambda) z_k,\qquad \lambda \sim \mathrm{Beta}(a, b)

    Each pair with :math:`t_i - \epsilon < t_j < t_i < t_k < t_i + \epsilon` adds one without the anchor, a positive
    whose target is :math:`t_i`:

    .. math:: m = \alpha z_j + (1-\alpha) z_k,\qquad \alpha = \frac{t_k - t_i}{t_k - t_j}

    With P(i) both sorts of positives and A(i) everything but the row itself,

    .. math:: \ell_i = -\frac{1}{|P(i)|}\sum_{p \in P(i)} \frac{z_i^\top m_p}{\tau}
        + \log \sum_{a \in A(i)} \bigl(1 + w\,|t_i - t_a|\bigr)\, e^{z_i^\top m_a/\tau}

    Mixtures pass no gradient to what they are made of and keep their length below 1. They are never built: the products
    come from the cosines between rows. A row without positives (one view, no equal target) adds 0.

    Differs from the paper: of the pairs (j, k) of a row, whose number grows with the square of the batch, at most
    ``pairs`` are used. If there are more, the ring of all pairs is cut into that many equal stretches from a random
    place on, and one of each is drawn: each pair is as likely as any other. In big batches with few targets the
    mixtures would otherwise outnumber all true rows by hundreds. Drawn numbers belong to places in the batch: the same
    pictures in another order give the same loss only on average.

    Source: Wu, Dong, Chen, Zhou, Zhou, preprint 2023, arXiv 2309.16633.

    Args:
        temperature: tau > 0.
        window: epsilon > 0, how far the ends of a mixed positive may lie from the anchor, in units of the target.
        pairs: most mixed positives of a row; 0 = none.
        mix_negatives: add the mixed negatives?
        mix_a: a > 0 of the Beta law of the anchor's share in them.
        mix_b: b > 0 of that law; the mean share is a / (a + b).
        magnify: w, by how much a negative's weight grows with each unit of the target between it and the anchor; 0 or
            more.
    """

    card = MethodCard(
        slug="supremix",
        name="SupReMix",
        paper="Mixup Your Own Pairs (Wu, Dong, Chen, Zhou, Zhou; preprint 2023)",
        arxiv="2309.16633",
        year=2023,
        formula=r"\ell_i = -\frac{1}{|P(i)|}\sum_{p\in P(i)}\frac{z_i^\top m_p}{\tau}"
        r"+\log\sum_{a\in A(i)}\bigl(1+w\,|t_i-t_a|\bigr)e^{z_i^\top m_a/\tau}",
        summary="For labels with an order: pictures of one value attract, others repel, the more the further apart "
        "their values are, and a mixture of a smaller and a larger value attracts what lies between. The islands of "
        "the classes line up as one ribbon; a picture with a wrong value is drawn to a wrong place on it.",
        fails_when="The order of the classes means nothing. Wrong values make wrong mixtures (take a smaller window), "
        "and the smallest and largest values have none. Window and weight depend on the unit of the values.",
    )
    needs = frozenset({"z", "target", "rng"})

    quantiles: Tensor

    def __init__(
        self,
        temperature: float = 0.3,
        window: float = 5.0,
        pairs: int = 32,
        mix_negatives: bool = True,
        mix_a: float = 2.0,
        mix_b: float = 8.0,
        magnify: float = 1.0,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        for name, value in (("window", window), ("mix_a", mix_a), ("mix_b", mix_b)):
            if not 0 < value < float("inf"):
                raise InputError(f"{name} must be above 0 and finite, got {value}")
        for name, value in (("pairs", pairs), ("magnify", magnify)):
            if not 0 <= value < float("inf"):
                raise InputError(f"{name} must be 0 or more and finite, got {value}")
        self.window, self.pairs, self.mix_negatives, self.magnify = window, pairs, mix_negatives, magnify
        table = beta_law.ppf(np.linspace(0, 1, GRID + 1), mix_a, mix_b)
        self.register_buffer("quantiles", torch.tensor(table, dtype=torch.float32), persistent=False)

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, V, D) projections with a target each."""
        target = batch.aux.get("target")
        if target is None or batch.rng is None:
            raise InputError("supremix needs a target for each sample and a random number generator")
        b, v, _ = batch.z.shape
        at_least(v * b, 2, "views", "supremix")
        z = cosine_rows(batch.z)  # (V*B, D)
        t: Tensor = target.repeat(v)
        eye = torch.eye(len(z), dtype=torch.bool, device=z.device)
        apart = (t[:, None] - t).abs().to(z.dtype)
        same = t[:, None] == t
        cosine, frozen = z @ z.T, z @ z.detach().T  # the same numbers; mixtures learn through the anchor alone

        positive = same & ~eye
        count = positive.sum(1)
        attract = cosine.masked_fill(~positive, 0.0).sum(1)  # sum over positives, the mean follows
        seen = [self._logits(cosine, apart).masked_fill(eye, -torch.inf)]
        if self.mix_negatives:
            share = self._shares(apart.shape, batch.rng).to(z.dtype)
            mixed = share * frozen.diagonal()[:, None] + (1 - share) * frozen
            seen.append(self._logits(mixed, (1 - share) * apart).masked_fill(same, -torch.inf))
        if self.pairs:
            j, k, real = self._between(t, batch.rng)
            share = ((t[k] - t[:, None]) / torch.where(real, t[k] - t[j], 1)).to(z.dtype)
            mixed = (share * frozen.gather(1, j) + (1 - share) * frozen.gather(1, k)).masked_fill(~real, 0.0)
            count, attract = count + real.sum(1), attract + mixed.sum(1)
            seen.append((mixed / self.temperature).masked_fill(~real, -torch.inf))

        pull = attract / count.clamp_min(1)
        loss = (torch.logsumexp(torch.cat(seen, 1), dim=1) - pull / self.temperature) * (count > 0)
        between = cosine.detach().masked_fill(same, 0.0).sum() / (~same).sum().clamp_min(1)
        parts = {"positive_cosine": float(pull.detach().mean()), "negative_cosine": float(between)}
        return LossOut(loss.mean(), loss.detach().view(v, b).mean(0), parts)

    def _logits(self, cosine: Tensor, apart: Tensor) -> Tensor:
        """Logits in the denominator, each with the log of its weight."""
        return cosine / self.temperature + torch.log1p(self.magnify * apart)

    def _shares(self, shape: torch.Size, rng: torch.Generator) -> Tensor:
        """Beta numbers, from uniform ones by a table of the law's quantiles."""
        at = GRID * torch.rand(shape, generator=rng, device=rng.device)
        cell = at.long()
        low = self.quantiles[cell]
        return low + (at - cell) * (self.quantiles[cell + 1] - low)

    def _between(self, t: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Rows j, k with a smaller and a larger target, (n, pairs) each, and which of the places are filled."""
        ordered, order = t.sort(stable=True)
        low = torch.searchsorted(ordered, t - self.window, right=True)
        high = torch.searchsorted(ordered, t, right=True)
        below = torch.searchsorted(ordered, t) - low
        above = torch.searchsorted(ordered, t + self.window) - high
        # Pair number p of a row is (p // above, p % above). One of each stretch is each once where there are few.
        total = (below * above)[:, None]
        edges = torch.arange(self.pairs + 1, device=t.device) * total // self.pairs
        start, length = edges[:, :-1], edges.diff(dim=1)
        draws = torch.rand(len(t), self.pairs + 1, generator=rng, device=t.device)
        p = (start + (draws[:, 1:] * length).long() + (draws[:, :1] * total).long()) % total.clamp_min(1)
        real, width = length > 0, above.clamp_min(1)[:, None]
        j = torch.where(real, low[:, None] + p // width, 0)
        k = torch.where(real, high[:, None] + p % width, 0)
        return order[j], order[k], real

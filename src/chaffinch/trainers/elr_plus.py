"""ELR+: early-learning regularisation with two networks, their moving averages and mixup."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..card import MethodCard
from ..losses.base import check_weights
from ..losses.elr import EarlyLearningRegularisation as EarlyLearningLoss
from ..losses.elr import clipped, regulariser
from .base import Batch, Division, Net, Site, Step, Trainer, log_probs
from .ce import sizes
from .elr import contradicted
from .mixing import draw_mix, weighted_ce


class EarlyLearningPlus(Trainer):
    r"""ELR+: each of two networks is held to the averages of what the other one's moving average says.

    Networks f₁, f₂ learn one after the other within an epoch; m₁, m₂ are moving averages of their weights, updated
    after every step s: :math:`\theta_m \leftarrow \alpha_s \theta_m + (1-\alpha_s)\theta`. Network 1 has targets
    :math:`t_i`, from 0, that the *other* average updates on the weak view before it is mixed,

    .. math:: t_i \leftarrow \beta t_i + (1-\beta)\, \mathrm{softmax}(m_2(x_i)), \qquad
        x^m = \lambda_m x_i + (1-\lambda_m) x_{o(i)}, \quad y^m, q \text{ alike from } y, t

    .. math:: L = \frac1B \sum_i \Big[CE(f_1(x^m_i), y^m_i)
        + r_s \lambda \log\big(1 - \langle p^m_i, q_i\rangle\big)\Big]

    with p cut to [1e-4, 1 - 1e-4] and :math:`\lambda_m` at least 1/2; network 2 with 1 and 2 exchanged. The ramp over
    R epochs is :math:`r = \exp(-5(1 - \min(s, R)/R)^2)`, or 1 where R = 0. :math:`\alpha_s` is r times ``average``, or
    :math:`\min(1 - 1/(s+1),` ``average``) without a ramp. Predictions are the mean of both plain networks' logits.

    After every epoch a sample is flagged where the sum of both networks' targets contradicts the label, as in ELR.
    Flags only inform; no sample is left out.

    Only weights are averaged, so the averages normalise by the statistics of the batch, as in the released code.
    Differs from the paper's settings: ``average`` is 0.997 there, of 352 steps an epoch; 0.98 looks back over an epoch
    of some 50 steps likewise. Its ramp of 40,000 steps is longer than a whole training here; without one (the paper's
    way for web pictures), the average starts as that of all steps so far. New labels are re-weighted by q if asked
    for, not whenever there are 100 classes; where y and q have no class in common, y stays.

    Source: Liu, Niles-Weed, Razavian, Fernandez-Granda, NeurIPS 2020, arXiv 2007.00151.

    Args:
        beta: weight of the past in the targets, 0 to below 1; 0.9 for 100 classes in the paper.
        lam: lambda, weight of the pull, 0 or more; 7 for 100 classes, and 1 where wrong labels always go to the same
            class.
        lam_ramp: R of lambda in epochs, 0 or more; more than half of the training for 100 classes in the paper.
        average: weight of the past in the averages of the networks' weights, 0 to below 1.
        average_ramp: R of it in epochs, 0 or more.
        alpha: of mixup; 0 mixes nothing.
        reweigh: multiply each mixed label by q, so that only its likely half counts; for 100 classes in the paper.
    """

    card = MethodCard(
        slug="elr-plus",
        name="ELR+",
        paper=EarlyLearningLoss.card.paper,
        arxiv="2007.00151",
        year=2020,
        formula=r"L_1 = CE(f_1(x^m), y^m) + \lambda\log\big(1 - \langle p^m, q\rangle\big),\qquad"
        r" t_i \leftarrow \beta t_i + (1-\beta)\,\mathrm{softmax}(m_2(x_i)),\qquad"
        r" q_i = \lambda_m t_i + (1-\lambda_m) t_{o(i)}",
        summary="Two classifiers learn from mixtures of pictures, and each is held to what a calm average of the other "
        "one said of them so far. Where that contradicts the label, the sample is flagged, but it is not left out.",
        fails_when="As ELR, at about three times the cost: early mistakes that both networks make are frozen, as when "
        "wrong labels always go to the same class.",
    )
    networks = 2

    def __init__(
        self,
        beta: float = 0.7,
        lam: float = 3.0,
        lam_ramp: int = 0,
        average: float = 0.98,
        average_ramp: int = 0,
        alpha: float = 1.0,
        reweigh: bool = False,
    ) -> None:
        super().__init__()
        check_weights(lam_ramp=lam_ramp, average_ramp=average_ramp, alpha=alpha)
        if not 0 <= average < 1:
            raise InputError(f"average must be from 0 to below 1, got {average}")
        self.lam, self.lam_ramp, self.alpha, self.reweigh = float(lam), lam_ramp, float(alpha), reweigh
        self.average, self.average_ramp = float(average), average_ramp
        self.memories = [EarlyLearningLoss(beta, lam) for _ in range(2)]
        self.remembered = nn.ModuleList(self.memories)  # puts them in the state; the list is typed

    def build(self, nets: list[Net]) -> None:
        """Take in the networks, and start their averages there."""
        super().build(nets)
        self.averages = nn.ModuleList(copy.deepcopy(nets)).requires_grad_(False)

    def setup(self, site: Site) -> None:
        """Start both networks' targets (N, C) at 0."""
        super().setup(site)
        self.steps = site.steps
        for memory in self.memories:
            memory.setup(sizes(site))

    def step(self, k: int, batch: Batch) -> Step:
        """Mixup, and the pull towards the mixed targets."""
        x = batch.weak()
        with torch.no_grad():
            said = log_probs(self.averages[1 - k](x))
        target = self.memories[k].visit(said.exp()[:, None], batch.rows)
        mix = draw_mix(len(x), self.alpha, batch.rng)
        q, y = mix(target), mix(F.one_hot(batch.y, self.classes).float())
        logits = self.nets[k](mix(x))
        entropy = weighted_ce(logits, reweighed(y, q) if self.reweigh else y, torch.ones_like(q[:, 0]))
        lam = self.lam * ramp(batch.step / self.steps, self.lam_ramp)
        pull = lam * regulariser(clipped(log_probs(logits)), q).mean()
        parts = {"classification": float(entropy.detach()), "regulariser": float(pull.detach())}
        return Step(entropy + pull, said, parts)

    @torch.no_grad()
    def stepped(self, k: int, batch: Batch) -> None:
        """Move the average of network k."""
        if self.average_ramp:
            past = self.average * ramp(batch.step / self.steps, self.average_ramp)
        else:
            past = min(1 - 1 / (batch.step + 1), self.average)
        for slow, fast in zip(self.averages[k].parameters(), self.nets[k].parameters(), strict=True):
            slow.lerp_(fast, 1 - past)

    def divide(self, looks: list[dict[str, Tensor]], epoch: int) -> Division:
        """Flag the samples whose targets contradict the label."""
        one, two = self.memories
        return contradicted(one.target + two.target, self.labels)


def ramp(done: float, length: float) -> float:
    """From exp(-5) at 0 to 1 at ``length`` (Laine, Aila 2017, arXiv 1610.02242); 1 where the length is 0."""
    return math.exp(-5 * (1 - min(done, length) / length) ** 2) if length else 1.0


def reweighed(y: Tensor, q: Tensor) -> Tensor:
    """Labels (B, C) multiplied by targets (B, C) and normalised again; as they are where that leaves nothing."""
    product = y * q
    total = product.sum(1, keepdim=True)
    return torch.where(total > 0, product / total.clamp(min=torch.finfo(total.dtype).tiny), y)

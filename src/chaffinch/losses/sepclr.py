"""SepCLR: what clean pictures share with a noisy dataset, apart from what only the dataset has."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, check_temperature, check_weights, unit, wide


def log_kernel(a: Tensor, temperature: float) -> Tensor:
    r"""Logarithm of the Gaussian kernel, :math:`-\|a_i - a_j\|^2 / 2\tau`, of all pairs of rows: (B, B)."""
    square = (a * a).sum(1)
    distance = (square[:, None] + square[None, :] - 2 * a @ a.T).clamp(min=0)
    return -distance.masked_fill(torch.eye(len(a), dtype=torch.bool, device=a.device), 0) / (2 * temperature)


def align(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    r"""Distance of two views of each sample, :math:`\|a_i - b_i\|^2 / 2\tau`: (B,)."""
    return (a - b).square().sum(1) / (2 * temperature)


def uniformity(log_k: Tensor) -> Tensor:
    r"""Logarithm of the mean kernel over all pairs of two samples, as (B,) shares whose mean is that.

    A sample's share is :math:`U + m_i / \bar m - 1`, with U the logarithm and m_i the sample's own mean kernel:
    the tangent of the logarithm at the mean. It is large where a sample is crowded.
    """
    b = len(log_k)
    self_column = torch.eye(b, dtype=torch.bool, device=log_k.device)
    own = torch.logsumexp(log_k.masked_fill(self_column, -torch.inf), dim=1) - math.log(b - 1)
    whole = torch.logsumexp(own, dim=0) - math.log(b)
    return whole + (own - whole).detach().expm1()


def joint_density(log_common: Tensor, log_salient: Tensor) -> Tensor:
    """Log density of each sample's pair of codes, a kernel estimate that counts the sample itself: (B,)."""
    return torch.logsumexp(log_common + log_salient, dim=1) - math.log(len(log_common))


class SepCLR(ContrastiveLoss):
    r"""Contrastive learning of two codes: a common one for all pictures, a salient one for the noisy dataset alone.

    Pictures known to be clean are the background (group 0), those of the dataset the target (group 1). Unit rows
    c are the common codes, s the salient ones, which have no fixed length; :math:`\tilde s` is s for targets and
    0 for the background. With :math:`k(u, v) = e^{-\|u - v\|^2 / 2\tau}`, views 1 and 2, and
    :math:`U(a) = \log \frac{2}{B(B-1)} \sum_{i<j} k(a_i, a_j)`,

    .. math::
        L_c &= \tfrac{1}{B}\sum_i \tfrac{\|c_i^1 - c_i^2\|^2}{2\tau} + U(c^1) + U(c^2) \\
        L_s &= \tfrac{1}{|T|}\sum_{i \in T} \tfrac{\|s_i^1 - s_i^2\|^2}{2\tau} + U(\tilde s^1) + U(\tilde s^2) \\
        R &= \tfrac{1}{|G|}\sum_{i \in G} \tfrac{\|s_i^1\|^2 + \|s_i^2\|^2}{4\tau} \\
        J &= \tfrac{1}{2B}\sum_{v,i} \log \tfrac{1}{B}\sum_j k(c_i^v, c_j^v)\, k(\tilde s_i^v, \tilde s_j^v) \\
        L &= L_c + \beta_s L_s + \beta_r R + \lambda J

    with T the targets and G the background of the batch; a sum over none of them is 0. J, the negative joint
    entropy, falls as one code says less about the other (k-JEM); it does not force independence. Salient codes can
    grow without bound: where the mean length of the targets' codes, ``salient_norm``, passes 3 or so, the kernels
    are 0 and nothing pushes any more.

    Differs from the paper: the two codes are linear maps of the features of one network instead of two networks,
    so what is salient and what is common compete for the same features; the projectors behind them have no batch
    norm, and the salient one no biases: a salient representation of 0 is a salient code of 0. The weights fit small
    pictures; the paper takes beta_s = beta_r = 1000 on photographs. Only the variant without attributes is here.

    Outputs are the representations that the projectors start from, not normalised. A small norm of the salient one
    says that a target has nothing that the background lacks.

    Source: Louiset, Duchesnay, Grigis, Gori, ICLR 2024, arXiv 2402.11928.

    Args:
        temperature: tau > 0, the squared bandwidth of the kernel; codes further apart than a few of its roots do not
            see each other.
        beta_s: weight of the salient code of targets, 0 or more.
        beta_r: weight of the pull of the background's salient code to 0, 0 or more.
        lam: lambda, weight of the joint entropy, 0 or more.
        size: length of each of the two codes and representations, 1 or more.
    """

    card = MethodCard(
        slug="sepclr",
        name="SepCLR",
        paper="Separating common from salient patterns with Contrastive Representation Learning "
        "(Louiset, Duchesnay, Grigis, Gori; ICLR 2024)",
        arxiv="2402.11928",
        year=2024,
        formula=r"L = L_c + \beta_s L_s + \beta_r \frac{1}{|G|}\sum_{i\in G}\frac{\lVert s_i\rVert^2}{2\tau}"
        r" + \lambda\,\frac{1}{B}\sum_i\log\frac{1}{B}\sum_j k(c_i,c_j)\,k(\tilde s_i,\tilde s_j)",
        summary="Each picture gets two codes: in both, its two views attract and other pictures repel, but in the "
        "salient one all pictures known to be clean are held at zero. No class labels are used; what only the noisy "
        "dataset contains, such as foreign objects, shows up in the salient code.",
        fails_when="The pictures taken for clean hold the same noise as the dataset, or differ from it in something "
        "harmless such as brightness; or almost all pictures are of one group. Clean pictures of the dataset are "
        "pushed away from zero as well.",
    )
    needs = frozenset({"h", "group"})
    outputs = ("common", "salient")

    common: nn.Linear
    salient: nn.Linear
    common_projector: nn.Sequential
    salient_projector: nn.Sequential

    def __init__(
        self,
        temperature: float = 0.5,
        beta_s: float = 10.0,
        beta_r: float = 10.0,
        lam: float = 10.0,
        size: int = 32,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        check_weights(beta_s=beta_s, beta_r=beta_r, lam=lam)
        if size < 1:
            raise InputError(f"size must be 1 or more, got {size}")
        self.beta_s, self.beta_r, self.lam, self.size = float(beta_s), float(beta_r), float(lam), int(size)

    def setup(self, sizes: Sizes) -> None:
        """Build the two maps and their projectors."""
        self.common = nn.Linear(sizes.features, self.size)
        self.salient = nn.Linear(sizes.features, self.size)
        self.common_projector = self._projector(bias=True)
        self.salient_projector = self._projector(bias=False)

    def _projector(self, bias: bool) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.size, 128, bias), nn.ReLU(), nn.Linear(128, self.size, bias))

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, 2, F) features, B >= 2, and their groups."""
        if batch.h is None or "group" not in batch.aux:
            raise ValueError("sepclr needs features and the group of each sample")
        b, v, _ = batch.h.shape
        if v != 2:
            raise ValueError(f"sepclr needs two views of each sample, got {v}")
        at_least(b, 2, "pictures", self.card.slug)
        h = wide(batch.h).transpose(0, 1)  # (2, B, F)
        c = unit(self.common_projector(self.common(h)))
        s = self.salient_projector(self.salient(h))
        target = batch.aux["group"] == 1  # (B,)
        # with these weights the mean over the batch is the mean over a group, 0 where the group is empty
        of_targets = b * target.to(h.dtype) / target.sum().clamp(min=1)
        of_background = b * (~target).to(h.dtype) / (~target).sum().clamp(min=1)

        tau = self.temperature
        log_c = [log_kernel(view, tau) for view in c]
        log_s = [log_kernel(view, tau) for view in torch.where(target[:, None], s, 0)]
        common = align(c[0], c[1], tau) + uniformity(log_c[0]) + uniformity(log_c[1])
        salient = of_targets * align(s[0], s[1], tau) + uniformity(log_s[0]) + uniformity(log_s[1])
        background = of_background * s.square().sum(-1).mean(0) / (2 * tau)
        joint = (joint_density(log_c[0], log_s[0]) + joint_density(log_c[1], log_s[1])) / 2
        loss: Tensor = common + self.beta_s * salient + self.beta_r * background + self.lam * joint  # (B,)
        norm = of_targets * s.detach().norm(dim=-1).mean(0)
        named = {"common": common, "salient": salient, "background": background, "joint": joint, "salient_norm": norm}
        return LossOut(loss.mean(), loss.detach(), {name: float(term.detach().mean()) for name, term in named.items()})

    def output(self, name: str, h: Tensor, x: Tensor) -> Tensor:
        """The representation before a projector, (B, size): ``common`` or ``salient``."""
        if name not in self.outputs:
            return super().output(name, h, x)
        representation: Tensor = getattr(self, name)(wide(h))
        return representation

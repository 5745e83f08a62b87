"""Maximum likelihood for an unnormalised density by compositional optimisation, beside SimCLR's loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, wide
from .simclr import NTXent

HIDDEN = 64
"""Hidden units of the energy model."""

INFLATION = 1.5
"""Variance of the noise, where that of the features is 1."""

NOISE = 4
"""Noise samples for each picture of a batch."""

CLIP = 0.999
"""Quantile at which log-weights are cut."""


def log_weights(f_y: Tensor, log_q: Tensor, clip: float = 1.0) -> Tensor:
    """Importance weights of noise samples in logs (m, ...), without gradient.

    Args:
        f_y: (m, ...) negative energy of the noise samples.
        log_q: (m, ...) log-density of the noise there, exact.
        clip: quantile at which the weights are cut; 1 = none.
    """
    found = (f_y - log_q).detach()
    return found if clip == 1 else torch.minimum(found, found.quantile(clip, dim=0))


def track(log_u: Tensor, log_w: Tensor, gamma: float) -> Tensor:
    r"""The moving average of Z, :math:`u_t = (1-\gamma) u_{t-1} + \gamma\,\mathrm{mean}\,w`, in logs.

    Args:
        log_u: () or (...): what was known before; -inf = nothing, then the mean alone counts.
        log_w: (m, ...) log-weights of this step.
        gamma: above 0, up to 1 (no memory: self-normalised importance sampling).
    """
    log_g = torch.logsumexp(log_w, dim=0) - math.log(len(log_w))
    if gamma == 1:
        return log_g
    mixed = torch.logaddexp(log_u + math.log1p(-gamma), log_g + math.log(gamma))
    return torch.where(log_u.isneginf(), log_g, mixed)


def meco(f_x: Tensor, f_y: Tensor, log_w: Tensor, log_u: Tensor) -> Tensor:
    r"""Negative log-likelihood (n, ...) of data, :math:`\log u - f(x_i)`, with MECO's gradient.

    The gradient of log Z is :math:`\mathrm{mean}_j\,(w_j / u)\,\nabla f(y_j)`; u is a constant to it, and to the
    value the second term adds zero.

    Args:
        f_x: (n, ...) negative energy of the data.
        f_y: (m, ...) of the noise samples.
        log_w: (m, ...) their log-weights.
        log_u: () or (...): tracked log Z, this step's weights included; so w/u is at most m/gamma.
    """
    weight = (log_w - log_u).exp().detach()
    return log_u.detach() + (weight * (f_y - f_y.detach())).mean(0) - f_x


def nce(f_x: Tensor, f_y: Tensor, log_q_x: Tensor, log_q_y: Tensor, log_z: Tensor) -> Tensor:
    """Noise-contrastive estimation, the baseline: is it data or noise? Scalar; as many noise samples as data.

    Args:
        f_x, f_y: (n,), (m,) negative energy of data and noise samples.
        log_q_x, log_q_y: log-density of the noise at both.
        log_z: () log Z, learnt like any parameter.
    """
    softplus = nn.functional.softplus
    return softplus(log_q_x - f_x + log_z).mean() + softplus(f_y - log_z - log_q_y).mean()


def whiten(rows: Tensor) -> Tensor:
    """Rows (n, d) with mean 0 and covariance 1 (nearly: a small ridge); gradients know of both.

    Location, scale and every other linear map of the rows are without effect, so no gradient can shrink them.
    """
    centred = rows - rows.mean(0)
    covariance = centred.T @ centred / len(rows)
    ridge = 1e-3 * covariance.diagonal().mean() + 1e-8  # copies have no covariance at all
    factor = torch.linalg.cholesky(covariance + ridge * torch.eye(len(covariance)).to(rows))
    white: Tensor = torch.linalg.solve_triangular(factor, centred.T, upper=False).T
    return white


class Compositional(ContrastiveLoss):
    r"""SimCLR, and beside it a small energy model that learns how probable the features are.

    With the features h of all views, projected to d fixed random directions and whitened by the batch to x,

    .. math:: \ell_i = \ell^{\text{NT-Xent}}_i + \lambda\,\big(\log u_t - f(x_i)\big), \qquad
        u_t = (1-\gamma)\,u_{t-1} + \frac{\gamma}{m} \sum_j \frac{e^{f(y_j)}}{q(y_j)}, \qquad
        f(x) = -\tfrac12 \lVert x\rVert^2 + v^\top \tanh(Ux + c)

    (the first averaged over the views). The noise y is drawn from q = N(0, 1.5 I): the Gaussian of the batch, with its
    full covariance, inflated. The second term is the negative log-likelihood of x; u tracks the normaliser Z, because
    the log of a mini-batch mean is biased. MECO's gradient of log Z weighs :math:`\nabla f(y_j)` by
    :math:`e^{f(y_j)} / (q(y_j)\, u_t)` and takes u as a constant; u is updated before it is used.

    MECO estimates densities; it says nothing of encoders, which it would collapse (a constant is the likeliest feature
    of all). So NT-Xent shapes the encoder, and the energy model watches: the encoder is SimCLR's, but the loss of each
    sample also says how improbable its features were. With ``shape`` the energy model pulls at the encoder too. That
    gradient passes through the whitening, so features cannot become likely by shrinking, only by gathering in dense
    spots. It is a pull towards few directions all the same, and nothing was seen to gain by it: on 3,000 pictures of
    the bundled set (a smaller network, 12 epochs, one seed) weights 0, .03 and .1 gave effective ranks of 4.3, 2.5 and
    1.9, and .60, .56 and .47 of the ten nearest in-distribution neighbours were of the same class.

    Random directions instead of all features, because weights of noise in 128 dimensions vary too much.

    Source: Jiang, Qin, Wu, Chen, Yang, Zhang, ICML 2023, arXiv 2306.07485.

    Args:
        temperature: tau > 0 of NT-Xent.
        weight: lambda >= 0, on nats of likelihood; 0 = SimCLR.
        shape: let the gradient of the likelihood into the encoder; then keep the weight below .03.
        gamma: share of u that one batch makes, above 0 and up to 1 (no memory).
        dim: d, directions of the features that are modelled; at most 64.
    """

    card = MethodCard(
        slug="compositional",
        name="MECO-style",
        paper="Learning Unnormalized Statistical Models via Compositional Optimization "
        "(Jiang, Qin, Wu, Chen, Yang, Zhang; ICML 2023)",
        arxiv="2306.07485",
        year=2023,
        formula=r"\ell_i = \ell^{\text{NT-Xent}}_i + \lambda\big(\log u_t - f(x_i)\big),\quad "
        r"u_t = (1-\gamma)u_{t-1} + \tfrac{\gamma}{m}\textstyle\sum_j e^{f(y_j)}/q(y_j)",
        summary="The encoder learns as with SimCLR: two views of one picture attract, all others repel, no labels. "
        "Beside it an energy model learns how probable the features are, and improbable pictures get a larger loss.",
        fails_when="Foreign pictures are many: then they are as probable as the others. Where the energy model may "
        "shape the encoder, features fall into a few directions unless the weight is small.",
    )
    needs = frozenset({"z", "h", "rng"})

    f: nn.Sequential
    axes: Tensor
    log_u: Tensor

    def __init__(
        self,
        temperature: float = 0.2,
        weight: float = 0.1,
        shape: bool = False,
        gamma: float = 0.1,
        dim: int = 32,
    ) -> None:
        super().__init__()
        self.contrast = NTXent(temperature)
        if not 0 <= weight < math.inf:
            raise InputError(f"weight must be 0 or more and finite, got {weight}")
        if not 0 < gamma <= 1:
            raise InputError(f"gamma must be above 0 and up to 1, got {gamma}")
        if not 1 <= dim <= 64:
            raise InputError(f"dim must be from 1 to 64, beyond which weights of noise vary too much, got {dim}")
        self.weight, self.shape, self.gamma, self.dim = float(weight), shape, float(gamma), int(dim)
        self.register_buffer("log_u", torch.tensor(-math.inf))

    def setup(self, sizes: Sizes) -> None:
        """Draw the directions and build the energy model."""
        d = min(self.dim, sizes.features)
        self.register_buffer("axes", torch.linalg.qr(torch.randn(sizes.features, d)).Q)
        self.f = nn.Sequential(nn.Linear(d, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1, bias=False))

    def negative_energy(self, x: Tensor) -> Tensor:
        """f (n,) of whitened rows (n, d); the square keeps it integrable whatever the network says."""
        found: Tensor = self.f(x.to(self.axes.dtype)).squeeze(1) - x.square().sum(1) / 2
        return found

    def forward(self, batch: Batch) -> LossOut:
        """Loss of (B, 2, D) projections and their features (B, 2, F); moves u."""
        assert batch.h is not None
        b, v, _ = batch.h.shape
        at_least(b, 2, "pictures", self.card.slug)
        contrast = self.contrast(batch)
        h = wide(batch.h).flatten(0, 1)
        x = whiten((h if self.shape else h.detach()) @ self.axes.to(h.dtype))  # (B*V, d)
        y = torch.randn(NOISE * b, x.shape[1], generator=batch.rng, device=x.device, dtype=x.dtype)
        log_q = -(y.square().sum(1) + x.shape[1] * math.log(2 * math.pi * INFLATION)) / 2
        f_x, f_y = self.negative_energy(x), self.negative_energy(math.sqrt(INFLATION) * y)
        log_w = log_weights(f_y, log_q, CLIP)
        self.log_u.copy_(track(self.log_u, log_w, self.gamma))
        nll = meco(f_x, f_y, log_w, self.log_u).view(b, v).mean(1)
        share = log_w.softmax(0)
        parts = {
            **contrast.parts,
            "nll": float(nll.detach().mean()),
            "log_z": float(self.log_u),
            "effective_noise": float(1 / share.square().sum()),
        }
        per_sample = contrast.per_sample + self.weight * nll.detach()
        return LossOut(contrast.total + self.weight * nll.mean(), per_sample, parts)

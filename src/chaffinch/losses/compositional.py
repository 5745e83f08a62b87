"""Maximum likelihood for an unnormalised density by compositional optimisation, beside SimCLR's loss."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, check_temperature, wide
from .simclr import NTXent


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
    r"""TODO"""

    card = MethodCard(
        slug="compositional",
        name="SimCLR + energy model (MECO)",
        paper="Learning Unnormalized Statistical Models via Compositional Optimization "
        "(Jiang, Qin, Wu, Chen, Yang, Zhang; ICML 2023)",
        arxiv="2306.07485",
        year=2023,
        formula=r"\ell_i = \ell_i^{\mathrm{NT\text{-}Xent}} + \lambda\,\big(\log u_t - f(x_i)\big)",
        summary="TODO",
        fails_when="TODO",
    )
    needs = frozenset({"z", "h", "rng"})

    def __init__(
        self,
        temperature: float = 0.2,
        weight: float = 0.1,
        gamma: float = 0.1,
        dim: int = 32,
        hidden: int = 64,
        inflation: float = 1.5,
        noise: int = 4,
    ) -> None:
        super().__init__()
        self.contrast = NTXent(check_temperature(temperature))
        if not 0 <= weight < math.inf:
            raise InputError(f"weight must be 0 or more and finite, got {weight}")
        self.weight, self.gamma, self.dim, self.hidden = weight, gamma, dim, hidden
        self.inflation, self.noise = inflation, noise
        self.register_buffer("log_u", torch.tensor(-math.inf))
        self.log_u: Tensor

    def setup(self, sizes: Sizes) -> None:
        d = min(self.dim, sizes.features)
        axes = torch.eye(d) if d == sizes.features else torch.linalg.qr(torch.randn(sizes.features, d)).Q
        self.register_buffer("axes", axes)
        self.f = nn.Sequential(nn.Linear(d, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 1, bias=False))

    def energy(self, x):
        return self.f(x.to(self.f[0].weight)).squeeze(-1) - x.square().sum(-1) / 2

    def forward(self, batch: Batch) -> LossOut:
        contrast = self.contrast(batch)
        h = wide(batch.h)
        b, v, _ = h.shape
        if getattr(self, 'detach', False): h = h.detach()
        x = whiten(h.flatten(0, 1) @ self.axes.to(h))
        y = torch.randn((self.noise * b, x.shape[1]), generator=batch.rng, device=x.device, dtype=x.dtype)
        log_q = -y.square().sum(1) / 2 - x.shape[1] / 2 * math.log(2 * math.pi * self.inflation)
        y = y * math.sqrt(self.inflation)
        f_x, f_y = self.energy(x), self.energy(y)
        log_w = log_weights(f_y, log_q, 0.999)
        with torch.no_grad():
            self.log_u.copy_(track(self.log_u, log_w, self.gamma))
        nll = meco(f_x, f_y, log_w, self.log_u).view(b, v).mean(1)
        total = contrast.total + self.weight * nll.mean()
        per_sample = contrast.per_sample + self.weight * nll.detach()
        w = log_w.exp()
        parts = {**contrast.parts, "nll": float(nll.detach().mean()), "log_u": float(self.log_u), "ess": float(w.sum()**2/(w**2).sum())}
        return LossOut(total, per_sample, parts)

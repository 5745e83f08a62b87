"""The contrastive mutual information machine (cMIM): an auto-encoder whose codes repel in angle."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError
from ..card import MethodCard
from .base import Batch, ContrastiveLoss, LossOut, Sizes, at_least, check_temperature, unit

CHANNELS = 16
"""Of the decoder's last hidden layer."""


def repulsion(z: Tensor, temperature: float) -> Tensor:
    """-log p_k of each of the codes (B, D): how little its own code stands out among the other B - 1 in angle."""
    unit_z = unit(z)
    cosine = unit_z @ unit_z.T / temperature
    eye = torch.eye(len(z), dtype=torch.bool, device=z.device)
    others = torch.logsumexp(cosine.masked_fill(eye, -torch.inf), dim=1) - math.log(len(z) - 1)
    return F.softplus(others - 1 / temperature)


def log_normal(noise: Tensor, log_scale: Tensor | float) -> Tensor:
    """Log-density (B,) of mean + e^log_scale * noise under the normal distribution of that mean and scale."""
    return -(0.5 * noise.square() + log_scale + 0.5 * math.log(2 * math.pi)).sum(1)


class Decoder(nn.Module):
    """Codes to the logits of pictures: a linear map to a small grid, then transposed convolutions that double it.

    The grid after the last doubling covers the picture; what sticks out is cut off. The last hidden layer has half
    the picture's height and width, which keeps a step cheap.

    Args:
        dim: length of a code.
        shape: channels, height and width of a picture.
    """

    def __init__(self, dim: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, self.height, self.width = shape
        doublings = max(1, math.ceil(math.log2(max(shape[1:]) / 8)))  # from a grid of at most 8 x 8
        self.grid = (math.ceil(self.height / 2**doublings), math.ceil(self.width / 2**doublings))
        widths = [2 * CHANNELS] * (doublings - 1) + [CHANNELS, channels]
        self.spread = nn.Linear(dim, widths[0] * math.prod(self.grid))
        *grow, self.emit = (nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.grow = nn.ModuleList(grow)

    def hidden(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, 16, ·, ·): the last hidden layer, half as high and wide as the picture or a little more."""
        x: Tensor = F.relu(self.spread(z).reshape(len(z), -1, *self.grid))
        for layer in self.grow:
            x = F.relu(layer(x))
        return x

    def forward(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, channels, height, width) logits."""
        logits: Tensor = self.emit(self.hidden(z))
        return logits[..., : self.height, : self.width]

    def pooled(self, z: Tensor) -> Tensor:
        """(B, D) -> (B, 16 * cells): the last hidden layer averaged over at most 4 x 4 cells of the picture."""
        x = self.hidden(z)
        cell = (math.ceil(x.shape[2] / 4), math.ceil(x.shape[3] / 4))
        return F.avg_pool2d(x, cell, ceil_mode=True).flatten(1)


class CMIM(ContrastiveLoss):
    r"""Reconstruct every picture from a random code, keep the codes informative, and spread them in angle.

    Two linear heads make :math:`q(z|x) = \mathcal N(\mu, \sigma^2)` from the features; one code
    :math:`z = \mu + \sigma\epsilon` is drawn a picture, and with the prior :math:`P = \mathcal N(0, I)`

    .. math:: \ell_i = -\log p(x_i|z_i) - \tfrac12\big(\log q(z_i|x_i) + \log P(z_i)\big) - \log p_k(i)

    .. math:: -\log p_k(i) = \mathrm{softplus}\Big(\log\frac{1}{B-1}\sum_{j\ne i}e^{c_{ij}/\tau} - \frac1\tau\Big)

    with :math:`c_{ij}` the cosine of two codes. The likelihood is Bernoulli and summed over the pixels. The density
    q is made large, not small as in a variational auto-encoder: the noise shrinks until log sigma meets its floor.
    The last term has no positives and a mean, not a sum, over the others, so it hardly depends on the batch.

    The paper's networks for pictures are not known. Here the heads sit on the features of the common encoder, and
    the decoder is a small convolutional one. Outputs: ``mu`` (B, dim); ``informative``: the 16 channels
    of the decoder's last hidden layer for z = mu, averaged over at most 4 x 4 cells, 256 numbers for 28 x 28 pixels.

    Noise is drawn in the order of the batch, so a permuted batch meets other noise.

    Source: Livne 2025, arXiv 2502.19642; also 2509.21511. Its base: Livne, Swersky, Fleet, arXiv 1910.03175.

    Args:
        temperature: tau > 0; at 0.1 only codes with a cosine above about 0.7 repel.
        dim: D, length of a code.
        min_log_scale: floor of log sigma, in nats; without it the loss has no lower bound.
        normalise_gradient: divide the gradient of log q and log P (not their values) by D, for codes so long that
            these terms outweigh the picture.
    """

    card = MethodCard(
        slug="cmim",
        name="cMIM",
        paper="Contrastive Mutual Information Learning: Toward Robust Representations without Positive-Pair "
        "Augmentations (Livne; arXiv 2025)",
        arxiv="2502.19642",
        year=2025,
        formula=r"\ell_i = -\log p(x_i|z_i) - \tfrac12\big(\log q(z_i|x_i) + \log P(z_i)\big) + "
        r"\log\Big(1 + \frac{1}{B-1}\sum_{j\neq i} e^{(c_{ij} - 1)/\tau}\Big)",
        summary="Each picture must be rebuilt from its code, and codes that point the same way repel. Neither "
        "augmented views nor labels are used, so wrong labels cannot mislead it, and it suits pictures that no crop "
        "or flip leaves meaningful.",
        fails_when="Pictures differ in traits that take many pixels but say little about the class, such as "
        "background or position: codes follow the pixels. Foreign pictures that are simple are rebuilt well too.",
    )
    needs = frozenset({"h", "x", "rng"})
    views = 1
    augmented = False
    outputs = ("mu", "informative")

    mu: nn.Linear
    log_scale: nn.Linear
    decoder: Decoder

    def __init__(
        self,
        temperature: float = 0.1,
        dim: int = 64,
        min_log_scale: float = -6.0,
        normalise_gradient: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)
        if dim < 1:
            raise InputError(f"dim must be 1 or more, got {dim}")
        if not math.isfinite(min_log_scale):
            raise InputError(f"min_log_scale must be finite, got {min_log_scale}")
        self.dim, self.min_log_scale = int(dim), float(min_log_scale)
        self.normalise_gradient = bool(normalise_gradient)

    def setup(self, sizes: Sizes) -> None:
        """Make the heads and the decoder."""
        self.mu = nn.Linear(sizes.features, self.dim)
        self.log_scale = nn.Linear(sizes.features, self.dim)
        self.decoder = Decoder(self.dim, sizes.shape)

    def forward(self, batch: Batch) -> LossOut:
        """Loss of one view each: features h (B, 1, F) and pictures x (B, 1, channels, height, width); no labels."""
        h, x, rng = batch.h, batch.x, batch.rng
        if h is None or x is None or rng is None:
            raise ValueError("cmim needs the features h, the pictures x and a generator rng in its batch")
        at_least(len(h), 2, "samples", "cmim")
        h = h[:, 0].to(self.mu.weight.dtype)
        mu, log_scale = self.mu(h), self.log_scale(h).clamp(min=self.min_log_scale)  # (B, D)
        noise = torch.randn(mu.shape, generator=rng, device=mu.device, dtype=mu.dtype)
        z = mu + log_scale.exp() * noise

        logits = self.decoder(z)
        target = x[:, 0].to(logits.dtype)
        rebuilt = F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum((1, 2, 3))
        contrast = repulsion(z, self.temperature)
        log_q, log_prior = log_normal(noise, log_scale), log_normal(z, 0.0)
        latent = -0.5 * (log_q + log_prior)
        if self.normalise_gradient:
            latent = latent.detach() + (latent - latent.detach()) / self.dim
        loss: Tensor = rebuilt + contrast + latent  # (B,)
        parts = {"reconstruction": rebuilt, "contrast": contrast, "log_q": log_q, "log_prior": log_prior}
        means = {name: float(part.detach().mean()) for name, part in parts.items()}
        at_floor = float((log_scale.detach() == self.min_log_scale).float().mean())
        return LossOut(loss.mean(), loss.detach(), {**means, "at_floor": at_floor})

    def output(self, name: str, h: Tensor, x: Tensor) -> Tensor:
        """``mu``, (B, dim), or ``informative``, (B, at most 256), of features h; the pictures x are not used."""
        if name not in self.outputs:
            return super().output(name, h, x)
        mu: Tensor = self.mu(h.to(self.mu.weight.dtype))
        return mu if name == "mu" else self.decoder.pooled(mu)

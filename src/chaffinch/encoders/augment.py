"""Batched augmentation on the device: one grid sample and two multiplications for a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..base.errors import InputError
from ..base.shapes import misfit
from .network import to_tensor


@dataclass(frozen=True)
class Augment:
    """Random resized crop, horizontal flip, brightness and contrast, all per sample.

    Attributes:
        crop: smallest and largest share of the picture's area that a crop keeps.
        ratio: the crop's aspect ratio lies between 1/ratio and ratio.
        flip: probability of a horizontal flip (0 for digits).
        jitter: brightness and contrast factors lie in 1 ± jitter.
    """

    crop: tuple[float, float] = (0.25, 1.0)
    ratio: float = 4 / 3
    flip: float = 0.5
    jitter: float = 0.4

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Augment:
        """From what a model card says; what it leaves out is the default.

        Raises:
            InputError: it says something else.
        """
        if wrong := misfit(dict(values), cls, "augment"):
            raise InputError(f"the model card cannot be used: {wrong}")
        read: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        found = cls(**read)
        if not (0 < found.crop[0] <= found.crop[1] <= 1 and found.ratio >= 1 and 0 <= found.jitter <= 1):
            raise InputError(f"the model card cannot be used: no pictures can be augmented with {found}")
        return found

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each picture: (B, C, H, W) in [0, 1] -> the same shape and range."""
        b = len(x)

        def uniform(low: float, high: float) -> Tensor:
            return torch.empty(b, device=x.device).uniform_(low, high, generator=generator)

        area = uniform(*self.crop)
        log_ratio = torch.log(torch.tensor(self.ratio)).item()
        aspect = torch.exp(uniform(-log_ratio, log_ratio) / 2)
        side = area.sqrt()
        width, height = (side * aspect).clamp(max=1), (side / aspect).clamp(max=1)
        theta = torch.zeros(b, 2, 3, device=x.device)
        mirror = torch.where(uniform(0, 1) < self.flip, -1.0, 1.0)
        theta[:, 0, 0] = width * mirror
        theta[:, 1, 1] = height
        theta[:, 0, 2] = uniform(-1, 1) * (1 - width)
        theta[:, 1, 2] = uniform(-1, 1) * (1 - height)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        edge = "zeros" if x.device.type == "mps" else "border"  # MPS of older torch has no border padding
        x = F.grid_sample(x, grid, padding_mode=edge, align_corners=False)
        if self.jitter:
            brightness = uniform(1 - self.jitter, 1 + self.jitter).view(b, 1, 1, 1)
            contrast = uniform(1 - self.jitter, 1 + self.jitter).view(b, 1, 1, 1)
            x = x * brightness
            mean = x.mean((1, 2, 3), keepdim=True)
            x = (x - mean) * contrast + mean
        return x.clamp(0, 1)


@dataclass(frozen=True)
class Shift:
    """Random crop after padding with black, and horizontal flip: the weak view of robust training.

    Attributes:
        pad: pixels on every side.
        flip: probability of a horizontal flip (0 for digits).
    """

    pad: int = 2
    flip: float = 0.5

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each picture: (B, C, H, W) -> the same shape."""
        b, _, h, w = x.shape
        corner = torch.randint(2 * self.pad + 1, (2, b, 1), generator=generator, device=x.device)
        down = corner[0] + torch.arange(h, device=x.device)
        right = corner[1] + torch.arange(w, device=x.device)
        mirror = torch.rand(b, 1, device=x.device, generator=generator) < self.flip
        right = torch.where(mirror, right.flip(1), right)
        padded = F.pad(x, (self.pad,) * 4)
        rows = torch.arange(b, device=x.device)[:, None, None]
        return padded[rows, :, down[:, :, None], right[:, None, :]].movedim(3, 1)


@dataclass(frozen=True)
class RandAugment:
    """A few random operations on each picture, after a `Shift` (Cubuk et al. 2020, arXiv 1909.13719).

    Operations: nothing, shear and translation along each axis, rotation, brightness, colour, contrast, sharpness,
    posterise, solarise, automatic contrast, equalise. At strength m of 30, shear is 0.3 m/30, translation 0.45 m/30 of
    the side, rotation m degrees, the factors of brightness, colour, contrast and sharpness 1 ± 0.9 m/30, posterise
    keeps 8 - 4 m/30 bits, and solarise inverts what is brighter than 1 - m/30; signs are random.

    Attributes:
        operations: on each picture, one after the other.
        strength: m, 0 to 30.
        shift: what comes first.
    """

    operations: int = 1
    strength: float = 6.0
    shift: Shift = Shift()

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One random view of each picture: (B, C, H, W) in [0, 1] -> the same shape and range."""
        x = self.shift(x, generator)
        for _ in range(self.operations):
            which = torch.randint(len(_OPERATIONS), (len(x),), generator=generator, device=x.device)
            signs = torch.randint(2, (len(x),), generator=generator, device=x.device) * 2 - 1
            x = x.clone()
            for i, operation in enumerate(_OPERATIONS):
                rows = (which == i).nonzero()[:, 0]
                if len(rows):
                    x[rows] = operation(x[rows], signs[rows] * (self.strength / 30)).clamp(0, 1)
        return x


def _warp(x: Tensor, a: Tensor | float, b: Tensor | float, c: Tensor | float, d: Tensor | float) -> Tensor:
    theta = torch.zeros(len(x), 2, 3, device=x.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0
    aspect = x.shape[2] / x.shape[3]  # the grid's coordinates go from -1 to 1 along either side
    theta[:, 0, 1], theta[:, 1, 0] = torch.as_tensor(a) * aspect, torch.as_tensor(b) / aspect
    theta[:, 0, 2], theta[:, 1, 2] = torch.as_tensor(c), torch.as_tensor(d)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def _rotate(x: Tensor, m: Tensor) -> Tensor:
    angle = torch.deg2rad(30 * m)
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    aspect = x.shape[2] / x.shape[3]
    theta = torch.stack([cos, -sin * aspect, zero, sin / aspect, cos, zero], 1).view(-1, 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def _towards(x: Tensor, other: Tensor | float, m: Tensor) -> Tensor:
    """Away from or towards something: factor 1 + 0.9 m."""
    return other + (x - other) * (1 + 0.9 * m)[:, None, None, None]


def _grey(x: Tensor) -> Tensor:
    """(B, 1, H, W) how bright the eye sees each pixel."""
    return x if x.shape[1] == 1 else (x * x.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _smooth(x: Tensor) -> Tensor:
    kernel = torch.ones(x.shape[1], 1, 3, 3, device=x.device)
    kernel[:, :, 1, 1] = 5.0
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel / 13, groups=x.shape[1])


def _posterise(x: Tensor, m: Tensor) -> Tensor:
    levels = 2.0 ** (8 - (4 * m.abs()).round())[:, None, None, None]
    return (x * 255 / 256 * levels).floor() * (256 / levels) / 255


def _stretch(x: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-6), x)


def _equalise(x: Tensor) -> Tensor:
    """Every grey value becomes the share of pixels that are no brighter, the darkest value's own share aside."""
    b, c, h, w = x.shape
    grey = (x * 255).round().long().reshape(b * c, -1)
    count = torch.zeros(b * c, 256, device=x.device).scatter_add_(1, grey, torch.ones_like(grey, dtype=torch.float32))
    below = count.cumsum(1)
    darkest = below.gather(1, grey.amin(1, keepdim=True))
    share = (below - darkest) / (h * w - darkest).clamp(min=1)
    return torch.where((h * w > darkest).view(b, c, 1, 1), share.gather(1, grey).view_as(x), x)


_OPERATIONS: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
    lambda x, m: x,
    lambda x, m: _warp(x, 0.3 * m, 0, 0, 0),
    lambda x, m: _warp(x, 0, 0.3 * m, 0, 0),
    lambda x, m: _warp(x, 0, 0, 0.9 * m, 0),  # the width is 2 in these coordinates
    lambda x, m: _warp(x, 0, 0, 0, 0.9 * m),
    _rotate,
    lambda x, m: _towards(x, 0.0, m),
    lambda x, m: _towards(x, _grey(x), m),
    lambda x, m: _towards(x, _grey(x).mean((2, 3), keepdim=True), m),
    lambda x, m: _towards(x, _smooth(x), m),
    _posterise,
    lambda x, m: torch.where(x > 1 - m.abs()[:, None, None, None], 1 - x, x),
    lambda x, m: _stretch(x),
    lambda x, m: _equalise(x),
)


def augmented(images: NDArray[np.uint8], augment: Augment, seed: int) -> NDArray[np.uint8]:
    """One random view of each picture: (N, H, W) or (N, H, W, 3) uint8 -> the same."""
    generator = torch.Generator().manual_seed(seed)
    view = augment(to_tensor(images), generator)
    found: NDArray[np.uint8] = (view * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return found[..., 0] if images.ndim == 3 else found

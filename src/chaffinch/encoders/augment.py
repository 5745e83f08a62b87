"""Batched augmentation on the device: one grid sample and two multiplications for a whole batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

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
        """From what a model card says; what it leaves out is the default."""
        read: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**read)

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


def augmented(images: NDArray[np.uint8], augment: Augment, seed: int) -> NDArray[np.uint8]:
    """One random view of each picture: (N, H, W) or (N, H, W, 3) uint8 -> the same."""
    generator = torch.Generator().manual_seed(seed)
    view = augment(to_tensor(images), generator)
    found: NDArray[np.uint8] = (view * 255).round().to(torch.uint8).movedim(1, -1).numpy()
    return found[..., 0] if images.ndim == 3 else found

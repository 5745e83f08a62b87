"""Networks that turn pictures into features. Architectures are named, so a checkpoint can say which it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import InputError


class Network(nn.Module):
    """What an encoder needs of a network.

    Attributes:
        layers: names of the layers whose activations can be had; the last is ``final``.
        dim: size of the final features.
    """

    layers: tuple[str, ...]
    dim: int

    def features(self, x: Tensor, layer: str = "final") -> Tensor:
        """Pooled activations (B, D) of one of ``self.layers``; x is (B, channels, H, W) in [0, 1]."""
        raise NotImplementedError


class PreActBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, arXiv 1603.05027): BN-ReLU-conv twice, plus a shortcut."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inside, outside, 1, bias=False) if stride > 1 or inside != outside else None
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H/stride, W/stride)."""
        active = F.relu(self.norm1(x))
        # thinned out by hand: the gradient of a strided 1x1 convolution in oneDNN (torch 2.13, two threads, channels
        # last, fewer than 16 channels, an odd batch) writes past its memory
        skip = x if self.shortcut is None else self.shortcut(active[:, :, :: self.stride, :: self.stride])
        out: Tensor = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out + skip


class PreActResNet(Network):
    """Small pre-activation ResNet: a stem, one block a stage, a projection head used only while training.

    Args:
        channels: 1 for grey pictures, 3 for colour.
        widths: channels of the stages; the first keeps the size, each further one halves it.
        projection: size of the contrastive projection.
        stride: of the stem; 2 sees half the resolution at a quarter of the cost.
    """

    def __init__(
        self, channels: int = 1, widths: tuple[int, ...] = (32, 64, 128), projection: int = 128, stride: int = 1
    ) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, stride, 1, bias=False)
        before = (widths[0], *widths[:-1])
        self.stages = nn.ModuleList(
            PreActBlock(a, b, 1 if i == 0 else 2) for i, (a, b) in enumerate(zip(before, widths, strict=True))
        )
        self.norm = nn.BatchNorm2d(widths[-1])
        self.head = nn.Sequential(
            nn.Linear(widths[-1], widths[-1]), nn.ReLU(inplace=True), nn.Linear(widths[-1], projection)
        )
        self.layers = (*(f"layer{i + 1}" for i in range(len(widths))), "final")
        self.dim, self.projection = widths[-1], projection

    def features(self, x: Tensor, layer: str = "final") -> Tensor:
        """Pooled activations (B, D) of one of ``self.layers``; x is (B, channels, H, W) in [0, 1]."""
        return self.pooled(x, (layer,))[0]

    def pooled(self, x: Tensor, layers: tuple[str, ...]) -> list[Tensor]:
        """Pooled activations (B, D) of several of ``self.layers``, in one pass.

        Raises:
            InputError: no such layer.
        """
        if unknown := [layer for layer in layers if layer not in self.layers]:
            raise InputError(f"unknown layer {unknown[0]!r}; this network has {', '.join(self.layers)}")
        found: dict[str, Tensor] = {}
        x = self.stem((x - 0.5) / 0.25)
        for name, stage in zip(self.layers, self.stages, strict=False):
            x = stage(x)
            if name in layers:
                found[name] = x.mean((2, 3))
            if len(found) == len(set(layers)):
                break
        else:
            found["final"] = F.relu(self.norm(x)).mean((2, 3))
        return [found[layer] for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        """Projections (B, P) of pictures (B, channels, H, W) in [0, 1]."""
        out: Tensor = self.head(self.features(x))
        return out


ARCHITECTURES: dict[str, Callable[..., PreActResNet]] = {
    "preact-resnet-32-64-128": lambda channels: PreActResNet(channels, (32, 64, 128)),
    "half-preact-resnet-32-64-128": lambda channels: PreActResNet(channels, (32, 64, 128), stride=2),
    "preact-resnet-8-16-32": lambda channels: PreActResNet(channels, (8, 16, 32), projection=32),
}


def build(architecture: str, channels: int) -> PreActResNet:
    """A fresh network by name.

    Raises:
        InputError: no such architecture.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(f"unknown architecture {architecture!r}; there are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[architecture](channels)


def fitted(x: Tensor, channels: int, size: Sequence[int] = ()) -> Tensor:
    """Pictures (B, C, H, W) as a network wants them: colour as luminance or grey three times, at another size.

    Args:
        x: in [0, 1].
        channels: 1 or 3.
        size: (h, w) to shrink or grow them to, whole, the rest black; empty: they keep theirs.
    """
    if x.shape[1] != channels:  # weights of ITU-R BT.601, as Pillow takes them
        weights = x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        x = (x * weights).sum(1, keepdim=True) if channels == 1 else x.expand(-1, channels, -1, -1)
    if not size or x.shape[2:] == tuple(size):
        return x
    scale = min(size[0] / x.shape[2], size[1] / x.shape[3])
    height, width = (max(1, round(side * scale)) for side in x.shape[2:])
    x = F.interpolate(x, (height, width), mode="bilinear", antialias=True)
    left, above = (size[1] - width) // 2, (size[0] - height) // 2
    return F.pad(x, (left, size[1] - width - left, above, size[0] - height - above))


def at_a_time(shape: Sequence[int]) -> int:
    """How many pictures of a shape (…, h, w) to take at a time, so that their activations fit the caches.

    Of 28 × 28 pixels 128 are best (1,024: half the speed), and of 112 × 112 pixels 8 (128: half the speed).
    """
    return max(8, min(128, 128 * 28**2 // (shape[-1] * shape[-2])))


def to_tensor(images: object) -> Tensor:
    """uint8 pictures (N, H, W) or (N, H, W, 3) as float (N, C, H, W) in [0, 1]."""
    x = torch.as_tensor(images)
    x = x[:, None] if x.ndim == 3 else x.movedim(-1, 1)
    return x.float() / 255

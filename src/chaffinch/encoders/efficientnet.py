"""EfficientNet-Lite0: the network for photographs, whose weights an installed package brings (see `packaged`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn import functional as F

from .network import Network

STAGES = (
    (3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)  # fmt: skip
"""Of each stage: kernel, stride of its first block, expansion, channels, blocks."""


class Conv(nn.Conv2d):
    """A convolution padded as TensorFlow does it: as little as keeps ceil(size / stride), the odd one behind."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', ceil(H / stride), ceil(W / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        height, width = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[2:])
        if height or width:
            x = F.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return super().forward(x)


def _conv(inside: int, outside: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> Conv:
    return Conv(inside, outside, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual (Sandler et al. 2018, arXiv 1801.04381): widen, convolve each channel by itself, narrow."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        if expansion > 1:
            self.expand_conv, self.bn0 = _conv(inside, wide), _norm(wide)
        self.depthwise_conv, self.bn1 = _conv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self.project_conv, self.bn2 = _conv(wide, outside), _norm(outside)
        self.expands, self.skips = expansion > 1, stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)."""
        wide = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        out: Tensor = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(wide)))))
        return out + x if self.skips else out


class EfficientNetLite0(Network):
    """EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946) with ReLU6 and without attention.

    Its modules have the names of the published weights, leading underscores aside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn0 = _conv(3, 32, 3, 2), _norm(32)
        blocks, inside, self._ends = list[Block](), 32, list[int]()
        for kernel, stride, expansion, outside, many in STAGES:
            for i in range(many):
                blocks.append(Block(inside, outside, kernel, 1 if i else stride, expansion))
                inside = outside
            self._ends.append(len(blocks) - 1)
        self.blocks = nn.ModuleList(blocks)
        self.conv_head, self.bn1 = _conv(inside, 1280), _norm(1280)
        self.fc = nn.Linear(1280, 1000)
        self.layers = (*(f"layer{i + 1}" for i in range(len(STAGES))), "final")
        self.dim = 1280

    def features(self, x: Tensor, layer: str = "final") -> Tensor:
        """Pooled activations (B, D) of one of ``self.layers``; x is (B, 3, H, W) in [0, 1], red first."""
        x = F.relu6(self.bn0(self.conv_stem((x - 127 / 255) / (128 / 255))))
        for i, block in enumerate(self.blocks):
            x = block(x)
            if layer != "final" and i == self._ends[self.layers.index(layer)]:
                return x.mean((2, 3))
        return F.relu6(self.bn1(self.conv_head(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1000) of the classes of ImageNet."""
        out: Tensor = self.fc(self.features(x))
        return out


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Published weights under the names that they have here."""
    return {re.sub(r"(^|\.)_", r"\1", key): value for key, value in state.items()}

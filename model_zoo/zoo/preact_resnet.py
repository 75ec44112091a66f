"""Pre-activation ResNets for CIFAR: He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016.

All have one 3x3 convolution as stem, without pooling. Depths 110 and 164 have three stages of 16, 32 and 64 channels;
the others have the depths and widths of the ResNets for ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn


class PreActBlock(nn.Module):
    """Norm, ReLU and convolution, once for each kernel size, on the residual branch; the shortcut is not activated.

    If channels or resolution change, the shortcut is a 1x1 convolution of the activated input.

    Args:
        in_channels: channels of the input.
        widths: channels after each convolution.
        kernel_sizes: of the convolutions; the first 3x3 has the stride.
        stride: of the block.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], kernel_sizes: Sequence[int], stride: int) -> None:
        super().__init__()
        strided = kernel_sizes.index(3)
        inputs = (in_channels, *widths[:-1])
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in inputs)
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, size, stride if i == strided else 1, size // 2, bias=False)
            for i, (before, after, size) in enumerate(zip(inputs, widths, kernel_sizes, strict=True))
        )
        changes = stride != 1 or in_channels != widths[-1]
        self.shortcut = nn.Conv2d(in_channels, widths[-1], 1, stride, bias=False) if changes else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, widths[-1], H / stride, W / stride)``."""
        y = F.relu(self.norms[0](x))
        shortcut = x if self.shortcut is None else self.shortcut(y)
        y = self.convs[0](y)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            y = conv(F.relu(norm(y)))
        summed: torch.Tensor = shortcut + y
        return summed


class PreActResNet(nn.Module):
    """Stem, stages of blocks, norm, ReLU, global average pooling, classifier.

    Args:
        depths: blocks in each stage; every stage but the first halves the resolution.
        widths: channels of each stage; four times as many with ``bottleneck``.
        bottleneck: 1x1, 3x3 and 1x1 convolutions in a block instead of two 3x3.
        num_classes: channels of the logits.
        in_chans: channels of the image.
    """

    def __init__(
        self,
        depths: Sequence[int] = (2, 2, 2, 2),
        widths: Sequence[int] = (64, 128, 256, 512),
        bottleneck: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        channels = widths[0]
        self.stem = nn.Conv2d(in_chans, channels, 3, padding=1, bias=False)
        stages = []
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            blocks = []
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                if bottleneck:
                    blocks.append(PreActBlock(channels, (width, width, 4 * width), (1, 3, 1), stride))
                else:
                    blocks.append(PreActBlock(channels, (width, width), (3, 3), stride))
                channels = 4 * width if bottleneck else width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(N, in_chans, H, W)`` (32 x 32 in CIFAR) to logits ``(N, num_classes)``."""
        x = self.stages(self.stem(x))
        x = self.pool(F.relu(self.norm(x))).flatten(1)
        logits: torch.Tensor = self.fc(x)
        return logits

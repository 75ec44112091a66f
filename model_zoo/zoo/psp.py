"""PSPNet: Zhao et al., "Pyramid Scene Parsing Network", CVPR 2017."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rewriter.zoo.zoo.blocks import ConvBlock, DecodeHead, resize_like


class PyramidPooling(nn.Module):
    """Average pools to several sizes, each followed by a 1x1 convolution and resized to the input.

    Args:
        in_channels: channels of the input.
        channels: channels of each branch.
        pool_sizes: height and width that each branch pools to.
    """

    def __init__(self, in_channels: int, channels: int, pool_sizes: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvBlock(in_channels, channels)) for size in pool_sizes
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map ``(N, in_channels, H, W)`` to one ``(N, channels, H, W)`` per branch."""
        return [resize_like(branch(x), x) for branch in self.branches]


class PSPHead(DecodeHead):
    """The last level concatenated with its pyramid of pools, then a 3x3 bottleneck.

    Args:
        in_channels: channels of the levels; the last one is read.
        num_classes, channels, dropout: as in :class:`DecodeHead`.
        pool_sizes: of the pyramid.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int = 19,
        channels: int = 512,
        dropout: float = 0.1,
        pool_sizes: Sequence[int] = (1, 2, 3, 6),
    ) -> None:
        super().__init__(num_classes, channels, dropout)
        self.pyramid = PyramidPooling(in_channels[-1], channels, pool_sizes)
        self.bottleneck = ConvBlock(in_channels[-1] + len(pool_sizes) * channels, channels, 3)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the levels to logits of the last level's height and width."""
        x = features[-1]
        x = torch.cat([x, *self.pyramid(x)], dim=1)
        return self.classify(self.bottleneck(x))

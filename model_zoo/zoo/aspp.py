"""DeepLabV3 and DeepLabV3+: Chen et al., arXiv:1706.05587 and ECCV 2018."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rewriter.zoo.zoo.blocks import ConvBlock, DecodeHead, SeparableConvBlock, resize_like


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: branches with different fields of view, concatenated, and a 3x3 bottleneck.

    The branches are the image's mean, a 1x1 convolution, and one 3x3 convolution per dilation.

    Args:
        in_channels: channels of the input.
        channels: channels of each branch and of the output.
        dilations: of the 3x3 convolutions, in pixels of the input.
        separable: whether these are depthwise separable.
    """

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int], separable: bool = False) -> None:
        super().__init__()
        self.image_pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBlock(in_channels, channels))
        self.point = ConvBlock(in_channels, channels)
        self.atrous = nn.ModuleList(
            SeparableConvBlock(in_channels, channels, dilation)
            if separable
            else ConvBlock(in_channels, channels, 3, dilation)
            for dilation in dilations
        )
        self.bottleneck = ConvBlock((2 + len(dilations)) * channels, channels, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, channels, H, W)``."""
        branches = [resize_like(self.image_pool(x), x), self.point(x)]
        branches.extend(convolution(x) for convolution in self.atrous)
        fused: torch.Tensor = self.bottleneck(torch.cat(branches, dim=1))
        return fused


class ASPPHead(DecodeHead):
    """DeepLabV3: atrous spatial pyramid pooling on the last level.

    Args:
        in_channels: channels of the levels; the last one is read.
        num_classes, channels, dropout: as in :class:`DecodeHead`.
        dilations: of the 3x3 branches, in pixels of the last level.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int = 19,
        channels: int = 512,
        dropout: float = 0.1,
        dilations: Sequence[int] = (12, 24, 36),
    ) -> None:
        super().__init__(num_classes, channels, dropout)
        self.aspp = ASPP(in_channels[-1], channels, dilations)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the levels to logits of the last level's height and width."""
        return self.classify(self.aspp(features[-1]))


class SepASPPHead(DecodeHead):
    """DeepLabV3+: separable pyramid pooling on the last level, refined with the first.

    The pooled last level is resized to the first level, concatenated with a 1x1 convolution of the first level, and
    passed through two separable 3x3 convolutions.

    Args:
        in_channels: channels of the levels; the first and the last are read.
        num_classes, channels, dropout, dilations: as in :class:`ASPPHead`.
        low_channels: channels that the first level is reduced to.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int = 19,
        channels: int = 512,
        dropout: float = 0.1,
        dilations: Sequence[int] = (12, 24, 36),
        low_channels: int = 48,
    ) -> None:
        super().__init__(num_classes, channels, dropout)
        self.aspp = ASPP(in_channels[-1], channels, dilations, separable=True)
        self.low_level = ConvBlock(in_channels[0], low_channels)
        self.refine = nn.Sequential(
            SeparableConvBlock(channels + low_channels, channels), SeparableConvBlock(channels, channels)
        )

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the levels to logits of the first level's height and width."""
        low_level = self.low_level(features[0])
        x = resize_like(self.aspp(features[-1]), low_level)
        x = self.refine(torch.cat([x, low_level], dim=1))
        return self.classify(x)

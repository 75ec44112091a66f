"""UPerNet: Xiao et al., "Unified Perceptual Parsing for Scene Understanding", ECCV 2018."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rewriter.zoo.zoo.blocks import ConvBlock, DecodeHead, resize_like
from rewriter.zoo.zoo.psp import PyramidPooling


class UPerHead(DecodeHead):
    """A feature pyramid with pyramid pooling on the coarsest level and a fusion of all levels.

    1x1 lateral convolutions; from coarse to fine, each level is resized and added to the next; a 3x3 convolution on
    each sum; all levels resized to the first, concatenated, and a 3x3 bottleneck.

    Args:
        in_channels: channels of the levels; all are read.
        num_classes, channels, dropout: as in :class:`DecodeHead`.
        pool_sizes: of the pyramid pooling.
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
        *finer, coarsest = in_channels
        self.pyramid = PyramidPooling(coarsest, channels, pool_sizes)
        self.pyramid_bottleneck = ConvBlock(coarsest + len(pool_sizes) * channels, channels, 3)
        self.laterals = nn.ModuleList(ConvBlock(width, channels) for width in finer)
        self.outputs = nn.ModuleList(ConvBlock(channels, channels, 3) for _ in finer)
        self.fusion = ConvBlock(len(in_channels) * channels, channels, 3)

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Map the levels to logits of the first level's height and width."""
        coarsest = features[-1]
        levels = [lateral(x) for lateral, x in zip(self.laterals, features, strict=False)]
        levels.append(self.pyramid_bottleneck(torch.cat([coarsest, *self.pyramid(coarsest)], dim=1)))
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + resize_like(levels[i + 1], levels[i])
        outputs = [output(x) for output, x in zip(self.outputs, levels, strict=False)]
        outputs.append(levels[-1])
        x = torch.cat([outputs[0], *(resize_like(x, outputs[0]) for x in outputs[1:])], dim=1)
        return self.classify(self.fusion(x))

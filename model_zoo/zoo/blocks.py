"""Building blocks of the decode heads: convolution blocks, resizing, and the classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ConvBlock(nn.Sequential):
    """Convolution that preserves height and width, batch norm, ReLU.

    Args:
        in_channels, out_channels: channels before and after.
        kernel_size: odd.
        dilation: of the convolution.
        groups: of the convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            nn.Conv2d(
                in_channels, out_channels, kernel_size, padding=padding, dilation=dilation, groups=groups, bias=False
            ),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
        )


class SeparableConvBlock(nn.Sequential):
    """A depthwise 3x3 convolution, then a pointwise 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, dilation: int = 1) -> None:
        super().__init__(
            ConvBlock(in_channels, in_channels, 3, dilation, groups=in_channels), ConvBlock(in_channels, out_channels)
        )


def resize_like(x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Resize ``x`` ``(N, C, h, w)`` bilinearly to the height and width of ``reference``."""
    return F.interpolate(x, size=reference.shape[2:], mode="bilinear", align_corners=False)


class DecodeHead(nn.Module):
    """Base class of the heads: dropout and a 1x1 convolution as classifier at the end.

    Args:
        num_classes: channels of the logits.
        channels: channels that the classifier reads.
        dropout: rate of channel dropout before the classifier.
    """

    def __init__(self, num_classes: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, channels, H, W)`` to logits ``(N, num_classes, H, W)``."""
        logits: torch.Tensor = self.classifier(self.dropout(x))
        return logits

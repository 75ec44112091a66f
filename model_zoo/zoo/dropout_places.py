"""Residual networks for CIFAR with one dropout at a chosen place, as compared in the dropout paper.

The places in a pre-activation block and in the head are those of Kim et al. (UAI 2023, arXiv:2302.06112)::

    P0 ─┬─ P1 ─ norm ─ P2 ─ ReLU ─ P3 ─ weight ─ P4 ─ norm ─ P5 ─ ReLU ─ P6 ─ weight ─ P7 ─ sum
        └───────────────────────────────── shortcut ───────────────────────────────────────┘
    last stage ─ norm ─ H3 ─ ReLU ─ H4 ─ global average pooling ─ H5 ─ classifier ─ H6

A post-activation block (ResNet v1) has three: before its last weight, at the end of its branch, and after the sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

OF_PRE_ACTIVATION = ("P0", "P1", "P2", "P3", "P4", "P5", "P6", "P7")
OF_POST_ACTIVATION = ("before-last-weight", "end-of-branch", "after-sum")
OF_HEAD = ("H3", "H4", "H5", "H6")


def _dropout(here: str, dropout_at: Sequence[str], rate: float) -> nn.Module:
    return nn.Dropout(rate) if here in dropout_at else nn.Identity()


class PreActivationBlock(nn.Module):
    """Norm, ReLU and 3x3 convolution, twice.

    Args:
        in_channels, out_channels: of the map; if they differ the shortcut is a 1x1 convolution.
        stride: of the first convolution.
        dropout_at: the places that have a dropout.
        drop_rate: of the dropout.
    """

    places = OF_PRE_ACTIVATION

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dropout_at: Sequence[str], drop_rate: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        changes = stride != 1 or in_channels != out_channels
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if changes else nn.Identity()
        dropouts = (_dropout(place, dropout_at, drop_rate) for place in self.places)
        self.p0, self.p1, self.p2, self.p3, self.p4, self.p5, self.p6, self.p7 = dropouts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        x = self.p0(x)
        y = self.p3(F.relu(self.p2(self.norm1(self.p1(x)))))
        y = self.p4(self.conv1(y))
        y = self.p6(F.relu(self.p5(self.norm2(y))))
        summed: torch.Tensor = self.shortcut(x) + self.p7(self.conv2(y))
        return summed


class PostActivationBlock(nn.Module):
    """The block of ResNet v1: convolution, norm, ReLU, convolution, norm; ReLU after the sum.

    Args:
        in_channels, out_channels: of the map; if they differ the shortcut is a 1x1 convolution and a norm.
        stride: of the first convolution.
        dropout_at: the places that have a dropout.
        drop_rate: of the dropout.
    """

    places = OF_POST_ACTIVATION

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dropout_at: Sequence[str], drop_rate: float
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        changes = stride != 1 or in_channels != out_channels
        projection = (nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))
        self.shortcut = nn.Sequential(*projection) if changes else nn.Identity()
        self.inner, self.end, self.trunk = (_dropout(place, dropout_at, drop_rate) for place in self.places)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H / stride, W / stride)``."""
        y = self.inner(F.relu(self.norm1(self.conv1(x))))
        y = self.end(self.norm2(self.conv2(y)))
        summed: torch.Tensor = self.trunk(F.relu(self.shortcut(x) + y))
        return summed


class DropoutResNet(nn.Module):
    """A ResNet for CIFAR with dropout at the requested places.

    Args:
        block: :class:`PreActivationBlock` or :class:`PostActivationBlock`.
        dropout_at: places of its blocks and of the head, such as ``"P4"`` or ``("P6", "H4")``; empty for none.
        drop_rate: of each dropout; the paper's is 0.2.
        depths: blocks in each stage; every stage but the first halves the resolution.
        widths: channels of each stage.
        num_classes: channels of the logits.
        in_chans: channels of the image.

    Raises:
        ValueError: there is no such place.
    """

    def __init__(
        self,
        block: type[PreActivationBlock] | type[PostActivationBlock] = PreActivationBlock,
        dropout_at: str | Sequence[str] = (),
        drop_rate: float = 0.2,
        depths: Sequence[int] = (2, 2, 2),
        widths: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        in_chans: int = 3,
    ) -> None:
        super().__init__()
        asked = (dropout_at,) if isinstance(dropout_at, str) else tuple(dropout_at)
        for place in asked:
            if place not in (*block.places, *OF_HEAD):
                raise ValueError(
                    f"dropout_at: expected some of {', '.join((*block.places, *OF_HEAD))}, found {place!r}"
                )
        pre = block is PreActivationBlock
        self.stem = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.stem_norm = nn.Identity() if pre else nn.BatchNorm2d(widths[0])
        self.stem_act = nn.Identity() if pre else nn.ReLU()
        blocks, channels = [], widths[0]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            for number in range(depth):
                blocks.append(block(channels, width, 2 if stage and not number else 1, asked, drop_rate))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels) if pre else nn.Identity()
        self.act = nn.ReLU() if pre else nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self.h3, self.h4, self.h5, self.h6 = (_dropout(place, asked, drop_rate) for place in OF_HEAD)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images ``(N, in_chans, H, W)`` (32 x 32 in CIFAR) to logits ``(N, num_classes)``."""
        x = self.blocks(self.stem_act(self.stem_norm(self.stem(x))))
        x = self.h4(self.act(self.h3(self.norm(x))))
        x = self.h5(self.pool(x).flatten(1))
        logits: torch.Tensor = self.h6(self.fc(x))
        return logits

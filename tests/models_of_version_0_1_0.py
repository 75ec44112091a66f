"""Models whose rewritten forms version 0.1.0 wrote down, in ``fixtures/version_0_1_0``.

Plans hold the digest of the source of each method that they edit. So nothing in this file may be changed, its layout
included; models for new fixtures go into a file of their own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class PreActivation(nn.Module):
    """A residual block that says in its forward where it drops, which is too late; twice, once for nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.weight = nn.Conv2d(channels, channels, 1)
        self.early = nn.Dropout(0.1)
        self.late = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.early(self.norm(x)).relu()
        y = self.weight(y)
        y = self.late(y)
        return x + y


class InSequence(nn.Module):
    """A residual block whose branch is a container, with its dropout last."""

    def __init__(self, channels: int, drops: bool = True) -> None:
        super().__init__()
        last = [nn.Dropout(0.2)] if drops else []
        self.branch = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1), *last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.branch(x)


class ByFunction(nn.Module):
    """A residual block that drops by a function, at the right place and once more behind it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.weight = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.dropout(self.norm(x).relu(), 0.1, self.training)
        y = self.weight(y)
        y = F.dropout(y, 0.05, self.training)
        return x + y


def pooled(x: torch.Tensor, keepdim: bool = False) -> torch.Tensor:
    """Global average pooling as libraries write it: in a function beside their classes."""
    if keepdim:
        return x.mean(dim=(2, 3), keepdim=True)
    return x.mean(dim=(2, 3))


class Classifier(nn.Module):
    """Residual blocks, a local pooling by a module and one by a function, and a head that pools in a helper."""

    def __init__(self, classes: int = 4, drops: bool = True) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = PreActivation(8)
        self.pool = nn.AvgPool2d(2)
        self.second = InSequence(8, drops)
        self.third = ByFunction(8)
        self.drop = nn.Dropout(0.2 if drops else 0.0)
        self.classifier = nn.Linear(8, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.first(self.stem(x)))
        x = self.third(self.second(F.avg_pool2d(x, 2)))
        x = pooled(x)
        x = self.drop(x)
        return self.classifier(x)


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling with rates for another resolution than it is trained at."""

    def __init__(self, channels: int, rates: tuple[int, ...] = (12, 24, 36)) -> None:
        super().__init__()
        self.atrous = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, 4, 3, padding=rate, dilation=rate), nn.BatchNorm2d(4), nn.ReLU())
            for rate in rates
        )
        self.pooling = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU())
        self.project = nn.Conv2d(4 * len(rates) + 4, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [branch(x) for branch in self.atrous]
        image = F.interpolate(self.pooling(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        return self.project(torch.cat([*found, image], dim=1)).relu()


class Segmenter(nn.Module):
    """Group norms by a module and by a function, a pyramid, and a decoder that fuses two levels."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.GroupNorm(32, 32)
        self.down = nn.Conv2d(32, 32, 1, stride=4)
        self.pyramid = Pyramid(32)
        self.fuse = nn.Conv2d(40, 8, 1)
        self.logits = nn.Conv2d(8, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = self.norm(self.stem(x)).relu()
        deep = F.group_norm(self.down(low), 32).relu()
        deep = F.interpolate(self.pyramid(deep), scale_factor=4, mode="bilinear", align_corners=False)
        return self.logits(self.fuse(torch.cat([low, deep], dim=1)).relu())

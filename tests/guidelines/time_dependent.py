"""Networks that depend on a timestep, in the forms in which it joins a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from helpers import image
from torch import nn

Norm = Callable[[int], nn.Module]


def groups(number: int) -> Norm:
    return lambda channels: nn.GroupNorm(number, channels)


class ConcatConv(nn.Module):
    """A convolution of neural ODEs: the time is a plane of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        plane = torch.ones_like(x[:, :1, :, :]) * t
        return self.layer(torch.cat([plane, x], 1))


class OdeFunction(nn.Module):
    """The derivative of a neural ODE."""

    def __init__(self, norm: Norm, channels: int = 64) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = norm(channels), norm(channels), norm(channels)
        self.conv1, self.conv2 = ConcatConv(channels), ConcatConv(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        out = self.conv1(t, self.relu(self.norm1(x)))
        out = self.conv2(t, self.relu(self.norm2(out)))
        return self.norm3(out)


ODE_INPUTS = (torch.tensor(0.3), image(8, 64))


class Joined(nn.Module):
    """A norm and an activation behind a map that an embedding has joined, without weights before them."""

    def __init__(self, norm: nn.Module, table: torch.Tensor | None = None) -> None:
        super().__init__()
        self.norm, self.table = norm, table

    def forward(self, x: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        embedding = embedding[:, :, None, None]
        return F.silu(self.norm(x + (embedding if self.table is None else embedding * self.table)))


class Added(nn.Module):
    """Base of networks in which the embedding is added in another way."""

    dimensions = 2

    def __init__(self, norm: Norm, channels: int = 32) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.dimensions - 1]
        self.conv, self.out = conv(3, channels, 3, padding=1), conv(channels, 3, 3, padding=1)
        self.time, self.norm = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, channels)), norm(channels)

    def embedding(self, t: torch.Tensor) -> torch.Tensor:
        return self.time(t.float()[:, None] / 100).unflatten(1, (-1, *[1] * self.dimensions))

    def join(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return h + embedding

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.norm(self.join(self.conv(x), self.embedding(t)))))


class Reversed(Added):
    def join(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return embedding + h


class InPlace(Added):
    def join(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        h += embedding
        return h


class ByMethod(Added):
    def join(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return h.add_(embedding)


class ByFunction(Added):
    def join(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return torch.add(h, embedding, alpha=0.5)


class Expanded(Added):
    def join(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return h + embedding.expand_as(h)


class Scaled(Added):
    def join(self, h: torch.Tensor, embedding: torch.Tensor) -> torch.Tensor:
        return F.dropout((h + embedding) / 2**0.5, 0.1, self.training)


class OneDimension(Added):
    dimensions = 1


class ThreeDimensions(Added):
    dimensions = 3


class Function(Added):
    """The number of groups is written in the code."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        h = self.conv(x) + self.embedding(t)
        return self.out(F.silu(F.group_norm(h, 16, self.norm.weight, self.norm.bias)))


TIMES = torch.tensor([1, 500])


def images(net: type[Added]) -> tuple[Any, ...]:
    return torch.randn(2, 3, *[8] * net.dimensions, generator=torch.Generator().manual_seed(0)), TIMES

"""Poolings and layouts that are written with einops: in its functions, not in the model's methods."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import rewriter
from rewriter.testing import check_contract

einops = pytest.importorskip("einops")
from einops.layers.torch import Rearrange, Reduce  # noqa: E402


class Head(nn.Module):
    """A classifier behind a pooling that ``pool`` computes."""

    def __init__(self, pool: Callable[[nn.Module, torch.Tensor], torch.Tensor], rate: float) -> None:
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 8, 3, padding=1), Reduce("b c h w -> b c", "mean")
        self.pool, self.drop, self.head = pool, nn.Dropout(rate), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.pool(self, self.stem(x).relu())))  # type: ignore[no-any-return]


def as_tokens(x: torch.Tensor) -> torch.Tensor:
    return einops.rearrange(x, "b c h w -> b (h w) c")  # type: ignore[no-any-return]


class Layer(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.layer(self.stem(x).relu())))  # type: ignore[no-any-return]


class Function(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = einops.reduce(self.stem(x).relu(), "b c h w -> b c", "mean")
        return self.head(self.drop(x))  # type: ignore[no-any-return]


class Kept(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = einops.reduce(self.stem(x).relu(), "b c h w -> b c () ()", "mean")
        return self.head(self.drop(x.flatten(1)))  # type: ignore[no-any-return]


class Tokens(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = einops.reduce(as_tokens(self.stem(x).relu()), "b n c -> b c", "mean")
        return self.head(self.drop(x))  # type: ignore[no-any-return]


class TokensByMean(Head):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(as_tokens(self.stem(x).relu()).mean(1)))  # type: ignore[no-any-return]


class InSequential(nn.Sequential):
    def __init__(self, pool: object, rate: float) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, padding=1),
            Rearrange("b c h w -> b (h w) c"),
            nn.LayerNorm(8),
            Reduce("b n c -> b c", "mean"),
            nn.Dropout(rate),
            nn.Linear(8, 4),
        )

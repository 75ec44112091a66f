"""The layers that make an embedding vary over space where it joins a map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import nn

from rewriter.layers.added import AddedLayer
from rewriter.layers.registry import register_layer


def waves(size: Sequence[int], device: torch.device | None = None) -> torch.Tensor:
    """The table of positions: half waves along the axes of a map of any size, and their products, ``(waves, *size)``.

    Each has mean 0 over the map and mean square 1 along every axis of two positions or more; an axis of one position
    has none. Positions are relative to the map, so that the table of another resolution is the same picture.

    Args:
        size: of the map, without batch and channels.
        device: of the table, which is in single precision.
    """
    axes = []
    for dimension, length in enumerate(size):
        positions = (torch.arange(length, device=device, dtype=torch.float32) + 0.5) / length
        wave = math.sqrt(2) * torch.cos(math.pi * positions)
        axes.append(wave.reshape(*(-1 if axis == dimension else 1 for axis in range(len(size)))))
    table = []
    for chosen in itertools.product((False, True), repeat=len(size)):
        if any(chosen):
            factors = [axis for axis, is_in in zip(axes, chosen, strict=True) if is_in]
            table.append(math.prod(factors[1:], start=factors[0]).expand(*size))
    return torch.stack(table)


class _Positions(AddedLayer):
    """The amplitude of each wave in each channel, which is trained; ``channels`` at ``(waves, channels)``.

    Before training each channel has one wave, at amplitude 1.
    """

    amplitude: nn.Parameter

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        self.channels, self.dimensions = channels, dimensions
        self.amplitude = nn.Parameter(torch.empty(2**dimensions - 1, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            channel = torch.arange(self.channels, device=self.amplitude.device)
            self.amplitude.copy_(nn.functional.one_hot(channel % len(self.amplitude), len(self.amplitude)).T)

    def placed(self, embedding: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Return ``embedding * (1 + positions)``, with values for each position of a map of this size."""
        table = waves(size, embedding.device).to(self.amplitude.dtype)
        positions = torch.einsum("kc,k...->c...", self.amplitude, table)
        return embedding + embedding * positions.to(embedding.dtype)

    def extra_repr(self) -> str:
        return f"channels={self.channels}, dimensions={self.dimensions}"


@register_layer("timestep-embedding/positional-sum")
class PositionalSum(_Positions):
    """``map + embedding * (1 + positions)``: stands for a sum of a map ``(B, C, …)`` and what is constant over space.

    Args:
        channels: of the map.
        dimensions: how many dimensions of space it has.
        first: whether the map is the first argument; the other one is the embedding, of any shape that broadcasts.
        in_place: whether to write to the first argument, as ``x += y`` does.
    """

    def __init__(self, channels: int, dimensions: int, first: bool = True, in_place: bool = False) -> None:
        super().__init__(channels, dimensions)
        self.first, self.in_place = first, in_place

    def forward(self, x: torch.Tensor, other: torch.Tensor, *, alpha: float = 1) -> torch.Tensor:
        shown, embedding = (x, other) if self.first else (other, x)
        placed = self.placed(embedding, shown.shape[2:])
        if self.in_place:
            return x.add_(placed, alpha=alpha)
        return torch.add(x, placed, alpha=alpha) if self.first else torch.add(placed, other, alpha=alpha)


@register_layer("timestep-embedding/positional-planes")
class PositionalPlanes(_Positions):
    """Replaces one of several maps, a constant plane ``(B, channels, …)``, by ``plane * (1 + positions)``.

    Args:
        channels: of the plane.
        dimensions: how many dimensions of space it has.
        index: which of the maps it is.
    """

    def __init__(self, channels: int, dimensions: int, index: int) -> None:
        super().__init__(channels, dimensions)
        self.index = index

    def forward(self, maps: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        changed = list(maps)
        plane = changed[self.index]
        changed[self.index] = self.placed(plane, plane.shape[2:])
        return changed

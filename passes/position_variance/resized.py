"""Whether a table of positions was resized: its own values prove it, as long as they have not been trained since.

A table that was interpolated from fewer rows and columns lies in the span of that interpolation: as a matrix of rows
against everything else it has no more independent rows than the original had, and fitting the interpolation to it
leaves nothing. Tables that are drawn or trained have as many independent rows as rows, and one that was made smaller
has, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

_ROUNDING = 1e-5
"""What rounding to float32 leaves at most, relative to the largest value."""

_FEWEST = 4
"""Smaller grids are not looked for: constants, ramps and other simple tables have few independent rows as well."""

_MODES = {
    f"{mode}{', align_corners' if corners else ''}{', antialias' if smooth else ''}": (mode, corners, smooth)
    for mode, smooth in (("bicubic", True), ("bicubic", False), ("bilinear", False))
    for corners in (False, True)
}


@dataclass(frozen=True)
class Resized:
    """What a table was resized from.

    Attributes:
        size: height and width of the original.
        mode: the interpolation, in words.
        ratio: the variance of the table relative to that of the original.
    """

    size: tuple[int, int]
    mode: str
    ratio: float


def resized_from(grid: torch.Tensor, channels: int) -> Resized | None:
    """What a table was resized from; None where nothing proves it.

    Args:
        grid: tokens of a square grid and channels, ``(L, C)`` or ``(1, L, C)``, or a map, ``(1, C, H, W)`` or ``(1, H,
            W, C)``, with values.
        channels: the dimension of the channels.
    """
    table = as_map(grid.detach().double().cpu(), channels)
    if table is None or not torch.isfinite(table).all() or not table.any():
        return None
    size = (_independent(table.movedim(1, 0)), _independent(table.movedim(2, 0)))
    if min(size) < _FEWEST or not all(old < new for old, new in zip(size, table.shape[1:], strict=True)):
        return None
    for name, mode in _MODES.items():
        rows, columns = (_interpolation(old, new, mode) for old, new in zip(size, table.shape[1:], strict=True))
        original = torch.linalg.pinv(rows) @ table @ torch.linalg.pinv(columns).T
        if (rows @ original @ columns.T - table).abs().max() <= _ROUNDING * table.abs().max():
            return Resized(size, name, float(table.var(correction=0) / original.var(correction=0)))
    return None


def resemblance(original: torch.Tensor, present: torch.Tensor) -> float:
    """How much a table is like what interpolation makes of an original: the correlation, 1 for a table as it was made.

    Args:
        original, present: ``(C, H, W)``, with values.
    """
    made = F.interpolate(original[None], present.shape[1:], mode="bicubic", antialias=True)[0]
    return float(torch.corrcoef(torch.stack([made.flatten(), present.flatten()]))[0, 1])


def as_map(grid: torch.Tensor, channels: int) -> torch.Tensor | None:
    """The table as ``(C, H, W)``; None if its grid is not square and not told."""
    if grid.dim() == 4:
        return grid.movedim(channels, 1)[0]
    tokens = grid.reshape(-1, grid.shape[-1])
    side = math.isqrt(len(tokens))
    return tokens.T.reshape(-1, side, side) if side * side == len(tokens) else None


def _independent(rows: torch.Tensor) -> int:
    """The number of independent rows, up to rounding."""
    matrix = rows.flatten(1)
    values = torch.linalg.eigvalsh(matrix @ matrix.T).clamp_min(0).sqrt()
    return int((values > _ROUNDING * values.max()).sum())


def _interpolation(old: int, new: int, mode: tuple[str, bool, bool]) -> torch.Tensor:
    """The matrix, ``(new, old)``, of the interpolation of a row of ``old`` values to ``new``."""
    name, corners, smooth = mode
    units = torch.eye(old, dtype=torch.float64)[None, :, :, None].expand(1, old, old, old)
    made = F.interpolate(units, size=(new, old), mode=name, align_corners=corners, antialias=smooth)
    return made[0, :, :, 0].T

"""The layer that the pass puts behind a relative position bias."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.authoring import AddedLayer, register_layer
from rewriter.layers.scripting import NotScripted
from rewriter.passes.gaussian_attention_bias.fitting import fits, fitting_sizes, has_values
from rewriter.text import counted

_NARROWEST = 1e-3
"""The least width that is used, so that the exponent stays finite."""


@register_layer("gaussian-attention-bias/bias")
class GaussianBias(NotScripted, AddedLayer):
    """Adds ``amplitude² exp(-(dy² + dx²) / (2 width²))`` to a relative position bias.

    ``dy`` and ``dx`` are the offsets of a query and a key on the grid. All heads, windows and images get the same
    table; prefix tokens (class tokens, registers) get none.

    The grid is compared with the values of the bias, which depend on the offset on its own grid alone: at each call on
    the CPU, elsewhere at the first one with a number of positions and after each change of mode, since a comparison
    waits for the device. If they fit another grid, that one is used.

    Args:
        grid: rows and columns of positions.
        prefix_tokens: number of tokens before the positions.
        amplitude, width: the values before training.

    Attributes:
        amplitude, width: learned, of shape ``(1,)``. The sign of neither matters; widths below 0.001 count as 0.001.
        grid: rows and columns. Set it where a bias does not tell.
    """

    def __init__(self, grid: Sequence[int], prefix_tokens: int = 0, amplitude: float = 2.0, width: float = 5.0) -> None:
        super().__init__()
        self.grid: tuple[int, int] = (int(grid[0]), int(grid[1]))
        self.prefix_tokens = prefix_tokens
        self.initial = {"amplitude": float(amplitude), "width": float(width)}
        self.amplitude, self.width = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self._grids_seen: dict[int, tuple[int, int]] = {}
        self._just_seen: set[int] = set()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.amplitude.fill_(self.initial["amplitude"])
            self.width.fill_(self.initial["width"])

    def train(self, mode: bool = True) -> GaussianBias:
        self._just_seen.clear()
        super().train(mode)
        return self

    def table(self, size: Sequence[int] | None = None) -> torch.Tensor:
        """The bias of every query (row) towards every key (column), shape ``(tokens, tokens)``.

        It is computed in single precision at least.

        Args:
            size: rows and columns of positions; by default :attr:`grid`.
        """
        rows, columns = self.grid if size is None else size
        precision = torch.promote_types(self.amplitude.dtype, torch.float32)
        exponent = -0.5 / self.width.to(precision).abs().clamp(min=_NARROWEST).square()
        along = [torch.exp(exponent * _squared_offsets(length, exponent)) for length in (rows, columns)]
        height = self.amplitude.to(precision).square()
        table = (height * along[0])[:, None, :, None] * along[1][None, :, None, :]
        table = table.reshape(rows * columns, rows * columns)
        return F.pad(table, (self.prefix_tokens, 0, self.prefix_tokens, 0)) if self.prefix_tokens else table

    def forward(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Add the table to ``bias``, whose last two dimensions are queries and keys; None, for no bias, stays None.

        Raises:
            ValueError: the queries and keys are not on one grid, or it is not certain on which.
        """
        if bias is None:
            return None
        self._refuse_two_grids(*bias.shape[-2:])
        return bias + self.table(self._size_of(bias)).to(bias.dtype)

    def _size_of(self, bias: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of the grid that ``bias`` is for."""
        positions = bias.shape[-1] - self.prefix_tokens
        planned = math.prod(self.grid) == positions
        if not has_values(bias):
            if not planned and positions not in self._grids_seen and bias.is_meta:  # nothing is computed from it
                return self._same_aspect(positions)
            return self._certain(positions, self.grid if planned else self._grids_seen.get(positions), [])
        if bias.device.type != "cpu" and positions in self._just_seen and positions in self._grids_seen:
            return self._grids_seen[positions]
        if planned and fits(bias, self.prefix_tokens, self.grid):
            found = self.grid
        else:
            sizes = fitting_sizes(bias, self.prefix_tokens)
            none = planned and not sizes  # it is not of offsets alone now: a dropout acts on it
            found = self._certain(positions, self.grid if none else sizes[0] if len(sizes) == 1 else None, sizes)
        self._grids_seen[positions] = found
        self._just_seen.add(positions)
        return found

    def _certain(
        self, positions: int, size: tuple[int, int] | None, possible: Sequence[tuple[int, int]]
    ) -> tuple[int, int]:
        """``size``, which is None if it is not certain."""
        if size is not None:
            return size
        prefix = f" behind {counted(self.prefix_tokens, 'prefix token')}" if self.prefix_tokens else ""
        shown = ", ".join(f"{rows}x{columns}" for rows, columns in possible)
        fitting = f" (it could be {shown})" if shown else ""
        raise ValueError(
            f"the Gaussian is made for a grid of {self._shown} positions, found {positions} positions{prefix}, and "
            f"nothing tells their rows and columns{fitting}; set the attribute `grid` of this layer to (rows, "
            "columns), or rewrite the original model with its input size set"
        )

    def _same_aspect(self, positions: int) -> tuple[int, int]:
        """A grid of about the aspect of :attr:`grid` with as many positions."""
        rows, columns = self.grid
        sizes = [(size, positions // size) for size in range(1, positions + 1) if positions % size == 0]
        return min(sizes, key=lambda size: abs(math.log(size[0] * columns / (size[1] * rows))))

    def _refuse_two_grids(self, queries: int, keys: int) -> None:
        if queries != keys:
            raise ValueError(
                f"the Gaussian is made for queries and keys on one grid of {self._shown}, found {queries} queries and "
                f"{keys} keys; rewriter.undo(model) takes it out"
            )

    @property
    def _shown(self) -> str:
        return f"{self.grid[0]}x{self.grid[1]}"

    def extra_repr(self) -> str:
        return f"grid={self._shown}, prefix_tokens={self.prefix_tokens}"


def _squared_offsets(size: int, like: torch.Tensor) -> torch.Tensor:
    """``(i - j)²`` for positions ``i`` and ``j`` of a line."""
    line = torch.arange(size, dtype=like.dtype, device=like.device)
    return (line[:, None] - line[None, :]).square()

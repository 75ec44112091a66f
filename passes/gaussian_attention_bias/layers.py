"""The layers that the pass puts into models: one Gaussian a layer of attention, added to its bias or to its scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.authoring import AddedLayer, register_layer
from rewriter.layers.scripting import NotScripted
from rewriter.text import counted

_NARROWEST = 1e-3
"""The least width that is used, so that the exponent stays finite."""


@register_layer("gaussian-attention-bias/bias")
class GaussianBias(NotScripted, AddedLayer):
    """Adds ``amplitude² exp(-(dy² + dx²) / (2 width²))`` to a relative position bias.

    ``dy`` and ``dx`` are the offsets of a query and a key on the grid. All heads, windows and images get the same
    table; prefix tokens (class tokens, registers) get none.

    Args:
        grid: rows and columns of positions. With another number of positions than these have, the grid is the one of
            the same aspect.
        prefix_tokens: number of tokens before the positions.
        amplitude, width: the values before training.

    Attributes:
        amplitude, width: learned, of shape ``(1,)``. The sign of neither matters; widths below 0.001 count as 0.001.
        grid: rows and columns. Set it for positions of another aspect.
    """

    def __init__(self, grid: Sequence[int], prefix_tokens: int = 0, amplitude: float = 2.0, width: float = 5.0) -> None:
        super().__init__()
        self.grid: tuple[int, int] = (int(grid[0]), int(grid[1]))
        self.prefix_tokens = prefix_tokens
        self.initial = {"amplitude": float(amplitude), "width": float(width)}
        self.amplitude, self.width = nn.Parameter(torch.empty(1)), nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        with torch.no_grad():
            self.amplitude.fill_(self.initial["amplitude"])
            self.width.fill_(self.initial["width"])

    def table(self, tokens: int) -> torch.Tensor:
        """The bias of every query (row) towards every key (column), shape ``(tokens, tokens)``.

        It is computed in single precision at least.

        Raises:
            ValueError: no grid of the aspect of :attr:`grid` has so many positions.
        """
        rows, columns = self._grid_of(tokens)
        precision = torch.promote_types(self.amplitude.dtype, torch.float32)
        exponent = -0.5 / self.width.to(precision).abs().clamp(min=_NARROWEST).square()
        along = [torch.exp(exponent * _squared_offsets(size, exponent)) for size in (rows, columns)]
        height = self.amplitude.to(precision).square()
        table = (height * along[0])[:, None, :, None] * along[1][None, :, None, :]
        table = table.reshape(rows * columns, rows * columns)
        return F.pad(table, (self.prefix_tokens, 0, self.prefix_tokens, 0)) if self.prefix_tokens else table

    def forward(self, bias: torch.Tensor | None) -> torch.Tensor | None:
        """Add the table to ``bias``, whose last two dimensions are queries and keys; None, for no bias, stays None.

        Raises:
            ValueError: the queries and keys lie on no such grid.
        """
        if bias is None:
            return None
        queries, keys = bias.shape[-2:]
        if queries != keys:
            raise ValueError(
                f"the Gaussian is made for queries and keys on one grid of {self._shown}, found {queries} queries and "
                f"{keys} keys; rewriter.undo(model) takes it out"
            )
        return bias + self.table(keys).to(bias.dtype)

    def _grid_of(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of ``tokens`` tokens."""
        rows, columns = self.grid
        positions = tokens - self.prefix_tokens
        if positions != rows * columns:
            step = math.gcd(rows, columns)
            high, wide = rows // step, columns // step
            times = math.isqrt(max(positions, 0) // (high * wide))
            rows, columns = high * times, wide * times
            if not times or positions != rows * columns:
                prefix = f" behind {counted(self.prefix_tokens, 'prefix token')}" if self.prefix_tokens else ""
                raise ValueError(
                    f"the Gaussian is made for positions of the aspect {high}:{wide} ({self._shown}), found "
                    f"{positions} positions{prefix}, which no such grid has; set the attribute `grid` of this layer to "
                    "their (rows, columns)"
                )
        return rows, columns

    @property
    def _shown(self) -> str:
        return f"{self.grid[0]}x{self.grid[1]}"

    def extra_repr(self) -> str:
        return f"grid={self._shown}, prefix_tokens={self.prefix_tokens}"


@register_layer("gaussian-attention-bias/attention")
class GaussianAttention(GaussianBias):
    """Adds the same table to the scores of an attention that has no bias of its own.

    It stands for ``torch.nn.functional.scaled_dot_product_attention``, whose arguments it takes; called with one
    tensor, the scores before the softmax, it adds the table to those. So one layer serves both ways to compute an
    attention.
    """

    def forward(  # type: ignore[override]
        self,
        query: torch.Tensor,
        key: torch.Tensor | None = None,
        value: torch.Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor | None:
        if key is None or value is None:
            return super().forward(query)
        names = ("attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        table = self.table(key.shape[-2]).to(query.dtype)
        if given.pop("is_causal", False):  # which takes no mask beside it
            table = table.masked_fill(torch.ones_like(table, dtype=torch.bool).triu(1), -math.inf)
        given["attn_mask"] = _joined(table, given.get("attn_mask"))
        return F.scaled_dot_product_attention(query, key, value, **given)


def _joined(table: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """The sum of the table and an attention mask, of numbers or, True where a query may look, of truth values."""
    if mask is None:
        return table
    return table.masked_fill(~mask, -math.inf) if mask.dtype is torch.bool else mask + table


def _squared_offsets(size: int, like: torch.Tensor) -> torch.Tensor:
    """``(i - j)²`` for positions ``i`` and ``j`` of a line."""
    line = torch.arange(size, dtype=like.dtype, device=like.device)
    return (line[:, None] - line[None, :]).square()

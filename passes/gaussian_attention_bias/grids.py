"""The grid that the positions of an attention lie on, and the tokens before them, by the values of a bias."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import fx

from rewriter.authoring import Trace
from rewriter.passes.gaussian_attention_bias.constants import value_of
from rewriter.tracing.facts import facts


@dataclass(frozen=True)
class Grid:
    """Rows and columns of positions, behind ``prefix`` tokens that have none.

    ``map`` is the map that was flattened to the tokens, with the dimensions that count rows and columns; None where the
    values of a bias told.
    """

    rows: int
    columns: int
    prefix: int = 0
    map: tuple[fx.Node, tuple[int, int]] | None = field(default=None, compare=False)

    def __str__(self) -> str:
        tokens = f" behind {self.prefix} prefix token{'s' if self.prefix > 1 else ''}" if self.prefix else ""
        return f"{self.rows}x{self.columns} positions{tokens}"


_MOST_PREFIX_TOKENS = 32


def grids_of_bias(node: fx.Node, trace: Trace) -> list[Grid] | None:
    """The grids of a bias, see :func:`grids_of_values`; None if its values cannot be computed."""
    key = "gaussian-attention-bias", facts(node)["owner"], facts(node)["shape"]
    if key not in trace.measured:
        value = value_of(node, trace)
        trace.measured[key] = None if value is None else grids_of_values(value)
    found: list[Grid] | None = trace.measured[key]
    return found


def grids_of_values(value: torch.Tensor) -> list[Grid]:
    """The grids on which a bias depends on nothing but the offset of query and key, with the fewest prefix tokens.

    A bias of positions on a line depends on the offset in every grid; it gives ``rows=1`` alone.

    Args:
        value: a bias of generic values, shape ``(…, tokens, tokens)``.
    """
    table = value.reshape(-1, *value.shape[-2:])[0].double()
    tokens = table.shape[-1]
    for prefix in range(1 + max(0, min(_MOST_PREFIX_TOKENS, tokens - 4))):  # of the rest a plane has four at least
        positions = tokens - prefix
        fitting = [
            Grid(rows, positions // rows, prefix)
            for rows in range(1, positions + 1)
            if positions % rows == 0 and _depends_on_offset(table[prefix:, prefix:], rows, positions // rows)
        ]
        if any(grid.rows == 1 for grid in fitting):
            return [Grid(1, positions, prefix)]
        if fitting := [grid for grid in fitting if grid.columns > 1]:
            return fitting
    return []


def _depends_on_offset(table: torch.Tensor, rows: int, columns: int) -> bool:
    """Whether moving query and key together along either axis changes nothing."""
    bias = table.reshape(rows, columns, rows, columns)
    close = 1e-4 * table.abs().max()
    down = (bias[1:, :, 1:] - bias[:-1, :, :-1]).abs()
    across = (bias[:, 1:, :, 1:] - bias[:, :-1, :, :-1]).abs()
    return all(not difference.numel() or bool(difference.max() <= close) for difference in (down, across))

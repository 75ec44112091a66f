"""Which grid a relative position bias is for, by its values while a model runs."""

from __future__ import annotations

import torch

_Size = tuple[int, int]
_CLOSE = {torch.bfloat16: 1e-2, torch.float16: 1e-2}


def has_values(bias: torch.Tensor) -> bool:
    """Whether values can be looked at: not while a graph is captured, nor on the meta device."""
    captured = torch.compiler.is_compiling() or torch._C._is_tracing()
    return not captured and type(bias) in (torch.Tensor, torch.nn.Parameter) and not bias.is_meta


@torch.no_grad()
def fits(bias: torch.Tensor, prefix: int, size: _Size) -> bool:
    """Whether a bias may be one of offsets on a grid.

    Only three of its rows are compared, the queries at the first position, right of it and below it: on another grid
    the line breaks are elsewhere, and values of generic tables differ there.

    Args:
        bias: shape ``(…, tokens, tokens)``.
        prefix: the number of tokens before the positions.
        size: rows and columns of the grid, which has that many positions.
    """
    rows, columns = size
    table = bias.reshape(-1, *bias.shape[-2:])[0, prefix:, prefix:]
    queries = [0, *([1] if columns > 1 else ()), *([columns] if rows > 1 else ())]
    seen = table[queries].float().reshape(len(queries), rows, columns)
    differences = []
    if columns > 1:
        differences.append((seen[1, :, 1:] - seen[0, :, :-1]).abs().max())
    if rows > 1:
        differences.append((seen[-1, 1:] - seen[0, :-1]).abs().max())
    close = _CLOSE.get(bias.dtype, 1e-4) * seen.abs().max()
    return all(bool(difference <= close) for difference in differences)


def fitting_sizes(bias: torch.Tensor, prefix: int) -> list[_Size]:
    """The planes on which a bias may be one of offsets; all that have so many positions if its values are equal."""
    positions = bias.shape[-1] - prefix
    sizes = [(rows, positions // rows) for rows in range(2, positions // 2 + 1) if positions % rows == 0]
    return [size for size in sizes if fits(bias, prefix, size)]

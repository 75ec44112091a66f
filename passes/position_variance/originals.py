"""The table as it was before it was resized: the option ``original``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rewriter.errors import InputError, listed
from rewriter.model.checkpoint_file import read_checkpoint
from rewriter.passes.position_variance.resized import as_map, resemblance

_EXPECTED = "original: expected the tensor of positions before it was resized, a state dict that holds it, or its file"


def read_original(original: object) -> torch.Tensor | Mapping[str, Any]:
    """The original, read from a file if that is given.

    Raises:
        ValueError: it is neither a tensor nor a state dict with tensors.
        StorageError: there is no such file, or it holds no state dict.
    """
    if isinstance(original, (str, Path)):
        return read_checkpoint(original)
    if isinstance(original, torch.Tensor):
        if original.dim() < 2 or not original.is_floating_point():
            raise ValueError(f"{_EXPECTED}, found a tensor of {original.dtype} and shape {tuple(original.shape)}")
        return original
    if not isinstance(original, Mapping):
        raise ValueError(f"{_EXPECTED}, found {type(original).__name__}")
    if not any(isinstance(value, torch.Tensor) for value in original.values()):
        inside = [str(key) for key, value in original.items() if isinstance(value, Mapping)]
        hint = f"; give what is in it under {listed(inside)}" if inside else ""
        raise ValueError(f"{_EXPECTED}, found a mapping without tensors{hint}")
    return original


def described(original: torch.Tensor | Mapping[str, Any]) -> str:
    """What it is, for a plan, which holds no tensors."""
    if isinstance(original, torch.Tensor):
        return f"a tensor of shape {tuple(original.shape)}"
    return f"a state dict of {sum(isinstance(value, torch.Tensor) for value in original.values())} tensors"


def original_of(
    original: torch.Tensor | Mapping[str, Any], name: str, like: torch.Tensor, channels: int
) -> torch.Tensor:
    """The original of the table ``name``, which is ``like`` that.

    Args:
        channels: the dimension of its channels.

    Raises:
        InputError: the state dict has no such tensor, or several, or it has other channels.
    """
    if isinstance(original, torch.Tensor):
        found, what = original, "the tensor"
    else:
        key = _key(original, name)
        found, what = original[key], repr(key)
    if found.dim() != like.dim() or found.shape[channels] != like.shape[channels]:
        raise InputError(
            f"original: expected a table with {like.shape[channels]} channels in dimension {channels} of {like.dim()}, "
            f"as {name} of shape {tuple(like.shape)}, found {what} of shape {tuple(found.shape)}; give the table that "
            f"{name} was resized from"
        )
    return found.detach()


def _key(state: Mapping[str, Any], name: str) -> str:
    """The key of the parameter ``name``, which may have a prefix more or less: ``module.pos_embed``."""
    tensors = [key for key, value in state.items() if isinstance(key, str) and isinstance(value, torch.Tensor)]
    if name in tensors:
        return name
    found = [key for key in tensors if key.endswith(f".{name}") or name.endswith(f".{key}")]
    if len(found) != 1:
        near = found or [key for key in tensors if "pos" in key] or tensors
        raise InputError(
            f"original: expected a state dict with {name!r}, found {'several' if found else 'none'} among "
            f"{len(tensors)} tensors ({listed(near)}); give the table itself: PositionVariance(original=state[...])"
        )
    return found[0]


def grid_of(table: torch.Tensor, channels: int, tokens: int, extra: int) -> torch.Tensor:
    """The part of an original that belongs to the grid of patches: without its first tokens, if it has some.

    Args:
        table: tokens and channels, or a map.
        channels: the dimension of the channels.
        tokens: the dimension of the tokens; -1 for a map, all of which is the grid.
        extra: how many tokens the present table has beside its grid.
    """
    if tokens < 0:
        return table
    count = table.shape[tokens]
    if extra and not _is_square(count - extra) and _is_square(count):
        extra = 0
    return table.narrow(tokens, extra, count - extra) if 0 <= extra < count else table


def check_fits(grid: torch.Tensor, present: torch.Tensor, channels: int, name: str) -> None:
    """Refuse an original that the table ``name`` cannot have been resized from.

    Raises:
        InputError: its positions are no square, or the table is nothing like an interpolation of it.
    """
    shapes = f"{name} has {_places(present, channels)} positions and the original {_places(grid, channels)}"
    old, new = (as_map(tensor.detach().double().cpu(), channels) for tensor in (grid, present))
    if old is None:
        raise InputError(
            f"original: expected a square of positions, perhaps with those of class tokens before it; {shapes}. Give "
            f"the table that {name} was resized from"
        )
    if new is None:
        return
    found = resemblance(old, new)
    if not found > _ALIKE:
        raise InputError(
            f"original: expected the table that {name} was resized from, found one that it is no interpolation of "
            f"(correlation {found:.2f}); {shapes}"
        )


_ALIKE = 0.5
"""Training changes a table; one of another model has a correlation near 0."""


def _places(table: torch.Tensor, channels: int) -> int:
    return table.numel() // table.shape[channels]


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number

"""Changes of parameters and buffers: scaling, padding, or removing entries; each can be undone.

Options, as plain data:

* ``scale``: ``by``, a number, or a list with one for each entry of dimension ``dim``.
* ``pad``: ``before`` and ``after``, how many entries of this ``value`` are added at the ends of dimension ``dim``.
* ``drop``: ``indices``, the entries of dimension ``dim`` that are removed.

The object stays the same, so that an optimizer can continue with it; if its shape changes, its gradient is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from rewriter.errors import PlanError


@dataclass(frozen=True, eq=False)
class Changed:
    """A tensor that was changed, and what is needed to restore it.

    Attributes:
        path: path of its module; ``name`` is its name there.
        change, options: what was done.
        lost: what cannot be computed back: the original tensor, or the removed entries.
    """

    path: str
    name: str
    change: str
    options: Mapping[str, Any]
    lost: torch.Tensor

    def take_back(self, module: nn.Module) -> None:
        """Undo the change; values trained since are kept, and all others are restored exactly."""
        tensor = _tensor(module, self.path, self.name)
        _set(tensor, self.original_of(tensor.detach()))

    def original_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return what ``tensor`` is without the change; what was added to it is lost."""
        return _BACK[self.change](tensor, self.lost.to(tensor.device, tensor.dtype), **self.options)

    def is_lossy(self, tensor: torch.Tensor) -> bool:
        """Whether entries that were added to ``tensor`` have been trained since, and are lost without the change."""
        if self.change != "pad" or tensor.is_meta:
            return False
        as_padded, _ = _pad(self.original_of(tensor), **self.options)
        return not torch.equal(as_padded, tensor)


def change_tensor(module: nn.Module, path: str, name: str, change: str, options: Mapping[str, Any]) -> Changed:
    """Change the parameter or buffer ``name`` of ``module``, which is at ``path``.

    Raises:
        PlanError: there is no such tensor or change, or it does not fit the tensor.
    """
    tensor = _tensor(module, path, name)
    if change not in _CHANGES:
        raise PlanError(f"{path}.{name}: expected a change of {', '.join(_CHANGES)}, found {change!r}")
    try:
        new, lost = _CHANGES[change](tensor.detach(), **options)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise PlanError(f"{path}.{name} of shape {tuple(tensor.shape)}: {change} {dict(options)}: {error}") from error
    _set(tensor, new)
    return Changed(path, name, change, dict(options), lost)


def _tensor(module: nn.Module, path: str, name: str) -> torch.Tensor:
    found = module._parameters.get(name, module._buffers.get(name))
    if found is None:
        raise PlanError(f"module {path!r} ({type(module).__name__}) has no parameter or buffer {name!r}")
    return found


def _set(tensor: torch.Tensor, new: torch.Tensor) -> None:
    if new.shape != tensor.shape:
        tensor.grad = None
    tensor.data = new.clone()


def _factor(tensor: torch.Tensor, by: float | list[float], dim: int | None) -> torch.Tensor:
    factor = torch.as_tensor(by, dtype=tensor.dtype, device=tensor.device)
    if dim is None:
        return factor
    if factor.shape != tensor.shape[dim : dim + 1]:
        raise ValueError(f"expected {tensor.shape[dim]} factors for dimension {dim}")
    return factor.reshape(-1, *(1,) * (tensor.dim() - dim - 1))


def _scale(tensor: torch.Tensor, by: float | list[float], dim: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return tensor * _factor(tensor, by, dim), tensor.clone()


def _unscale(tensor: torch.Tensor, old: torch.Tensor, by: float | list[float], dim: int | None = None) -> torch.Tensor:
    factor = _factor(tensor, by, dim)
    if tensor.is_meta:
        return old
    return torch.where(tensor == old * factor, old, tensor / factor)  # untrained values are restored exactly


def _pad(
    tensor: torch.Tensor, dim: int, before: int, after: int, value: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    ends = [0, 0] * (tensor.dim() - dim - 1) + [before, after]
    return F.pad(tensor, ends, value=value), tensor.new_empty(0)


def _unpad(
    tensor: torch.Tensor, lost: torch.Tensor, dim: int, before: int, after: int, value: float = 0.0
) -> torch.Tensor:
    return tensor.narrow(dim, before, tensor.shape[dim] - before - after)


def _drop(tensor: torch.Tensor, dim: int, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    gone = _indices(tensor, indices)
    kept = [index for index in range(tensor.shape[dim]) if index not in set(indices)]
    return tensor.index_select(dim, _indices(tensor, kept)), tensor.index_select(dim, gone)


def _undrop(tensor: torch.Tensor, lost: torch.Tensor, dim: int, indices: list[int]) -> torch.Tensor:
    size = tensor.shape[dim] + len(indices)
    order = [index for index in range(size) if index not in set(indices)] + list(indices)
    places = sorted(range(size), key=order.__getitem__)
    return torch.cat([tensor, lost], dim).index_select(dim, _indices(tensor, places))


def _indices(tensor: torch.Tensor, indices: list[int]) -> torch.Tensor:
    return torch.tensor(indices, dtype=torch.long, device=tensor.device)


_CHANGES: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {"scale": _scale, "pad": _pad, "drop": _drop}
_BACK: dict[str, Callable[..., torch.Tensor]] = {"scale": _unscale, "pad": _unpad, "drop": _undrop}

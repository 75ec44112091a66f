"""Tensors that a rewrite scaled, padded or shortened, as the original has them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rewriter.edit.tensors import Changed
from rewriter.errors import RewriterWarning, listed
from rewriter.model.wrappers import module_inside, path_of_key
from rewriter.planning.record import records_of, rewritten_parts


def with_tensors_of_original(model: nn.Module, state: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a state dict of ``model`` with the changes of tensors taken back, the latest first.

    Warns where entries that a rewrite added were trained, and are left out.

    Args:
        model: the rewritten model, or one that contains it.
        state: its state dict; not changed.
        what: how the warning refers to the caller.
    """
    state, lost = dict(state), []
    for _, part in rewritten_parts(model):
        for changed, module in _changes(part):
            for path, other in model.named_modules(remove_duplicate=False):
                key = f"{path_of_key(path)}.{changed.name}".lstrip(".")
                if other is module and isinstance(state.get(key), torch.Tensor):
                    lost += [key] * changed.is_lossy(state[key])
                    state[key] = changed.original_of(state[key])
    _warn(what, lost)
    return state


def warn_of_lost_entries(part: nn.Module, what: str) -> None:
    """Warn where undoing the rewrites of ``part`` drops entries that were trained."""
    lost = []
    for changed, module in _changes(part):
        tensor = module._parameters.get(changed.name, module._buffers.get(changed.name))
        if tensor is not None and changed.is_lossy(tensor.detach()):
            lost.append(f"{changed.path}.{changed.name}".lstrip("."))
    _warn(what, lost)


def _changes(part: nn.Module) -> Iterator[tuple[Changed, nn.Module]]:
    """The changes of tensors in ``part``, the latest first, with the modules that hold these."""
    for record in reversed(records_of(part)):
        for changed in reversed(record.applied.tensors):
            module = module_inside(part, changed.path)
            if module is not None:
                yield changed, module


def _warn(what: str, lost: list[str]) -> None:
    if lost:
        warnings.warn(
            f"{what} leaves out trained entries of {listed(dict.fromkeys(lost))}, which the original has no room for: "
            "with the rest alone it computes something else",
            RewriterWarning,
            stacklevel=3,
        )

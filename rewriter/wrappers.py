"""Modules that hold one other module and hand every call on: what is inside is the model, whatever is around it.

Wrappers change the paths of everything inside. Decisions, edits and reports name modules by the paths that they have
without any.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from rewriter.errors import ModelError

_CHECKPOINTED = "_checkpoint_wrapped_module"
_INNER = ("_orig_mod", _CHECKPOINTED, "_fsdp_wrapped_module")
"""Where compiled models, activation checkpointing and FSDP's first form keep the module."""

_BY_CLASS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)


def inside(module: nn.Module) -> nn.Module:
    """The module below all wrappers around it; itself if there are none."""
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def named_modules_inside(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """As ``model.named_modules()``, without wrappers: neither they nor their names are in it."""
    seen: set[int] = set()
    pending = [("", model)]
    while pending:
        path, module = pending.pop()
        module = inside(module)
        if remove_duplicate and id(module) in seen:
            continue
        seen.add(id(module))
        yield path, module
        prefix = f"{path}." if path else ""
        children = [(prefix + name, child) for name, child in module._modules.items() if child is not None]
        pending += reversed(children)


def module_inside(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path without the names of wrappers; None if there is none."""
    module: nn.Module | None = inside(model)
    for name in path.split(".") if path else ():
        child = module._modules.get(name) if module is not None else None
        module = None if child is None else inside(child)
    return module


def path_of_key(path: str) -> str:
    """A module's path as keys of state dicts have it: the wrapper of activation checkpointing leaves its name out."""
    return path.replace(f"{_CHECKPOINTED}.", "")


def looked_through(model: Any) -> nn.Module:
    """What is inside of ``model``, for verbs that run nothing.

    Raises:
        ModelError: it is no module.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ModelError(f"expected a model, found the class {model.__name__}; call it first: {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, found {type(model).__name__}")
    return inside(model)


def _inner(module: nn.Module) -> nn.Module | None:
    held = module._modules.get("module") if isinstance(module, _BY_CLASS) else None
    found = held or next((module._modules[name] for name in _INNER if name in module._modules), None)
    return found if isinstance(found, nn.Module) else None

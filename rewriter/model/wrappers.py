"""Wrappers: modules that hold one other module and forward every call to it, so that the inner one is the model.

peft adapters are like this too, and add to what the inner module computes. Wrappers change the paths of everything
inside. Decisions, edits and reports name modules by the paths that they have without wrappers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel

from rewriter.errors import ModelError

_CHECKPOINTED = "_checkpoint_wrapped_module"
_SHARDED = "_fsdp_wrapped_module"
_INNER = ("_orig_mod", _CHECKPOINTED, _SHARDED)
"""Where compiled models, activation checkpointing and FSDP1 keep the inner module."""

_IN_PEFT = {"base_model": True, "model": True, "base_layer": False, "original_module": False}
"""Where peft modules keep what they adapt, and whether they must hold nothing else.

A peft model with prompts beside its base model is not a wrapper, since its prompt parameters would be ignored.
"""

_BY_CLASS = (nn.parallel.DistributedDataParallel, nn.DataParallel, AveragedModel)


def inside(module: nn.Module) -> nn.Module:
    """The module inside all wrappers; itself if there are none."""
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def named_modules_inside(model: nn.Module, remove_duplicate: bool = True) -> Iterator[tuple[str, nn.Module]]:
    """Like ``model.named_modules()``, but without wrappers and their names."""
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


def paths_inside(model: nn.Module) -> dict[str, str]:
    """Map the path of every module of ``model`` to its path without wrappers."""
    found = {}
    pending = [("", "", model)]
    while pending:
        path, plain, module = pending.pop()
        found[path] = plain
        inner = _inner(module)
        for name, child in module._modules.items():
            if child is not None:
                below = plain if child is inner else f"{plain}.{name}".lstrip(".")
                pending.append((f"{path}.{name}".lstrip("."), below, child))
    return found


def parameter_names_inside(model: nn.Module) -> dict[str, str]:
    """Map every parameter name of ``model`` to its name without wrappers."""
    inside = paths_inside(model)
    split = ((full, *full.rpartition(".")) for full, _ in model.named_parameters(remove_duplicate=False))
    return {full: f"{inside[path]}.{name}".lstrip(".") for full, path, _, name in split}


def module_inside(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path without the names of wrappers; None if there is none."""
    module: nn.Module | None = inside(model)
    for name in path.split(".") if path else ():
        child = module._modules.get(name) if module is not None else None
        module = None if child is None else inside(child)
    return module


def path_of_key(path: str) -> str:
    """A module's path as it appears in state-dict keys: activation checkpointing and FSDP leave their names out."""
    return path.replace(f"{_CHECKPOINTED}.", "").replace(f"{_SHARDED}.", "")


def holds_adapters(module: nn.Module) -> bool:
    """Whether this module itself is a peft module that computes with adapters beside the wrapped module."""
    return any(cls.__module__.partition(".")[0] == "peft" for cls in type(module).__mro__)


def trained_copies(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules of which peft trains full copies (``modules_to_save``), with their paths."""
    for path, module in model.named_modules():
        if "original_module" in module._modules and holds_adapters(module):
            yield path, module


def is_flattened(model: nn.Module) -> bool:
    """Whether FSDP1 keeps parameters of ``model``, given with all its wrappers, in flat ones."""
    return any(_SHARDED in module._modules for module in model.modules())


def looked_through(model: Any) -> nn.Module:
    """The model inside ``model``, for functions that run nothing.

    Raises:
        ModelError: it is not a module.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise ModelError(f"expected a model, found the class {model.__name__}; call it first: {model.__name__}(...)")
    if not isinstance(model, nn.Module):
        raise ModelError(f"expected a torch.nn.Module, found {type(model).__name__}")
    return inside(model)


def _inner(module: nn.Module) -> nn.Module | None:
    children = module._modules
    held = children.get("module") if isinstance(module, _BY_CLASS) else None
    found = held or next((children[name] for name in _INNER if name in children), None)
    if found is None and not children.keys().isdisjoint(_IN_PEFT) and holds_adapters(module):
        alone = len(children) == 1 and not module._parameters
        found = next(
            (children[name] for name, all_of_it in _IN_PEFT.items() if name in children and alone >= all_of_it), None
        )
    return found if isinstance(found, nn.Module) else None

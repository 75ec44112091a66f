"""Layers and parameters that a model creates while it runs: a plan cannot refer to them before they exist."""

from __future__ import annotations

import dis
import types
from collections.abc import Iterable, Sequence

from torch import nn

_REMEDY = {
    False: "Run the model once on an input of its kind, then rewrite.",
    True: "Make it in __init__: one that every call makes anew cannot be trained, nor rewritten.",
}


def made_in_forward(
    model: nn.Module, copy: nn.Module, modules: Sequence[nn.Module], parameters: Iterable[nn.Parameter]
) -> str | None:
    """Describe what running ``copy``, a skeleton of ``model``, created that the model lacks, where, and what to do.

    None if there is nothing, or only layers without parameters in place of such layers.

    Args:
        model: the model, which did not run.
        copy: its skeleton, which did.
        modules, parameters: those that the skeleton had before.
    """
    before = {None, *modules, *parameters}
    if all(before.issuperset(held.values()) for part in modules for held in (part._modules, part._parameters)):
        return None
    for path, module in copy.named_modules():
        for name, child in module._modules.items():
            if child is not None and child not in before:
                again = _slot(model, path, name) is not None
                if not again or any(True for _ in child.parameters()):
                    return _told(model, path, module, name, child, again)
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in before and _slot(model, path, name) is None:
                return _told(model, path, module, name, parameter, False)
    return None


def _slot(model: nn.Module, path: str, name: str) -> object:
    """What the model itself has at this name."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        return None
    return module._modules.get(name) if name in module._modules else module._parameters.get(name)


def _told(model: nn.Module, path: str, module: nn.Module, name: str, made: object, again: bool) -> str:
    where = f"module {path!r} ({type(module).__name__})" if path else type(model).__name__
    line = _line_of_assignment(type(module), name)
    return f"{where} makes {name!r} ({type(made).__name__}) while it runs{line}. {_REMEDY[again]}"


def _line_of_assignment(cls: type, name: str) -> str:
    """Where a method other than ``__init__`` sets the attribute; the start of ``forward`` if none does so by name."""
    methods = [
        (method, function)
        for owner in cls.__mro__
        for method, function in vars(owner).items()
        if isinstance(function, types.FunctionType) and method != "__init__"
    ]
    for _, function in methods:
        code = function.__code__
        for instruction in dis.get_instructions(code) if name in code.co_names else ():
            if instruction.opname == "STORE_ATTR" and instruction.argval == name and instruction.positions is not None:
                return _at(function, instruction.positions.lineno)
    forward = next((function for method, function in methods if method == "forward"), None)
    return "" if forward is None else _at(forward, forward.__code__.co_firstlineno)


def _at(function: types.FunctionType, line: int | None) -> str:
    return f" at {function.__code__.co_filename}:{line} (in {function.__qualname__})"

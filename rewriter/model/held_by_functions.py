"""What the functions of a model reach beside it: the network of a perceptual loss, the class weights of a loss.

It is no part of the model: its functions close over it, name it as a global, have it as a default argument, or are
methods of an object that holds it. It takes part when the model runs.
"""

from __future__ import annotations

import contextlib
import functools
import types
import weakref
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from rewriter.model.mutable_state import MutableState


@contextlib.contextmanager
def held_modules_kept(model: nn.Module, functions: Iterable[types.FunctionType]) -> Iterator[None]:
    """Preserve buffers, modes and gradients of the modules that ``functions``, and methods kept in ``model``, reach."""
    own = {id(module) for module in model.modules()}
    roots = [found for found in held(model, functions) if isinstance(found, nn.Module)]
    modules = {id(module): module for root in roots for module in root.modules() if id(module) not in own}
    state = MutableState()
    modes = [(module, module.training) for module in modules.values()]
    gradients = [(parameter, parameter.grad) for root in roots for parameter in root.parameters()]
    for module in modules.values():
        for buffer in module._buffers.values():
            state.note(buffer)
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        yield
    finally:
        state.restore()
        for parameter, gradient in gradients:
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode


def held_tensors(model: nn.Module, functions: Iterable[types.FunctionType]) -> Iterator[torch.Tensor]:
    """The tensors that ``functions``, and methods kept in ``model``, reach, also in modules that these reach."""
    for found in held(model, functions):
        if isinstance(found, nn.Module):
            yield from (*found.parameters(), *found.buffers())
        else:
            yield found


def held(model: nn.Module, functions: Iterable[types.FunctionType]) -> Iterator[nn.Module | torch.Tensor]:
    """The modules, outermost ones only, and tensors that functions of ``model`` reach and that are no part of it."""
    modules = list(model.modules())
    own = set(map(id, (*modules, *model.parameters(), *model.buffers())))
    kept = (value for module in modules for value in vars(module).values() if callable(value))
    pending, seen = [*functions, *kept], own
    while pending:
        value = pending.pop()
        if id(value) in seen or type(value) in weakref.ProxyTypes:  # one that is dead answers no question
            continue
        seen.add(id(value))
        if isinstance(value, (nn.Module, torch.Tensor)):
            yield value
        elif isinstance(value, types.FunctionType):
            pending += (cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType())
            pending += (*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
            named = (value.__globals__.get(name) for name in _names(value.__code__))
            pending += (found for found in named if isinstance(found, (nn.Module, torch.Tensor)))
        elif isinstance(value, types.MethodType):
            pending += (value.__func__, *getattr(value.__self__, "__dict__", {}).values())
        elif isinstance(value, functools.partial):
            pending += (value.func, *value.args, *value.keywords.values())
        elif isinstance(value, (list, tuple)):
            pending += value
        elif isinstance(value, dict):
            pending += value.values()


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> frozenset[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return frozenset(code.co_names).union(*map(_names, inner))

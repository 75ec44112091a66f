"""A structural copy of a model that can be run without touching the model, its memory or its state."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import operator
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rewriter import hooks

_ATOMIC = (
    type(None), bool, int, float, complex, str, bytes, type, range,
    types.BuiltinFunctionType, torch.dtype, torch.device, torch.Size,
)  # fmt: skip


def skeleton(model: nn.Module, twin: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of ``model`` whose tensors are ``twin(tensor)``: same classes, attributes, flags and sharing.

    Of the hooks only those that the library of its classes put there itself are copied.

    Much cheaper than ``deepcopy`` and works where that fails: what cannot be copied is shared with the original.

    Args:
        model: any module; it is only read.
        twin: makes the stand-in of a parameter, buffer or plain tensor attribute. Called once for each tensor.
    """
    return _copy_module(model, {}, twin)


def meta_twin(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, strides and type without memory."""
    with torch._C.DisableTorchFunction():
        if tensor.layout is torch.strided and type(tensor) in (torch.Tensor, nn.Parameter):
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        else:  # for a tensor on meta this is decomposed in Python, and twenty times slower
            empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def shared_twin(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory: for a skeleton that is edited and never run itself, only skeletons of it."""
    own = tensor.detach()
    return nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own


def _copy_module(model: nn.Module, memo: dict[int, Any], twin: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    modules = [module for module in model.modules() if id(module) not in memo]
    memo.update((id(module), _blank(type(module))) for module in modules)
    libraries = hooks.libraries_of(model)
    for module in modules:
        state = memo[id(module)].__dict__
        for name, value in module.__dict__.items():
            if name in hooks.REGISTRIES:
                state[name] = type(value)()
            elif name == "_modules":
                state[name] = {key: memo.get(id(child)) for key, child in value.items()}
            elif name in ("_parameters", "_buffers"):
                state[name] = {key: _twin_of(tensor, memo, twin) for key, tensor in value.items()}
            else:
                state[name] = _copy(value, memo, twin)
        _copy_own_hooks(module, state, libraries, memo, twin)
    copy_of_model: nn.Module = memo[id(model)]
    return copy_of_model


def _blank(cls: type[nn.Module]) -> nn.Module:
    """An object of exactly this class; ``fx.GraphModule.__new__`` would make one of a new class, without a forward."""
    return object.__new__(cls) if isinstance(cls.__new__, types.FunctionType) else cls.__new__(cls)


def _copy_own_hooks(
    module: nn.Module,
    state: dict[str, Any],
    libraries: frozenset[str | None],
    memo: dict[int, Any],
    twin: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    kept: set[int] = set()
    for name in hooks.FORWARD:
        for key, hook in module.__dict__[name].items():
            if hooks.is_of(hook, libraries):
                state[name][key] = _copy(hook, memo, twin)
                kept.add(key)
    for name in hooks.FORWARD_OPTIONS if kept else ():
        state[name].update((key, value) for key, value in module.__dict__[name].items() if key in kept)


def _twin_of(tensor: torch.Tensor | None, memo: dict[int, Any], twin: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    if tensor is None:
        return None
    if id(tensor) not in memo:
        memo[id(tensor)] = twin(tensor)
    return memo[id(tensor)]


def _copy(value: Any, memo: dict[int, Any], twin: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Copy an attribute; containers are rebuilt so that caches filled while tracing do not reach the model."""
    if isinstance(value, _ATOMIC):
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, torch.Tensor):
        return _twin_of(value, memo, twin)
    kind = type(value)
    if kind in (list, set):
        memo[id(value)] = kind(_copy(item, memo, twin) for item in value)
    elif kind is tuple:
        items = tuple(_copy(item, memo, twin) for item in value)
        memo[id(value)] = value if all(map(operator.is_, items, value)) else items
    elif kind in (dict, collections.OrderedDict):
        memo[id(value)] = kind((key, _copy(item, memo, twin)) for key, item in value.items())
    elif kind is types.MethodType:
        return types.MethodType(_copy(value.__func__, memo, twin), _copy(value.__self__, memo, twin))
    elif kind is types.FunctionType:
        return _copy_function(value, memo, twin)
    elif kind is functools.partial:
        args, keywords = _copy(value.args, memo, twin), _copy(value.keywords, memo, twin)
        memo[id(value)] = functools.partial(_copy(value.func, memo, twin), *args, **keywords)
    elif isinstance(value, nn.Module):  # one that is not registered
        return _copy_module(value, memo, twin)
    else:
        try:
            with torch._C.DisableTorchFunction():  # a default device would be that of half of what deepcopy makes
                return copy.deepcopy(value, memo)
        except Exception:  # locks, process groups, graph tensors: the skeleton shares what cannot be copied
            memo[id(value)] = value
    return memo[id(value)]


def _copy_function(
    function: types.FunctionType, memo: dict[int, Any], twin: Callable[[torch.Tensor], torch.Tensor]
) -> types.FunctionType:
    """The function over copies of what it closes over and of its defaults; itself if there is nothing to copy."""
    if not (function.__closure__ or function.__defaults__ or function.__kwdefaults__):
        return function
    closure = function.__closure__ or ()
    cells = tuple(memo.setdefault(id(cell), types.CellType()) for cell in closure)
    rebuilt = types.FunctionType(function.__code__, function.__globals__, function.__name__, closure=cells)
    memo[id(function)] = rebuilt  # it may close over itself
    unchanged = True

    def copied(value: Any) -> Any:
        nonlocal unchanged
        result = _copy(value, memo, twin)
        unchanged &= result is value or result is rebuilt
        return result

    for original, cell in zip(closure, cells, strict=True):
        with contextlib.suppress(ValueError):  # a name that has no value yet
            cell.cell_contents = copied(original.cell_contents)
    if function.__defaults__:
        rebuilt.__defaults__ = tuple(copied(value) for value in function.__defaults__)
    if function.__kwdefaults__:
        rebuilt.__kwdefaults__ = {name: copied(value) for name, value in function.__kwdefaults__.items()}
    if unchanged:
        memo[id(function)] = function
    else:
        rebuilt.__dict__.update(function.__dict__)
    result: types.FunctionType = memo[id(function)]
    return result

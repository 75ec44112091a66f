"""A structural copy of a model that can be run without touching the model, its memory or its state."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_ATOMIC = (
    type(None), bool, int, float, complex, str, bytes, type, range,
    types.FunctionType, types.BuiltinFunctionType, torch.dtype, torch.device, torch.Size,
)  # fmt: skip

_HOOKS = (
    "_backward_hooks", "_backward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
)  # fmt: skip


def skeleton(model: nn.Module, twin: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of ``model`` whose tensors are ``twin(tensor)``: same classes, attributes, flags and sharing, no hooks.

    Much cheaper than ``deepcopy`` and works where that fails: what cannot be copied is shared with the original.

    Args:
        model: any module; it is only read.
        twin: makes the stand-in of a parameter, buffer or plain tensor attribute. Called once for each tensor.
    """
    modules = list(model.modules())
    memo: dict[int, Any] = {id(module): type(module).__new__(type(module)) for module in modules}
    for module in modules:
        state = memo[id(module)].__dict__
        for name, value in module.__dict__.items():
            if name in _HOOKS:
                state[name] = type(value)()
            elif name == "_modules":
                state[name] = {key: memo.get(id(child)) for key, child in value.items()}
            elif name in ("_parameters", "_buffers"):
                state[name] = {key: _twin_of(tensor, memo, twin) for key, tensor in value.items()}
            else:
                state[name] = _copy(value, memo, twin)
    copy_of_model: nn.Module = memo[id(model)]
    return copy_of_model


def meta_twin(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, strides and type without memory."""
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


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
        memo[id(value)] = tuple(_copy(item, memo, twin) for item in value)
    elif kind is dict:
        memo[id(value)] = {key: _copy(item, memo, twin) for key, item in value.items()}
    elif kind is types.MethodType:
        return types.MethodType(value.__func__, _copy(value.__self__, memo, twin))
    else:
        try:
            return copy.deepcopy(value, memo)
        except Exception:  # locks, process groups, graph tensors: the skeleton shares what cannot be copied
            memo[id(value)] = value
    return memo[id(value)]

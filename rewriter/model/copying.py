"""A copy of a model with its own parameters, which refers to nothing of the original model."""

from __future__ import annotations

import copy
import functools
import types
import weakref
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rewriter.errors import ModelError
from rewriter.model.copier import Copier
from rewriter.model.hooks import REGISTRIES
from rewriter.model.reach import reachable, slots_of

Model = TypeVar("Model", bound=nn.Module)
"""A model; functions return the class that they were given."""

_STRUCTURE = frozenset({
    tuple, list, dict, set, frozenset, functools.partial, weakref.ReferenceType,
    types.CellType, types.FunctionType, weakref.ProxyType, weakref.CallableProxyType,
})  # fmt: skip

WITHOUT = "Remove the attribute, and set it again afterwards."
"""The remedy if nothing can be done in place."""

INPLACE = "Give inplace=True, which copies nothing, or remove the attribute."


def copy_model(model: Model, remedy: str = INPLACE) -> Model:
    """A ``deepcopy`` for models that run: functions, methods and weak references to the model refer to the copy.

    Tensors cached during a forward pass, which plain ``deepcopy`` refuses, are copied too. What cannot be copied
    (locks, files, process groups) and what belongs to the process (loggers, threads, device streams) is shared if it
    holds no tensor and no module. What a hook's function closes over is shared unless it belongs to the model: a list
    that it appends to stays the user's.

    Args:
        model: any module; it is only read.
        remedy: what an error recommends.

    Raises:
        ModelError: an attribute cannot be copied and holds a tensor or module, or a class refuses to be copied.
    """
    copier = _ModelCopier(model, remedy)
    with _DetachedCopies():
        result: Model = copier.copy(model)
    copier.check_apart(result)
    return result


class _ModelCopier(Copier):
    def __init__(self, model: nn.Module, remedy: str) -> None:
        super().__init__(model)
        self.remedy = remedy
        self._in_hooks = False

    def copy_tensor(self, tensor: torch.Tensor) -> Any:
        try:
            return copy.deepcopy(tensor, self.memo)
        except Exception as error:
            registered = (*self.model.named_parameters(), *self.model.named_buffers())
            name = next((name for name, other in registered if other is tensor), None)
            place = self.place if name is None else (self.model, name)
            raise self.refusal(place, f"cannot be copied: {type(error).__name__}: {error}") from error

    def copy_module(self, module: nn.Module) -> Any:
        place, in_hooks = self.place, self._in_hooks
        try:
            own = getattr(type(module), "__deepcopy__", None)
            result = self.rebuilt(module, module.__reduce_ex__(4)) if own is None else own(module, self.memo)
        except ModelError:
            raise
        except Exception as error:
            raise self._refused(module, f"{type(error).__name__}: {error}") from error
        for name in slots_of(type(module)):  # torch's __getstate__ leaves these out
            if hasattr(module, name) and not hasattr(result, name):
                object.__setattr__(result, name, self.copy(getattr(module, name)))
        if own is not None and self.leads_to_model(result):
            raise self._refused(module, "what its __deepcopy__ makes holds parts of the model")
        self.place, self._in_hooks = place, in_hooks
        return result

    def copy_state(self, value: Any, state: Any) -> Any:
        if not isinstance(value, nn.Module) or type(state) is not dict:
            return super().copy_state(value, state)
        result = {}
        for name, content in state.items():
            self.place, self._in_hooks = (value, name), name in REGISTRIES
            result[name] = self.copy(content)
        return result

    def is_rebuilt(self, function: types.FunctionType) -> bool:
        return self._is_concerned(function)

    def copy_held(self, value: Any) -> Any:
        return self.copy(value) if self._is_concerned(value) else value

    def copy_referent(self, value: Any) -> Any:
        return self.copy(value) if id(value) in self.memo or self.is_held(value) else value

    def may_share(self, value: Any) -> bool:
        return not any(issubclass(type(found), (nn.Module, torch.Tensor)) for found in reachable([value], weakly=True))

    def _is_concerned(self, value: Any) -> bool:
        """Whether what a function holds belongs to the model; objects that hooks report to never do."""
        if not self._in_hooks:
            return self.leads_to_model(value)
        found = reachable([value], weakly=True, through=lambda kind: kind in _STRUCTURE)
        return any(id(item) in self.parts for item in found)

    def _refused(self, module: nn.Module, why: str) -> ModelError:
        return self.refusal((module, ""), f"cannot be copied ({type(module).__name__}): {why}")


class _DetachedCopies(TorchFunctionMode):
    def __torch_function__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            args = (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))

"""A structural copy of a model that can be run without touching the model, its memory or its state."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rewriter.errors import ModelError
from rewriter.model import hooks
from rewriter.model.copier import ATOMIC, Copier
from rewriter.model.reach import slots_of


def skeleton(model: nn.Module, twin: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    """A copy of ``model`` whose tensors are ``twin(tensor)``, with the same classes, attributes, flags and sharing.

    Hooks are copied only if the library of the module's class registered them itself.

    Much cheaper than ``deepcopy``, and works where that fails: what cannot be copied is shared with the original unless
    it refers to a part of it. Functions, bound methods and weak references that do are rebuilt over the copy.

    Args:
        model: any module; it is only read.
        twin: makes the replacement of a parameter, buffer or plain tensor attribute. Called once for each tensor.

    Raises:
        ModelError: an attribute that cannot be copied holds a module, parameter or buffer of the model.
    """
    copier = _SkeletonCopier(model, twin)
    result: nn.Module = copier.copy(model)
    copier.check_apart(result)
    return result


def meta_twin(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape, strides and type without data."""
    with torch._C.DisableTorchFunction():
        if tensor.layout is torch.strided and type(tensor) in (torch.Tensor, nn.Parameter):
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        else:  # for a meta tensor empty_strided is decomposed in Python, and twenty times slower
            empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def shared_twin(tensor: torch.Tensor) -> torch.Tensor:
    """The same memory: for a skeleton that is edited but never run, only copied into other skeletons."""
    own = tensor.detach()
    return nn.Parameter(own, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else own


class _SkeletonCopier(Copier):
    remedy = "Running the copy would run the model itself: remove the attribute, and set it again after the rewrite."

    def __init__(self, model: nn.Module, twin: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__(model)
        self._twin = twin

    def copy_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        try:
            return self._twin(tensor)
        except (NotImplementedError, RuntimeError) as error:  # a class that supports few operations (torchao's)
            if type(tensor) in (torch.Tensor, nn.Parameter):
                raise
            registered = (*self.model.named_parameters(), *self.model.named_buffers())
            name = next((name for name, other in registered if other is tensor), "a tensor")
            raise ModelError(
                f"{name} of {type(self.model).__name__} is a {type(tensor).__name__}, of which no plain tensor can be "
                f"made ({type(error).__name__}). Rewrite before the model is quantized or its tensors are wrapped."
            ) from error

    def copy_module(self, module: nn.Module) -> nn.Module:
        """Copied with all modules below it, so that references to one of them find it in the memo."""
        modules = [part for part in module.modules() if id(part) not in self.memo]
        self.memo.update((id(part), _blank(type(part))) for part in modules)
        libraries = hooks.libraries_of(module)
        for part in modules:
            self._fill(part, self.memo[id(part)].__dict__, libraries)
        copy_of_module: nn.Module = self.memo[id(module)]
        return copy_of_module

    def is_rebuilt(self, function: types.FunctionType) -> bool:
        return True

    def copy_held(self, value: Any) -> Any:
        return self.copy(value)

    def copy_referent(self, value: Any) -> Any:
        own = isinstance(value, (nn.Module, torch.Tensor)) or id(value) in self.memo or self.is_held(value)
        return self.copy(value) if own else value

    def may_share(self, value: Any) -> bool:
        return not self.leads_to_model(value)

    def copy_object(self, value: Any) -> Any:
        with torch._C.DisableTorchFunction():  # a default device would apply to some of what is copied
            return super().copy_object(value)

    def _fill(self, module: nn.Module, state: dict[str, Any], libraries: frozenset[str | None]) -> None:
        memo = self.memo
        for name, value in module.__dict__.items():
            if type(value) in ATOMIC:
                state[name] = value
            elif name in hooks.REGISTRIES:
                state[name] = type(value)()
            elif name == "_modules":
                state[name] = {key: memo.get(id(child)) for key, child in value.items()}
            elif name in ("_parameters", "_buffers"):
                state[name] = {key: None if tensor is None else self.copy(tensor) for key, tensor in value.items()}
            else:
                self.place = (module, name)
                state[name] = self.copy(value)
        for name in slots_of(type(module)):
            if hasattr(module, name):
                self.place = (module, name)
                object.__setattr__(memo[id(module)], name, self.copy(getattr(module, name)))
        self._copy_own_hooks(module, state, libraries)

    def _copy_own_hooks(self, module: nn.Module, state: dict[str, Any], libraries: frozenset[str | None]) -> None:
        kept: set[int] = set()
        for name in hooks.FORWARD:
            for key, hook in module.__dict__[name].items():
                if hooks.is_of(hook, libraries):
                    self.place = (module, name)
                    state[name][key] = self.copy(hook)
                    kept.add(key)
        for name in hooks.FORWARD_OPTIONS if kept else ():
            state[name].update((key, value) for key, value in module.__dict__[name].items() if key in kept)


def _blank(cls: type[nn.Module]) -> nn.Module:
    """An object of exactly this class; ``fx.GraphModule.__new__`` would derive a new class, without a forward."""
    return object.__new__(cls) if isinstance(cls.__new__, types.FunctionType) else cls.__new__(cls)

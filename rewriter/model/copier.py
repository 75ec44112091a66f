"""Deep copies of the objects that models consist of, in which references to a part become references to its copy.

``copy.deepcopy`` shares functions and weak references: a ``forward`` that closes over a module, or is a partial over a
weak reference to it, would keep computing with the original's modules.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import types
import weakref
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn

from rewriter.errors import ModelError
from rewriter.model.copy_rules import RULES, copy_reference
from rewriter.model.reach import reachable
from rewriter.model.resources import is_of_everybody, is_resource

ATOMIC = frozenset({
    type(None), bool, int, float, complex, str, bytes, type, range, slice, type(Ellipsis), type(NotImplemented),
    types.CodeType, types.ModuleType, torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format,
})  # fmt: skip
"""Types whose objects contain nothing that could be copied."""

_ATOMIC_BASES = (type, str, int, float, bytes, enum.Enum, types.ModuleType)
_OF_PYTHON = (copyreg.__newobj__, copyreg.__newobj_ex__)  # type: ignore[attr-defined]
_ABSENT = object()


class Copier(ABC):
    """Copies one model; subclasses decide what to do with tensors, modules and functions.

    Attributes:
        memo: copies by the ``id`` of the original, in the form that ``__deepcopy__`` takes.
        place: the module and the attribute that are being copied, for messages.
    """

    remedy: str
    """What messages recommend for an object that cannot be copied."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.memo: dict[int, Any] = {}
        self.place: tuple[nn.Module, str] = (model, "")
        self._originals: list[Any] = []  # nothing else may hold them; kept so that no id is reused
        self._handed_on: list[tuple[tuple[nn.Module, str], Any, str]] = []
        self._copied_by_themselves: list[tuple[tuple[nn.Module, str], Any]] = []

    @abstractmethod
    def copy_tensor(self, tensor: torch.Tensor) -> Any:
        """Copy a tensor that is met for the first time."""

    @abstractmethod
    def copy_module(self, module: nn.Module) -> Any:
        """Copy a module that is met for the first time; it is put into the memo before its contents."""

    @abstractmethod
    def is_rebuilt(self, function: types.FunctionType) -> bool:
        """Whether a function that holds something is rebuilt over copies of that."""

    @abstractmethod
    def copy_held(self, value: Any) -> Any:
        """Copy what a function closes over or has as a default; return it unchanged if it is to be shared."""

    @abstractmethod
    def copy_referent(self, value: Any) -> Any:
        """Copy what only a weak reference leads to; return it unchanged if it is to be shared."""

    @abstractmethod
    def may_share(self, value: Any) -> bool:
        """Whether a copy may hold ``value`` itself."""

    def copy(self, value: Any) -> Any:
        """Copy ``value``, once; what cannot be copied is shared.

        Raises:
            ModelError: something that cannot be copied holds a part of the model.
        """
        kind = type(value)
        if kind in ATOMIC:
            return value
        found = self.memo.get(id(value), _ABSENT)
        if found is not _ABSENT:
            return found
        copier = RULES.get(kind)
        result = copier(self, value) if copier is not None else self._copy_other(value)
        return self.memo.setdefault(id(value), result)

    def check_apart(self, result: nn.Module) -> None:
        """Refuse a copy that contains modules of the original, or holds parts of it through something shared.

        Args:
            result: the copy of the model.

        Raises:
            ModelError: names the module or attribute.
        """
        kept = next((path for path, module in result.named_modules() if id(module) in self._modules), None)
        if kept is not None:
            why = "its class hands out the same object again (a __new__ or __reduce__ with a cache)"
            place = next((module for path, module in self.model.named_modules() if path == kept), self.model)
            raise self.refusal((place, ""), f"cannot be copied: {why}")
        for place, value, why in self._handed_on:
            if not self.may_share(value):
                found = f"{why} ({_kind_of(value)})"
                raise self.refusal(place, f"cannot be copied: {found}, and it holds a tensor or module")
        for place, value in self._copied_by_themselves:
            if self.leads_to_model(value):
                raise self.refusal(
                    place, f"cannot be copied: the copy that {_kind_of(value)} makes holds parts of the model itself"
                )

    def refusal(self, place: tuple[nn.Module, str], why: str) -> ModelError:
        """The error that names an attribute or a module."""
        module, name = place
        path = next((path for path, other in self.model.named_modules() if other is module), "")
        part = f"{'attribute' if name else 'module'} {f'{path}.{name}'.strip('.')!r} of " if path or name else ""
        return ModelError(f"{part}{type(self.model).__name__} {why}. {self.remedy}")

    def leads_to_model(self, value: Any) -> bool:
        """Whether ``value`` is or holds a module, parameter or buffer of the model, if only by a weak reference."""
        return any(id(found) in self.parts for found in reachable([value], weakly=True))

    def rebuilt(self, value: Any, reduced: Any) -> Any:
        """Rebuild the object that ``__reduce_ex__`` described, over copies of its parts."""
        if isinstance(reduced, str):  # the name of a global
            return value
        self._originals.append(reduced)
        make, args, state, items, entries = (*reduced, None, None, None)[:5]
        result = make(*[self.copy(argument) for argument in args])
        filled = make in _OF_PYTHON and isinstance(value, nn.Module) and "_modules" in getattr(result, "__dict__", ())
        if result is value or id(result) in self.parts or filled:
            # ``__new__`` has a cache; continuing would change what it holds, possibly another model
            why = f"{type(value).__name__} hands out the same object again"
            if not isinstance(value, nn.Module):
                return self._hand_on(value, why)
            raise self.refusal((value, ""), f"cannot be copied: {why}")
        self.memo[id(value)] = result
        if state is not None:
            own = self.copy_state(value, state)
            if hasattr(result, "__setstate__"):
                result.__setstate__(own)
            else:
                attributes, slots = own if isinstance(own, tuple) and len(own) == 2 else (own, None)
                if attributes:
                    result.__dict__.update(attributes)
                for name, content in (slots or {}).items():
                    setattr(result, name, content)
        for item in items or ():
            result.append(self.copy(item))
        for key, item in entries or ():
            result[self.copy(key)] = self.copy(item)
        return result

    def copy_state(self, value: Any, state: Any) -> Any:
        """Copy what ``__reduce_ex__`` returned as the state of ``value``."""
        return self.copy(state)

    def _copy_other(self, value: Any) -> Any:
        kind = type(value)
        if issubclass(kind, _ATOMIC_BASES) or is_of_everybody(value) or _is_our_data(kind):
            return value
        if issubclass(kind, torch.Tensor):
            return self.copy_tensor(value)
        if issubclass(kind, nn.Module):
            return self.copy_module(value)
        if issubclass(kind, weakref.ReferenceType):
            return copy_reference(self, value)
        if is_resource(value):
            return self._hand_on(value, "it belongs to the process")
        return self.copy_object(value)

    def copy_object(self, value: Any) -> Any:
        """Copy an object by the protocol of ``copy.deepcopy``; return it unchanged if it refuses."""
        kind = type(value)
        try:
            own = getattr(kind, "__deepcopy__", None)
            if own is not None:
                result = own(value, self.memo)
                self._copied_by_themselves.append((self.place, result))
                return result
            reduce = copyreg.dispatch_table.get(kind)
            reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
            result = self.rebuilt(value, reduced)
            if reduced[0] not in _OF_PYTHON:  # a function of the user's, which may return something it holds
                self._copied_by_themselves.append((self.place, result))
            return result
        except ModelError:
            raise
        except Exception as error:  # files, generators, process groups
            self.memo.pop(id(value), None)
            return self._hand_on(value, f"{type(error).__name__}: {error}")

    def _hand_on(self, value: Any, why: str) -> Any:
        self._handed_on.append((self.place, value, why))
        return value

    def is_held(self, value: Any) -> bool:
        """Whether the model holds ``value`` by other than weak references."""
        return id(value) in self._modules or id(value) in self._held

    @functools.cached_property
    def parts(self) -> frozenset[int]:
        """Identities of the model's modules, parameters and buffers."""
        return self._modules.union(map(id, (*self.model.parameters(), *self.model.buffers())))

    @functools.cached_property
    def _modules(self) -> frozenset[int]:
        return frozenset(map(id, self.model.modules()))

    @functools.cached_property
    def _held(self) -> frozenset[int]:
        return frozenset(map(id, reachable([self.model])))


def _is_our_data(kind: type) -> bool:
    """Whether these are plans, edits or records of rewrites, which are immutable."""
    parameters = getattr(kind, "__dataclass_params__", None)
    return parameters is not None and parameters.frozen and kind.__module__.partition(".")[0] == __package__


def _kind_of(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"

"""How objects of each built-in type are copied: containers, functions, weak references."""

from __future__ import annotations

import collections
import contextlib
import dis
import functools
import operator
import types
import weakref
from collections.abc import Callable, Mapping
from threading import local
from typing import Any, Protocol

import torch

from rewriter.model.reach import referent
from rewriter.model.resources import is_of_everybody

_UNBOUND = (type(None), types.ModuleType)


class Copying(Protocol):
    """What the rules require of a copier; see :class:`rewriter.model.copier.Copier`."""

    memo: dict[int, Any]

    def copy(self, value: Any) -> Any: ...
    def copy_held(self, value: Any) -> Any: ...
    def copy_referent(self, value: Any) -> Any: ...
    def is_held(self, value: Any) -> bool: ...
    def is_rebuilt(self, function: types.FunctionType) -> bool: ...


def _copy_list(copier: Copying, value: list[Any]) -> list[Any]:
    result: list[Any] = []
    copier.memo[id(value)] = result
    result.extend([copier.copy(item) for item in value])
    return result


def _copy_set(copier: Copying, value: Any) -> Any:
    return type(value)([copier.copy(item) for item in value])


def _copy_tuple(copier: Copying, value: tuple[Any, ...]) -> tuple[Any, ...]:
    items = tuple([copier.copy(item) for item in value])
    return value if all(map(operator.is_, items, value)) else items


def _copy_dict(copier: Copying, value: dict[Any, Any]) -> dict[Any, Any]:
    result: dict[Any, Any] = type(value)()
    copier.memo[id(value)] = result
    result.update({copier.copy(key): copier.copy(item) for key, item in value.items()})
    return result


def _copy_default_dict(copier: Copying, value: collections.defaultdict[Any, Any]) -> collections.defaultdict[Any, Any]:
    result: collections.defaultdict[Any, Any] = collections.defaultdict(copier.copy(value.default_factory))
    copier.memo[id(value)] = result
    result.update({copier.copy(key): copier.copy(item) for key, item in value.items()})
    return result


def _copy_method(copier: Copying, value: types.MethodType) -> types.MethodType:
    return types.MethodType(copier.copy(value.__func__), copier.copy(value.__self__))


def _copy_builtin(copier: Copying, value: Any) -> Any:
    """A method of a built-in object, such as ``items.append``."""
    if isinstance(value.__self__, _UNBOUND):
        return value
    own = copier.copy(value.__self__)
    return value if own is value.__self__ else getattr(own, value.__name__)


def _copy_partial(copier: Copying, value: functools.partial[Any]) -> functools.partial[Any]:
    arguments, keywords = copier.copy(value.args), copier.copy(value.keywords)
    result: functools.partial[Any] = functools.partial(copier.copy(value.func), *arguments, **keywords)
    copier.memo[id(value)] = result
    result.__dict__.update(copier.copy(value.__dict__))
    return result


def _copy_cached(copier: Copying, value: Any) -> Any:
    """A function under ``lru_cache``; the copy's cache starts empty."""
    wrapped = copier.copy(value.__wrapped__)
    return value if wrapped is value.__wrapped__ else functools.lru_cache(**value.cache_parameters())(wrapped)


def _copy_function(copier: Copying, function: types.FunctionType) -> types.FunctionType:
    """Rebuild the function over copies of its closure and defaults; return it unchanged if there is nothing to copy."""
    held = function.__closure__ or function.__defaults__ or function.__kwdefaults__ or function.__dict__
    if not held or not copier.is_rebuilt(function):
        return function
    closure = function.__closure__ or ()
    cells = tuple(copier.memo.setdefault(id(cell), types.CellType()) for cell in closure)
    result = types.FunctionType(function.__code__, function.__globals__, function.__name__, closure=cells)
    copier.memo[id(function)] = result  # it may close over itself
    unchanged = not _rebinds(function.__code__)

    def copied(value: Any) -> Any:
        nonlocal unchanged
        own = copier.copy_held(value)
        unchanged &= own is value or own is result
        return own

    for original, cell in zip(closure, cells, strict=True):
        with contextlib.suppress(ValueError):  # an unbound name
            cell.cell_contents = copied(original.cell_contents)
    if function.__defaults__:
        result.__defaults__ = tuple([copied(value) for value in function.__defaults__])
    if function.__kwdefaults__:
        result.__kwdefaults__ = {name: copied(value) for name, value in function.__kwdefaults__.items()}
    attributes = {name: copied(value) for name, value in function.__dict__.items()}
    if unchanged:
        copier.memo[id(function)] = function
        return function
    result.__qualname__, result.__module__ = function.__qualname__, function.__module__
    result.__doc__, result.__annotations__ = function.__doc__, function.__annotations__
    result.__dict__.update(attributes)
    return result


@functools.lru_cache(maxsize=256)
def _rebinds(code: types.CodeType) -> bool:
    """Whether a function, or one inside it, assigns to a name of an enclosing function (``nonlocal``)."""
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    own = code.co_freevars and any(
        instruction.opname == "STORE_DEREF" and instruction.argval in code.co_freevars
        for instruction in dis.get_instructions(code)
    )
    return bool(own) or any(map(_rebinds, inner))


class _HoldingReference(weakref.ReferenceType[Any]):
    """A weak reference that keeps its referent alive: nothing else holds the copy of something outside the model."""

    __slots__ = ("held",)

    held: Any


def copy_reference(copier: Copying, value: Any) -> Any:
    """Copy a weak reference, also of a subclass, to refer to the copy of its referent."""
    target = referent(value)
    if target is None:
        return value
    if isinstance(value, weakref.WeakMethod):
        method: Any = value()
        own = copier.copy_referent(target)
        return value if own is target else weakref.WeakMethod(types.MethodType(method.__func__, own))
    own = copier.copy_referent(target)
    if own is target:
        return value
    held = copier.is_held(target) or type(value) is not weakref.ReferenceType
    callback = copier.copy(value.__callback__)
    if held:
        return type(value)(own, callback)
    holding = _HoldingReference(own, callback)
    holding.held = own
    return holding


def _copy_proxy(copier: Copying, value: Any) -> Any:
    target = referent(value)
    own = target if target is None else copier.copy_referent(target)
    if own is target:
        return value
    return weakref.proxy(own) if copier.is_held(target) else own


def _copy_weak_set(copier: Copying, value: weakref.WeakSet[Any]) -> weakref.WeakSet[Any]:
    return weakref.WeakSet([copier.copy_referent(item) for item in value])


def _copy_weak_keys(copier: Copying, value: weakref.WeakKeyDictionary[Any, Any]) -> weakref.WeakKeyDictionary[Any, Any]:
    result: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
    copier.memo[id(value)] = result
    result.update({copier.copy_referent(key): copier.copy(item) for key, item in value.items()})
    return result


def _copy_weak_values(
    copier: Copying, value: weakref.WeakValueDictionary[Any, Any]
) -> weakref.WeakValueDictionary[Any, Any]:
    own = {copier.copy(key): copier.copy_referent(item) for key, item in value.items()}
    return weakref.WeakValueDictionary(own)


def _copy_generator(copier: Copying, value: torch.Generator) -> torch.Generator:
    if is_of_everybody(value):
        return value
    result = torch.Generator(value.device)
    result.set_state(value.get_state())
    return result


def _copy_view(copier: Copying, value: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return types.MappingProxyType({copier.copy(key): copier.copy(item) for key, item in value.items()})


def _copy_thread_locals(copier: Copying, value: Any) -> Any:
    """With its contents for this thread."""
    result = type(value)()
    copier.memo[id(value)] = result
    result.__dict__.update(copier.copy(value.__dict__))
    return result


RULES: dict[type, Callable[[Any, Any], Any]] = {
    list: _copy_list,
    set: _copy_set,
    frozenset: _copy_set,
    tuple: _copy_tuple,
    dict: _copy_dict,
    collections.OrderedDict: _copy_dict,
    collections.defaultdict: _copy_default_dict,
    types.FunctionType: _copy_function,
    types.MethodType: _copy_method,
    types.BuiltinFunctionType: _copy_builtin,
    types.MethodWrapperType: _copy_builtin,
    types.MappingProxyType: _copy_view,
    functools.partial: _copy_partial,
    type(functools.lru_cache(lambda: None)): _copy_cached,
    weakref.ReferenceType: copy_reference,
    weakref.WeakMethod: copy_reference,
    weakref.ProxyType: _copy_proxy,
    weakref.CallableProxyType: _copy_proxy,
    weakref.WeakSet: _copy_weak_set,
    weakref.WeakKeyDictionary: _copy_weak_keys,
    weakref.WeakValueDictionary: _copy_weak_values,
    torch.Generator: _copy_generator,
    local: _copy_thread_locals,
}
"""The rule for each type, by the exact type."""

"""The functions that a method's decorators hold, and the same decorators around other functions.

What a class holds under a method's name need not be the function that was written: wrappers hold it in a closure, a
default argument, a ``functools.partial`` or an attribute of a callable object. None of these is modified, since other
classes and other code may use them; they are copied, and only where they lead to the function.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rewriter.errors import SourceError

_WRAPPERS, OBJECTS, _CONTAINERS = LEVELS = range(3)
"""How far to look for a function: in functions and the wrappers of the standard library; in callable objects; in
plain objects and containers. The nearest chain that leads to it is copied, so that what else a decorator holds (a
registry of all functions, say) stays shared.
"""

_LRU_CACHE = type(functools.lru_cache(lambda: None))
_DISPATCHING = functools.singledispatch(lambda value: None).__code__  # type: ignore[attr-defined]
_HEAP_TYPE = 1 << 9
_TABLES = (list, tuple, dict)
_ENDS = (type, types.ModuleType, nn.Module, torch.Tensor)


def undecorated(attribute: Any) -> Iterator[types.FunctionType]:
    """``attribute`` and the functions that its decorators hold, nearest first; none if it is not a method."""
    seen: set[int] = set()
    for level in LEVELS:
        for function in functions_at(attribute, level):
            if id(function) not in seen:
                seen.add(id(function))
                yield function


def functions_at(attribute: Any, level: int) -> Iterator[types.FunctionType]:
    """The functions that :func:`undecorated` finds without looking further than ``level``, outermost first."""
    if _is_method(attribute):
        yield from (value for value in _reachable(attribute, level) if _is_plain(value))


def redecorate(attribute: Any, old: types.FunctionType, new: types.FunctionType) -> Any:
    """``attribute`` with ``old`` replaced by ``new``, wherever its decorators hold it.

    Raises:
        SourceError: a decorator is an object that cannot be copied.
    """
    return Redecorator({old: new}).replaced(attribute)


class Redecorator:
    """Puts other functions into decorators; a decorator shared by several methods is copied once.

    What does not lead to a replaced function is shared with the original, so that decorators keep their state.

    Attributes:
        replaced_objects: by identity, everything that was replaced, with its replacement.
    """

    def __init__(self, functions: Mapping[types.FunctionType, types.FunctionType]) -> None:
        self.replaced_objects: dict[int, tuple[Any, Any]] = {id(old): (old, new) for old, new in functions.items()}
        self._functions = {id(old) for old in functions}

    def replaced(self, attribute: Any, furthest: int = _CONTAINERS) -> Any:
        """``attribute`` with the functions replaced; itself if it holds none of them.

        Raises:
            SourceError: a decorator is an object that cannot be copied.
        """
        for level in LEVELS[: furthest + 1]:
            if any(id(function) in self._functions for function in functions_at(attribute, level)):
                leading = _leading(attribute, level, self._functions)
                return _Copy(leading, self.replaced_objects).of(attribute)
        return attribute

    def replaced_alias(self, attribute: Any) -> Any:
        """Like :meth:`replaced`, for an attribute that may be unrelated to the function: its data is not searched."""
        return self.replaced(attribute, _CONTAINERS if type(attribute) in _TABLES else OBJECTS)


class _Copy:
    """One copy of a decorated function, along what leads to the replaced functions."""

    def __init__(self, leading: set[int], done: dict[int, tuple[Any, Any]]) -> None:
        self._leading = leading
        self._done = done

    def of(self, value: Any) -> Any:
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) not in self._leading:
            return value
        kind = type(value)
        if _is_dispatching(value):
            return self._note(value, self._dispatching(value))
        if kind is types.FunctionType:
            return self._function(value)
        if kind is list:
            return self._filled(value, [], lambda new: new.extend(map(self.of, value)))
        if kind is dict:
            return self._filled(value, {}, lambda new: new.update((key, self.of(item)) for key, item in value.items()))
        rebuild = _REBUILT.get(kind)
        return self._note(value, rebuild(value, self.of)) if rebuild is not None else self._object(value)

    def _note(self, value: Any, new: Any) -> Any:
        self._done[id(value)] = value, new
        return new

    def _filled(self, value: Any, new: Any, fill: Callable[[Any], None]) -> Any:
        self._note(value, new)  # it may contain itself
        fill(new)
        return new

    def _function(self, function: types.FunctionType) -> types.FunctionType:
        closure = function.__closure__ or ()
        leads = [id(content) in self._leading for content in _cell_contents(function)]
        cells = [types.CellType() if lead else cell for cell, lead in zip(closure, leads, strict=True)]
        copy = types.FunctionType(function.__code__, function.__globals__, function.__name__, closure=tuple(cells))
        self._note(function, copy)
        for cell, original, lead in zip(cells, closure, leads, strict=True):
            if lead:
                cell.cell_contents = self.of(original.cell_contents)
        functools.update_wrapper(copy, function)
        copy.__dict__.clear()
        copy.__dict__.update((name, self.of(value)) for name, value in function.__dict__.items())
        copy.__defaults__ = function.__defaults__ and tuple(map(self.of, function.__defaults__))
        keywords = function.__kwdefaults__
        copy.__kwdefaults__ = keywords and {name: self.of(value) for name, value in keywords.items()}
        return copy

    def _dispatching(self, function: Any) -> Any:
        """Rebuild a ``functools.singledispatch`` function: it caches the implementation for each type."""
        registry = dict(function.registry)
        new = functools.singledispatch(self.of(registry.pop(object)))
        for cls, implementation in registry.items():
            new.register(cls, self.of(implementation))
        return new

    def _object(self, value: Any) -> Any:
        """Copy a callable object shallowly, with what leads to the functions replaced."""
        cls = type(value)
        try:
            new = object.__new__(cls)
        except TypeError as error:
            raise SourceError(
                f"{cls.__module__}.{cls.__qualname__}, which decorates the method, cannot be copied ({error}), so the "
                "function in it cannot be edited for one module alone"
            ) from error
        self._note(value, new)
        for slot in slots_of(cls):
            if is_set(slot, value):
                slot.__set__(new, self.of(slot.__get__(value)))
        for name, content in getattr(value, "__dict__", {}).items():
            new.__dict__[name] = self.of(content)
        return new


_Replace = Callable[[Any], Any]


def _partial(value: functools.partial[Any], of: _Replace) -> Any:
    new = functools.partial(of(value.func), *map(of, value.args), **{k: of(v) for k, v in value.keywords.items()})
    new.__dict__.update((name, of(content)) for name, content in value.__dict__.items())
    return new


def _partialmethod(value: functools.partialmethod[Any], of: _Replace) -> Any:
    keywords = {name: of(content) for name, content in value.keywords.items()}
    return functools.partialmethod(of(value.func), *map(of, value.args), **keywords)


def _cached_property(value: functools.cached_property[Any], of: _Replace) -> Any:
    new = functools.cached_property(of(value.func))
    new.attrname = value.attrname
    return new


def _dispatching_method(value: Any, of: _Replace) -> Any:
    new = functools.singledispatchmethod(of(value.func))
    new.dispatcher = of(value.dispatcher)
    return new


def _cached(value: Any, of: _Replace) -> Any:
    return functools.lru_cache(**value.cache_parameters())(of(value.__wrapped__))


_REBUILT: dict[type, Callable[[Any, _Replace], Any]] = {
    types.MethodType: lambda value, of: types.MethodType(of(value.__func__), of(value.__self__)),
    staticmethod: lambda value, of: staticmethod(of(value.__func__)),
    classmethod: lambda value, of: classmethod(of(value.__func__)),
    property: lambda value, of: property(of(value.fget), of(value.fset), of(value.fdel), value.__doc__),
    functools.partial: _partial,
    functools.partialmethod: _partialmethod,
    functools.cached_property: _cached_property,
    functools.singledispatchmethod: _dispatching_method,
    _LRU_CACHE: _cached,
    tuple: lambda value, of: tuple(map(of, value)),
}

_PARTS: dict[type, Callable[[Any], Iterable[Any]]] = {
    types.MethodType: lambda value: (value.__func__, value.__self__),
    staticmethod: lambda value: (value.__func__,),
    classmethod: lambda value: (value.__func__,),
    property: lambda value: (value.fget, value.fset, value.fdel),
    functools.partial: lambda value: (value.func, *value.args, *value.keywords.values()),
    functools.partialmethod: lambda value: (value.func, *value.args, *value.keywords.values()),
    functools.cached_property: lambda value: (value.func,),
    functools.singledispatchmethod: lambda value: (value.func, value.dispatcher),
    _LRU_CACHE: lambda value: (value.__wrapped__,),
}


def _is_plain(value: Any) -> bool:
    return type(value) is types.FunctionType and not _is_dispatching(value)


def _is_dispatching(value: Any) -> bool:
    return type(value) is types.FunctionType and value.__code__ is _DISPATCHING


def _is_method(attribute: Any) -> bool:
    """Whether what a class holds under a name may be a decorated function, or a table of such functions."""
    known = type(attribute) in (types.FunctionType, *_TABLES) or type(attribute) in _PARTS
    return known or _is_callable_object(attribute)


def _is_callable_object(value: Any) -> bool:
    """Whether it is a callable object, or a descriptor, of a class written in Python."""
    return is_plain_object(value) and (callable(value) or hasattr(type(value), "__get__"))


def is_plain_object(value: Any) -> bool:
    """Whether it is an object of a class written in Python, and not a class, module or tensor."""
    written_in_python = bool(type(value).__flags__ & _HEAP_TYPE) or type(value) is types.SimpleNamespace
    return written_in_python and not isinstance(value, _ENDS)


def _parts(value: Any, level: int) -> Iterable[Any]:
    """The contents of ``value`` that may hold a function that it calls."""
    kind = type(value)
    if _is_dispatching(value):
        return tuple(value.registry.values())
    if kind is types.FunctionType:
        further = value.__dict__.values() if level >= _CONTAINERS else ()
        return (*_cell_contents(value), *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values(), *further)
    if kind in _PARTS:
        return _PARTS[kind](value)
    if level >= _CONTAINERS and kind in _TABLES:
        return tuple(value.values() if kind is dict else value)
    if (level >= _CONTAINERS and is_plain_object(value)) or (level >= OBJECTS and _is_callable_object(value)):
        slots = (slot.__get__(value) for slot in slots_of(kind) if is_set(slot, value))
        return (*slots, *getattr(value, "__dict__", {}).values())
    return ()


def _reachable(value: Any, level: int) -> Iterator[Any]:
    pending, seen = [value], set()
    while pending:
        found = pending.pop(0)
        if id(found) not in seen:
            seen.add(id(found))
            yield found
            pending += _parts(found, level)


def _leading(value: Any, level: int, targets: set[int]) -> set[int]:
    """Identities of everything that leads from ``value`` to one of ``targets``, including these."""
    holders: dict[int, list[int]] = {}
    pending, seen = [value], set()
    while pending:
        found = pending.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        parts = [*_parts(found, level), *(found.__dict__.values() if type(found) is types.FunctionType else ())]
        for part in parts:
            holders.setdefault(id(part), []).append(id(found))
        pending += parts
    leading: set[int] = set()
    back = list(targets & seen)
    while back:
        identity = back.pop()
        if identity not in leading:
            leading.add(identity)
            back += holders.get(identity, ())
    return leading


def slots_of(cls: type) -> list[types.MemberDescriptorType]:
    """The attributes that ``__slots__`` of ``cls`` and its bases declare."""
    declaring = [base for base in cls.__mro__ if "__slots__" in base.__dict__ and base.__flags__ & _HEAP_TYPE]
    members = (member for base in declaring for member in base.__dict__.values())
    return [member for member in members if isinstance(member, types.MemberDescriptorType)]


def is_set(slot: types.MemberDescriptorType, value: Any) -> bool:
    """Whether the attribute ``slot`` of ``value`` has a value."""
    try:
        slot.__get__(value)
    except AttributeError:
        return False
    return True


def _cell_contents(function: types.FunctionType) -> list[Any]:
    contents = []
    for cell in function.__closure__ or ():
        try:
            contents.append(cell.cell_contents)
        except ValueError:  # an empty cell
            contents.append(None)
    return contents

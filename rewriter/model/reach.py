"""What an object holds, directly and indirectly, as far as Python's garbage collector sees."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import fx


def reachable(
    roots: Iterable[Any], *, weakly: bool = False, through: Callable[[type], bool] | None = None
) -> Iterator[Any]:
    """Every object that the ``roots`` hold, including themselves, each once.

    Classes, code modules and the globals of functions are not entered: they are shared by everything.

    Args:
        roots: where to start.
        weakly: whether to follow weak references too.
        through: whether objects of a type are entered; all are if not given.
    """
    seen: set[int] = set()
    pending = list(roots)
    while pending:
        value = pending.pop()
        kind = type(value)
        if id(value) in seen or issubclass(kind, (type, types.ModuleType, types.CodeType)):
            continue
        seen.add(id(value))
        if kind is dict and "__builtins__" in value:  # the globals of a code module
            continue
        yield value
        if through is not None and not through(kind):
            continue
        if issubclass(kind, fx.Node):  # the metadata of an operation never runs
            seen.add(id(value.meta))
        if kind is types.FunctionType:
            pending += [value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__]
        elif weakly and issubclass(kind, (weakref.ReferenceType, *weakref.ProxyTypes)):
            pending.append(referent(value))
        else:
            pending += gc.get_referents(value)


def referent(reference: Any) -> Any:
    """The referent of a weak reference or proxy; None if it no longer exists."""
    if issubclass(type(reference), weakref.ReferenceType):
        return weakref.ReferenceType.__call__(reference)  # a WeakMethod creates a new bound method
    try:
        return reference.__repr__.__self__  # a proxy forwards every attribute
    except ReferenceError:
        return None


def slots_of(kind: type) -> Iterator[str]:
    """Names of the attributes that objects of this type hold outside their ``__dict__``."""
    for cls in kind.__mro__:
        if "__slots__" in vars(cls):
            yield from (name for name, item in vars(cls).items() if type(item) is types.MemberDescriptorType)

"""What is around a model: attributes of its classes, globals of their files, and what functions hold."""

from __future__ import annotations

import array
import collections
import contextlib
import functools
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rewriter.model.generators import is_generator
from rewriter.model.held_by_functions import held_modules_kept
from rewriter.model.iterators import is_iterator
from rewriter.model.mutable_state import MutableState
from rewriter.model.resources import is_of_everybody

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes, tuple})
_CONTAINERS = frozenset(
    {dict, list, set, collections.OrderedDict, collections.defaultdict, collections.deque, bytearray, array.array}
)
_OF_NOBODY = frozenset({"torch", "rewriter", "passes", *sys.stdlib_module_names}) - {"__main__"}


@contextlib.contextmanager
def surroundings_kept(model: nn.Module) -> Iterator[None]:
    """Preserve the data, caches and generators in the model's classes, their functions and the globals beside them.

    Of modules that these functions reach beside the model, buffers, modes and gradients are preserved.
    """
    classes = _classes(model)
    functions = functions_of_classes(model)
    methods, namespaces = list(functions), _files(functions)
    functions += _functions(item for namespace in namespaces for item in namespace.values() if callable(item))
    owners = [(cls, _data(vars(cls))) for cls in classes]
    files = [(namespace, _data(namespace)) for namespace in namespaces]
    state = MutableState(objects=False)
    for _, held in (*owners, *files):
        state.note(*(value for value in held.values() if type(value) not in _SCALARS))
    for function in functions:
        state.note_function(function)
    for method in methods:
        state.note_closure(method)
    for cls, held in owners:
        for name, value in held.items():
            if is_iterator(value):
                setattr(cls, name, state.stand_in(value))
    for namespace, held in files:
        namespace.update((name, state.stand_in(value)) for name, value in held.items() if is_iterator(value))
    try:
        with held_modules_kept(model, methods):
            yield
    finally:
        state.restore()
        for cls, held in owners:
            _put_back(cls, held)
        for namespace, held in files:
            namespace.update(held)


def functions_of_classes(model: nn.Module) -> list[types.FunctionType]:
    """The functions in the user's classes of a model, including those in descriptors and inside decorators."""
    return _functions(item for cls in _classes(model) for item in vars(cls).values())


def _classes(model: nn.Module) -> set[type]:
    kinds = {type(module) for module in model.modules()}
    return {cls for kind in kinds for cls in kind.__mro__ if _is_of_somebody(cls.__module__)}


def _data(namespace: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in namespace.items() if _is_data(value) and not name.startswith("__")}


def _is_data(value: Any) -> bool:
    kind = type(value)
    if kind in _SCALARS or kind in _CONTAINERS or issubclass(kind, torch.Tensor) or is_iterator(value):
        return True
    return not issubclass(kind, type) and is_generator(value) and not is_of_everybody(value)


def _put_back(cls: type, held: dict[str, Any]) -> None:
    now = _data(vars(cls))
    for name, value in held.items():
        if now.get(name) is not value:
            setattr(cls, name, value)
    for name in now:
        if name not in held:
            delattr(cls, name)


def _functions(items: Iterable[Any]) -> list[types.FunctionType]:
    """The functions among ``items``, including those in descriptors and inside decorators."""
    found: dict[int, types.FunctionType] = {}
    pending = list(items)
    while pending:
        item = pending.pop()
        kind = type(item)
        if kind is types.FunctionType:
            if id(item) not in found and _is_of_somebody(item.__module__):
                found[id(item)] = item
                pending += [_content(cell) for cell in item.__closure__ or ()]
        elif kind is property:
            pending += [item.fget, item.fset, item.fdel]
        elif kind in (staticmethod, classmethod):
            pending.append(item.__func__)
        elif kind in (functools.cached_property, functools.partial, functools.partialmethod):
            pending.append(item.func)
    return list(found.values())


def _content(cell: types.CellType) -> Any:
    return cell.cell_contents if cell != types.CellType() else None


def _is_of_somebody(module: str | None) -> bool:
    return str(module).partition(".")[0] not in _OF_NOBODY


def _files(functions: Iterable[types.FunctionType]) -> list[dict[str, Any]]:
    """The globals of ``functions``."""
    found = {id(function.__globals__): function.__globals__ for function in functions}
    return [names for names in found.values() if _is_of_somebody(names.get("__name__"))]

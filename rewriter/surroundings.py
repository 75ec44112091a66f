"""What lies around a model: attributes of its classes and their methods, and globals of the files that these are in."""

from __future__ import annotations

import collections
import contextlib
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rewriter.generators import is_generator
from rewriter.mutable_state import MutableState
from rewriter.resources import is_of_everybody

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes, tuple})
_CONTAINERS = frozenset({dict, list, set, collections.OrderedDict, collections.defaultdict, collections.deque})
_OF_NOBODY = frozenset({"torch", "rewriter", "passes", *sys.stdlib_module_names}) - {"__main__"}


@contextlib.contextmanager
def surroundings_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards classes of the model and globals beside them hold the data, caches and generators that they held."""
    classes = {
        cls
        for kind in {type(module) for module in model.modules()}
        for cls in kind.__mro__
        if cls.__module__.partition(".")[0] not in _OF_NOBODY
    }
    owners = [(cls, _data(vars(cls))) for cls in classes]
    files = [(namespace, _data(namespace)) for namespace in _files(classes)]
    state = MutableState(objects=False)
    for _, held in (*owners, *files):
        state.note(*(value for value in held.values() if type(value) not in _SCALARS))
    for function in _functions(classes):
        state.note(function.__defaults__, function.__kwdefaults__, function.__dict__)
    try:
        yield
    finally:
        state.restore()
        for cls, held in owners:
            _put_back(cls, held)
        for namespace, held in files:
            namespace.update(held)


def _data(namespace: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in namespace.items() if _is_data(value) and not name.startswith("__")}


def _is_data(value: Any) -> bool:
    kind = type(value)
    if kind in _SCALARS or kind in _CONTAINERS or issubclass(kind, torch.Tensor):
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


def _functions(classes: Iterable[type]) -> list[types.FunctionType]:
    """The methods of ``classes``: their default arguments and attributes are state that outlives a call."""
    return [item for cls in classes for item in vars(cls).values() if type(item) is types.FunctionType]


def _files(classes: Iterable[type]) -> list[dict[str, Any]]:
    """The globals of the methods of ``classes``."""
    found = {id(function.__globals__): function.__globals__ for function in _functions(classes)}
    return [names for names in found.values() if str(names.get("__name__")).partition(".")[0] not in _OF_NOBODY]

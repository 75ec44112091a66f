"""Methods that modules hold as values: ``self.run = self._pre``, a table of bound methods, a partial over one.

Such a value holds the function that the class had when the value was made. If that function has been edited, the value
is rebuilt over the edited function of the same object, so that it calls what the object's class has now. Containers are
changed in place, immutable values (tuples, partials) are rebuilt; methods of other objects are not touched.
"""

from __future__ import annotations

import collections
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rewriter.edit.decorators import is_plain_object, is_set, slots_of
from rewriter.edit.placing import replaced_in

_ATOMIC = frozenset({type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Tensor})
_DICTIONARIES = (dict, collections.OrderedDict, collections.defaultdict)
_REGISTERED = ("_parameters", "_buffers", "_modules")
_OWN_PREFIX = "_rewriter_"


class FunctionOfReceiver:
    """A plain function of a class that a module holds and calls with a module: ``self.run = type(self)._pre``.

    It calls what that module's class has in place of the function. It is pickled as the original function.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, module: Any, /, *args: Any, **kwargs: Any) -> Any:
        return _in_place_of(self.function, type(module))(module, *args, **kwargs)


Replaced = Mapping[nn.Module, Mapping[int, Any]]
"""By module and by the identity of a function that its class had, the present replacement."""


def rebind(model: nn.Module, edited: Replaced) -> list[Callable[[], None]]:
    """Make every method of the modules ``edited`` that ``model`` holds as a value call the present function.

    Returns:
        The steps that restore exactly what was there, to be run in reverse order.
    """
    if not any(edited.values()):
        return []
    rebinding = _Rebinding(edited)
    rebinding.inside(model)
    return rebinding.steps_back


def replaced_by_class(module: nn.Module) -> dict[int, Any]:
    """What the generated class of ``module`` replaced in the class that it was derived from."""
    return {id(old): new for old, new in replaced_in(type(module))}


def restored_with_class(module: nn.Module) -> dict[int, Any]:
    """The replacements when ``module`` returns to the class that its generated class was derived from."""
    return {id(new): old for old, new in replaced_in(type(module))}


def follows_its_module(value: Any, module: nn.Module) -> bool:
    """Whether ``value`` is a bound method of ``module``, or a partial over one or over ``module`` itself."""
    if isinstance(value, types.MethodType):
        return value.__self__ is module
    if isinstance(value, functools.partial):
        return any(part is module or follows_its_module(part, module) for part in (value.func, *value.args))
    return False


def hides(module: nn.Module, method: str) -> bool:
    """Whether a ``forward`` set on ``module`` itself hides its edited ``method``, or leads somewhere else."""
    own = module.__dict__.get("forward")
    if own is None or getattr(type(module), "forward", None) in _wrapped_by(own, module):
        return False
    other = isinstance(own, types.MethodType) and own.__func__ is not getattr(type(module), "forward", None)
    return not follows_its_module(own, module) or (method == "forward" and other)


def wrapped_edit(module: nn.Module) -> bool:
    """Whether a ``forward`` set on ``module`` itself wraps one that its generated class has replaced."""
    own = module.__dict__.get("forward")
    if isinstance(own, functools.partial):  # it looks up what it calls on the module, where it is rebuilt
        return False
    within = list(_wrapped_by(own, module))[1:]
    return any(new in within for _, new in replaced_in(type(module)))


def _wrapped_by(value: Any, module: nn.Module) -> Iterator[Any]:
    """The functions from ``value`` inwards, following ``functools.wraps``, while they belong to ``module``."""
    while value is not None:
        if isinstance(value, types.MethodType):
            if value.__self__ is not module:
                return
            value = value.__func__
        yield value
        value = getattr(value, "__wrapped__", None)


class _Rebinding:
    """One traversal of what modules hold."""

    def __init__(self, edited: Replaced) -> None:
        self.steps_back: list[Callable[[], None]] = []
        self._edited = {id(module): functions for module, functions in edited.items()}
        self._seen: dict[int, Any] = {}  # by id; the objects are kept alive so that no id is reused

    def inside(self, holder: Any) -> None:
        """Rebind the methods that an object holds."""
        if id(holder) in self._seen:
            return
        self._seen[id(holder)] = holder
        functions, is_module = self._edited.get(id(holder), {}), isinstance(holder, nn.Module)
        attributes = getattr(holder, "__dict__", None)
        for name, value in list(attributes.items()) if type(attributes) is dict else ():
            if type(value) in _ATOMIC or (type(value) in _DICTIONARIES and not value):
                continue
            if is_module and (name in _REGISTERED or name.startswith(_OWN_PREFIX)):
                continue
            new = self._function(value, functions) if functions else value
            self._put(attributes, name, value, self._of(value) if new is value else new)
        for slot in slots_of(type(holder)):
            if is_set(slot, holder) and (new := self._of(value := slot.__get__(holder))) is not value:
                slot.__set__(holder, new)
                self.steps_back.append(functools.partial(slot.__set__, holder, value))
        for module in holder._modules.values() if is_module else ():
            if module is not None:
                self.inside(module)

    def _put(self, container: Any, key: Any, value: Any, new: Any) -> None:
        if new is not value:
            container[key] = new
            self.steps_back.append(functools.partial(container.__setitem__, key, value))

    def _function(self, value: Any, functions: Mapping[int, Any]) -> Any:
        """Replace a plain function of a class that its module holds; its first argument decides what is called."""
        if id(value) in functions and callable(value):
            return FunctionOfReceiver(value)
        if type(value) is FunctionOfReceiver and any(new is value.function for new in functions.values()):
            return value.function
        return value

    def _of(self, value: Any) -> Any:
        kind = type(value)
        if kind in _ATOMIC:
            return value
        if kind is types.MethodType:
            return self._method(value)
        if kind is functools.partial:
            return self._partial(value)
        if isinstance(value, tuple):
            return self._tuple(value)
        if id(value) not in self._seen:
            if kind is types.FunctionType:
                self._closure(value)
            elif kind in (list, collections.deque):
                self._items(value, enumerate(value))
            elif kind in _DICTIONARIES:
                self._items(value, list(value.items()))
            elif kind is set:
                self._set(value)
            elif is_plain_object(value) or isinstance(value, nn.Module):
                self.inside(value)
        return value

    def _items(self, container: Any, items: Iterator[tuple[Any, Any]] | list[tuple[Any, Any]]) -> None:
        self._seen[id(container)] = container
        for key, value in list(items):
            self._put(container, key, value, self._of(value))

    def _set(self, container: set[Any]) -> None:
        self._seen[id(container)] = container
        new = {self._of(value) for value in container}
        if any(isinstance(value, types.MethodType) for value in container) and new != container:
            self.steps_back += [functools.partial(container.update, set(container)), container.clear]
            container.clear()
            container.update(new)

    def _closure(self, function: types.FunctionType) -> None:
        self._seen[id(function)] = function
        for cell in function.__closure__ or ():
            if cell != types.CellType():
                value = cell.cell_contents
                new = self._of(value)
                if new is not value:
                    cell.cell_contents = new
                    self.steps_back.append(functools.partial(setattr, cell, "cell_contents", value))

    def _method(self, value: types.MethodType) -> Any:
        new = self._edited.get(id(value.__self__), {}).get(id(value.__func__))
        if new is not None:
            return types.MethodType(new, value.__self__)
        self._of(value.__self__)
        return value

    def _partial(self, value: functools.partial[Any]) -> Any:
        functions = self._edited.get(id(value.args[0]), {}) if value.args else {}
        function = self._function(value.func, functions)
        function = self._of(value.func) if function is value.func else function
        args = tuple(map(self._of, value.args))
        keywords = {name: self._of(item) for name, item in value.keywords.items()}
        attributes = {name: self._of(item) for name, item in value.__dict__.items()}
        parts = zip(
            (function, *args, *keywords.values(), *attributes.values()),
            (value.func, *value.args, *value.keywords.values(), *value.__dict__.values()),
            strict=True,
        )
        if all(new is old for new, old in parts):
            return value
        rebuilt = functools.partial(function, *args, **keywords)
        rebuilt.__dict__.update(attributes)
        return rebuilt

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        items = tuple(map(self._of, value))
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return tuple.__new__(type(value), items)


def _in_place_of(function: Any, cls: type) -> Any:
    for generated in reversed(cls.__mro__):
        for old, new in replaced_in(generated):
            if old is function:
                function = new
                break
    return function

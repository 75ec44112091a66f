"""Record the contents of the objects that a model holds, to restore them later.

Iterators cannot be rewound. So copies take their places when they are recorded, and the originals return untouched.
"""

from __future__ import annotations

import array
import collections
import enum
import functools
import operator
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from rewriter.model.copier import ATOMIC
from rewriter.model.generators import is_generator, way_back
from rewriter.model.hooks import REGISTRIES
from rewriter.model.iterators import copy_of_iterator, is_iterator
from rewriter.model.reach import referent, slots_of
from rewriter.model.resources import is_of_everybody, is_resource

_ATOMIC_BASES = (type, types.ModuleType, str, int, float, bytes, enum.Enum)
_NOT_OF_A_MODEL = ("torch.utils.data.", "torch.optim.", "rewriter.")
_PLAIN_TENSORS = (torch.Tensor, nn.Parameter, nn.Buffer if hasattr(nn, "Buffer") else torch.Tensor)


class MutableState:
    """Records the contents of objects, and restores them.

    Args:
        objects: whether to enter objects that are not containers, by their attributes.
    """

    def __init__(self, *, objects: bool = True) -> None:
        self._objects = objects
        self._seen: dict[int, Any] = {}
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._ways_back: list[Callable[[], None]] = []
        self._tensors: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._values: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._copies: dict[int, Any] = {}

    def note_place(self, tensor: torch.Tensor) -> None:
        """Record the memory, shape and flag of a tensor, but not its values."""
        if id(tensor) not in self._seen:
            self._seen[id(tensor)] = tensor
            self._tensors.append((tensor, tensor.detach()))
            if tensor.is_leaf and tensor.is_floating_point():
                self._ways_back.append(functools.partial(_set_flag, tensor, tensor.requires_grad))

    def note_values(self, tensor: torch.Tensor) -> None:
        """Record a tensor with its values, which takes its memory once more."""
        self.note_place(tensor)
        self._values.append((tensor, tensor.detach().clone()))

    def note(self, *values: Any) -> None:
        """Record the contents of ``values`` recursively."""
        pending = list(values)
        while pending:
            value = pending.pop()
            kind = type(value)
            if (
                kind in ATOMIC
                or kind is types.BuiltinFunctionType
                or id(value) in self._seen
                or issubclass(kind, _ATOMIC_BASES)
            ):
                continue
            if issubclass(kind, torch.Tensor):
                self.note_values(value)
                continue
            self._seen[id(value)] = value
            pending += self._content(value, kind)

    def note_function(self, function: types.FunctionType) -> None:
        """Record the default arguments and attributes of a function, which outlive a call."""
        defaults, by_name = function.__defaults__, function.__kwdefaults__
        self._ways_back.append(functools.partial(_refill_function, function, defaults, by_name))
        if defaults is not None and any(map(is_iterator, defaults)):
            function.__defaults__ = tuple(map(self.stand_in, defaults))
        self.note(defaults, by_name, function.__dict__)

    def note_closure(self, function: types.FunctionType) -> None:
        """Record what a function closes over."""
        self.note(*self._note_closure(function))

    def _note_closure(self, function: types.FunctionType) -> list[Any]:
        cells = function.__closure__ or ()
        self._ways_back += [functools.partial(_refill_cell, cell, _held(cell)) for cell in cells]
        held = [content for cell in cells for content in _held(cell)]
        for cell in cells:
            _refill_cell(cell, tuple(map(self.stand_in, _held(cell))))
        return held

    def stand_in(self, value: Any) -> Any:
        """What takes the place of ``value`` until it is restored: a copy of an iterator, otherwise ``value``."""
        if not is_iterator(value):
            return value
        self._seen[id(value)] = value
        return copy_of_iterator(value, self._copies)

    def restore(self) -> None:
        """Restore everything that has changed."""
        for dictionary, entries in self._dicts:
            if not _same(dictionary, entries):
                _refill(dictionary, entries)
        for step in self._ways_back:
            step()
        with torch.no_grad():
            for tensor, place in self._tensors:
                if type(tensor) in _PLAIN_TENSORS and _moved(tensor, place):
                    tensor.data = place
            for tensor, values in self._values:
                if tensor.device.type != "meta" and not torch.equal(tensor, values):
                    tensor.copy_(values)

    def _content(self, value: Any, kind: type) -> Iterable[Any]:
        """The contents of ``value``, which are recorded if they can change."""
        if issubclass(kind, dict):
            self._note_dict(value)
            return [*value, *value.values()]
        if issubclass(kind, (list, set, collections.deque)):
            items = list(value)
            self._ways_back.append(functools.partial(_refill_items, value, items))
            if not issubclass(kind, set) and any(map(is_iterator, items)):
                _refill_items(value, list(map(self.stand_in, items)))
            return items
        if issubclass(kind, (tuple, frozenset)):
            return tuple(value)
        if issubclass(kind, (bytearray, array.array)):
            self._ways_back.append(functools.partial(value.__setitem__, slice(None), value[:]))
            return ()
        if is_generator(value):
            self._ways_back.append(way_back(value))
            return ()
        if _is_array(value):
            self._ways_back.append(functools.partial(_refill_array, value, value.copy()))
            return ()
        if not self._objects:
            return ()
        if kind is types.FunctionType:
            held = self._note_closure(value)
            self.note_function(value)
            return held
        if kind is types.MethodType:
            return value.__func__, value.__self__
        if issubclass(kind, functools.partial):
            return value.func, value.args, value.keywords, value.__dict__
        if issubclass(kind, (weakref.ReferenceType, *weakref.ProxyTypes)):
            target = referent(value)
            return [target] if issubclass(type(target), nn.Module) else ()
        if issubclass(kind, nn.Module):
            return self._of_module(value)
        return self._of_object(value, kind)

    def _of_module(self, module: nn.Module) -> Iterable[Any]:
        attributes = module.__dict__
        self._note_dict(attributes)
        for name in REGISTRIES:  # a hook's function is the user's; the set of hooks is the model's
            registry = attributes.get(name)
            if registry is not None and id(registry) not in self._seen:
                self._seen[id(registry)] = registry
                self._dicts.append((registry, dict(registry)))
        return [*attributes.values(), *self._of_slots(module, type(module))]

    def _note_dict(self, dictionary: dict[Any, Any]) -> None:
        entries = dict(dictionary)
        self._dicts.append((dictionary, entries))
        if any(map(is_iterator, entries.values())):
            _refill(dictionary, {key: self.stand_in(value) for key, value in entries.items()})

    def _of_object(self, value: Any, kind: type) -> Iterable[Any]:
        if (
            (kind is not threading.local and is_resource(value))
            or is_of_everybody(value)
            or f"{kind.__module__}.".startswith(_NOT_OF_A_MODEL)
        ):
            return ()
        found = self._of_slots(value, kind)
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict:
            found.append(attributes)
        return found

    def _of_slots(self, value: Any, kind: type) -> list[Any]:
        filled = {name: getattr(value, name, _EMPTY) for name in slots_of(kind)}
        if not filled:
            return []
        self._ways_back.append(functools.partial(_refill_slots, value, filled))
        _refill_slots(value, {name: self.stand_in(content) for name, content in filled.items()})
        return [content for content in filled.values() if content is not _EMPTY]


_EMPTY = object()


def _same(dictionary: dict[Any, Any], entries: dict[Any, Any]) -> bool:
    return (
        len(dictionary) == len(entries)
        and all(map(operator.is_, dictionary.values(), entries.values()))
        and all(map(operator.is_, dictionary, entries))
    )


def _refill(dictionary: dict[Any, Any], entries: dict[Any, Any]) -> None:
    base = collections.OrderedDict if isinstance(dictionary, collections.OrderedDict) else dict
    base.clear(dictionary)
    for key, value in entries.items():
        base.__setitem__(dictionary, key, value)


def _refill_items(container: Any, items: list[Any]) -> None:
    if len(container) == len(items) and all(map(operator.is_, container, items)):
        return
    container.clear()
    (container.update if isinstance(container, set) else container.extend)(items)


def _held(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # an unbound name
        return ()


def _refill_cell(cell: types.CellType, held: tuple[Any, ...]) -> None:
    if held:
        cell.cell_contents = held[0]


def _refill_function(
    function: types.FunctionType, defaults: tuple[Any, ...] | None, by_name: dict[str, Any] | None
) -> None:
    if function.__defaults__ is not defaults:
        function.__defaults__ = defaults
    if function.__kwdefaults__ is not by_name:
        function.__kwdefaults__ = by_name  # type: ignore[assignment]


def _refill_slots(value: Any, filled: dict[str, Any]) -> None:
    for name, content in filled.items():
        now = getattr(value, name, _EMPTY)
        if now is content:
            continue
        if content is _EMPTY:
            object.__delattr__(value, name)
        else:
            object.__setattr__(value, name, content)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    if numpy is None or not issubclass(type(value), numpy.ndarray) or issubclass(type(value), numpy.memmap):
        return False
    return bool(value.flags.writeable) and not value.dtype.hasobject


def _refill_array(target: Any, values: Any) -> None:
    if target.shape != values.shape:
        target.shape = values.shape
    if target.tobytes() != values.tobytes():
        target[...] = values


def _set_flag(tensor: torch.Tensor, requires_grad: bool) -> None:
    if tensor.requires_grad != requires_grad:
        tensor.requires_grad_(requires_grad)


def _moved(tensor: torch.Tensor, place: torch.Tensor) -> bool:
    """Whether ``tensor`` has another memory or form than when its alias ``place`` was made."""
    if tensor.shape != place.shape or tensor.dtype != place.dtype or tensor.layout is not place.layout:
        return True
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        return False
    return tensor.data_ptr() != place.data_ptr() or tensor.stride() != place.stride()

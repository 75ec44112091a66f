"""Every tensor and number that an object holds, since a model's output is not always a tensor or a dict.

The search enters containers, mappings, named tuples, registered nodes of ``torch.utils._pytree``, and the attributes of
any other object (``__dict__`` and ``__slots__``: dataclasses, attrs, distributions, detections, outputs of libraries).
No property is read and nothing is called on a user's object. It does not enter modules, functions, classes, iterators
(they would be consumed) or sets (they are unordered).
"""

from __future__ import annotations

import collections
import contextlib
import numbers
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree

_CLOSED = (
    nn.Module, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType,
    types.GeneratorType, types.CodeType, set, frozenset, Iterator, bytes, bytearray, memoryview,
    torch.dtype, torch.device, torch.Generator, torch.optim.Optimizer, torch.layout, torch.memory_format,
)  # fmt: skip

_MOST = 100_000
"""The most objects that are examined: nothing larger is an output of a model."""


@dataclass(frozen=True)
class Content:
    """A value that an object holds.

    Attributes:
        path: the path to it, in Python syntax: ``.logits[0]``; empty for the object itself.
        value: a tensor, a number, a string, or an object that is not entered.
    """

    path: str
    value: Any

    @property
    def comparable(self) -> bool:
        """Whether it is a tensor with values, or a number."""
        if isinstance(self.value, torch.Tensor):
            return not self.value.is_meta
        return isinstance(self.value, numbers.Number)

    @property
    def kind(self) -> str:
        """Its type without its value: type and shape of a tensor, otherwise the type's name."""
        if isinstance(self.value, Unseen):
            return f"from here on at least {self.value.number} values, which are too many to look at"
        if isinstance(self.value, torch.Tensor):
            shape = "[nested]" if self.value.is_nested else list(self.value.shape)
            return f"{str(self.value.dtype).removeprefix('torch.')}{shape}"
        return type(self.value).__name__


@dataclass(frozen=True)
class Unseen:
    """Stands for at least ``number`` values that are not examined because there are too many."""

    number: int


def is_unseen(value: Any) -> bool:
    """Whether a value among the contents of an output may hold tensors that are not examined."""
    return isinstance(value, (set, frozenset, Iterator, Unseen))


def contents(value: Any) -> Iterator[Content]:
    """Everything that ``value`` holds, in the same order for objects of the same structure."""
    seen: dict[int, Any] = {}
    pending = [("", value)]
    while pending and len(seen) < _MOST:
        path, current = pending.pop()
        if _is_array(current):
            yield Content(path, _tensor_of(current))
            continue
        parts = None if isinstance(current, (torch.Tensor, str, numbers.Number, *_CLOSED)) else _parts(current)
        if parts is None:
            yield Content(path, current)
        elif id(current) not in seen:  # it may contain itself, and is entered once
            seen[id(current)] = current
            pending += [(path + step, part) for step, part in reversed(parts)]
    if pending:
        yield Content(pending[-1][0], Unseen(len(pending)))


def tensors_held(value: Any) -> list[torch.Tensor]:
    """The tensors among the :func:`contents` of ``value``."""
    return [content.value for content in contents(value) if isinstance(content.value, torch.Tensor)]


def structure_of(value: Any) -> dict[str, str]:
    """The path and kind of everything in ``value``, without the values."""
    return {content.path: content.kind for content in contents(value)}


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufc"


def _tensor_of(array: Any) -> torch.Tensor:
    """An array as a tensor; arrays with strides or a byte order that torch does not support are copied.

    In a type that torch lacks (``longdouble``), each number becomes two that sum to its value.
    """
    size = array.dtype.itemsize
    if not array.dtype.isnative or any(stride < 0 or stride % size for stride in array.strides):
        array = array.astype(array.dtype.newbyteorder("="), copy=True, order="C")
    try:
        return torch.as_tensor(array)
    except TypeError:
        numpy = sys.modules["numpy"]
        if array.dtype.kind == "c":
            array = numpy.stack([array.real, array.imag], axis=-1)
        rounded = array.astype("float64")
        with numpy.errstate(invalid="ignore"):  # infinity leaves no remainder
            rest = (array - rounded).astype("float64")
        return torch.as_tensor(numpy.stack([rounded, rest], axis=-1))


def _parts(value: Any) -> list[tuple[str, Any]] | None:
    """The parts of ``value``, each with the step to it; None if it is not entered."""
    if value is None:
        return None
    names = getattr(type(value), "_fields", None)
    if isinstance(value, tuple) and names is not None:
        return [(f".{name}", item) for name, item in zip(names, value, strict=False)]
    if isinstance(value, (list, tuple, collections.deque)):
        return [(f"[{index}]", item) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        items = enumerate(dict.items(value) if isinstance(value, dict) else value.items())
        return [(f"[{key!r}]" if isinstance(key, (str, int)) else f"[{i}]", item) for i, (key, item) in items]
    node = _pytree.SUPPORTED_NODES.get(type(value))
    if node is not None:
        return [(f"[{index}]", item) for index, item in enumerate(node.flatten_fn(value)[0])]
    attributes = _attributes(value)
    return [(f".{name}", item) for name, item in attributes.items()] if attributes else None


def _attributes(value: Any) -> dict[str, Any]:
    """The instance attributes of an object, without calling any of its code."""
    found: dict[str, Any] = {}
    for cls in reversed(type(value).__mro__):
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            private = name.startswith("__") and not name.endswith("__")
            mangled = f"_{cls.__name__.lstrip('_')}{name}" if private else name
            descriptor = cls.__dict__.get(mangled)
            if isinstance(descriptor, types.MemberDescriptorType):
                with contextlib.suppress(AttributeError):  # an empty slot
                    found[mangled] = descriptor.__get__(value, type(value))
    with contextlib.suppress(AttributeError):
        found.update(object.__getattribute__(value, "__dict__"))
    return found

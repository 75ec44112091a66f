"""Dataclasses as plain data for JSON, and back, with every type checked.

JSON has no NaN and no infinity: they are written as the texts ``"nan"``, ``"inf"`` and ``"-inf"``.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_NOT_FINITE = ("nan", "inf", "-inf")


def encode(value: Any) -> Any:
    """Dataclasses and mappings as dicts, tuples as lists; everything else as it is."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def decode(kind: type[T], data: Any) -> T:
    """What :func:`encode` made of an object of this dataclass.

    Fields that are not there take their default; unknown ones are refused.

    Raises:
        ValueError: the data do not fit, with the name of the field.
    """
    if not isinstance(data, dict):
        raise ValueError(f"expected an object for {kind.__name__}, found {type(data).__name__}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, kind))}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ValueError(f"{kind.__name__} has no {unknown[0]!r}")
    needed = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING and name not in data
    ]
    if needed:
        raise ValueError(f"{kind.__name__} without {needed[0]!r}")
    return kind(**{name: _value(hints[name], item, f"{kind.__name__}.{name}") for name, item in data.items()})


def _value(hint: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return data
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _value(hint, data, where)
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast(type[Any], hint), data)
    if origin is tuple and isinstance(data, list):
        return tuple(_value(arguments[0], item, where) for item in data)
    if origin is dict and isinstance(data, dict):
        return {key: _value(arguments[1], item, where) for key, item in data.items()}
    if hint is float and isinstance(data, str) and data in _NOT_FINITE:
        return float(data)
    if hint is float and type(data) is int:
        return float(data)
    if isinstance(hint, type) and type(data) is hint:
        return data
    raise ValueError(f"expected {getattr(hint, '__name__', hint)} for {where}, found {data!r}")

"""Convert values to plain data that JSON can hold, and back, checked against the types that classes declare."""

from __future__ import annotations

import dataclasses
import enum
import functools
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

_WORDS = {
    str: "a text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null",
    tuple: "a list", list: "a list", dict: "named values", Mapping: "named values",
}  # fmt: skip


@dataclass(frozen=True)
class Codec:
    """Converts dataclasses to dicts of their fields, enumerations to strings, tuples to lists, and back.

    Attributes:
        kinds: for a base class, its subclasses by their ``kind``, which their data begins with.
        lists: classes that are stored as lists of their fields.
        names: names in the type hints of classes that their modules do not import.
        added_since: fields with defaults that data of earlier versions lacks; all others are required.
    """

    kinds: Mapping[type, Mapping[str, type]] = field(default_factory=dict)
    lists: tuple[type, ...] = ()
    names: Mapping[str, type] = field(default_factory=dict)
    added_since: frozenset[str] = frozenset()
    _hints: dict[type, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.prepare(*self.lists, *(cls for named in self.kinds.values() for cls in named.values()))

    def prepare(self, *classes: type) -> None:
        """Resolve the field types of ``classes``, so that nothing is evaluated while data is read."""
        for cls in classes:
            self._hints[cls] = typing.get_type_hints(cls, localns=dict(self.names))

    def to_plain(self, value: Any) -> Any:
        """Convert ``value`` to what JSON can hold; everything in it must be of these types or plain."""
        cls: Any = type(value)
        if _has_fields(cls):
            values = {name: self.to_plain(getattr(value, name)) for name in _fields(cls)}
            if cls in self.lists:
                return list(values.values())
            return {"kind": value.kind, **values} if self._has_kind(cls) else values
        if isinstance(value, Mapping):
            return {key: self.to_plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.to_plain(item) for item in value]
        return str(value) if isinstance(value, enum.StrEnum) else value

    def from_plain(self, kind: type[T], data: Any, where: str = "") -> T:
        """Rebuild what :meth:`to_plain` was given, of a class, or of a type such as ``dict[str, float]``.

        Raises:
            ValueError: the data does not fit; the message gives the path from ``where`` to what does not.
        """
        return typing.cast(T, self._read(kind, data, where))

    def _read(self, kind: Any, data: Any, where: str) -> Any:
        if kind is Any:
            return data
        origin, of = typing.get_origin(kind) or kind, typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            return self._read_any(of, data, where)
        if self._has_kind(origin):
            return self._read_kind(origin, data, where)
        if origin in self.lists and isinstance(data, list) and len(data) == len(_fields(origin)):
            return self._read_fields(origin, dict(zip(_fields(origin), data, strict=True)), where)
        if _has_fields(origin) and isinstance(data, dict):
            return self._read_fields(origin, data, where)
        if origin in (tuple, list) and isinstance(data, list):
            return self._read_items(origin, of, data, where)
        if issubclass(origin, Mapping) and isinstance(data, dict) and all(isinstance(key, str) for key in data):
            of_values = of[1] if of else Any
            return {key: self._read(of_values, item, f"{where}.{key}") for key, item in data.items()}
        if issubclass(origin, enum.Enum) and data in [member.value for member in origin]:
            return origin(data)
        if origin is float and type(data) in (int, float):
            return float(data)
        if type(data) is origin and origin in (str, int, bool, type(None)):
            return data
        raise _unfit(where, _WORDS.get(origin, f"a {origin.__name__}"), data)

    def _has_kind(self, cls: type) -> bool:
        return any(issubclass(cls, base) for base in self.kinds)

    def _read_any(self, options: tuple[Any, ...], data: Any, where: str) -> Any:
        errors = []
        for option in options:
            try:
                return self._read(option, data, where)
            except ValueError as error:
                errors.append(error)
        raise errors[0]

    def _read_kind(self, base: type, data: Any, where: str) -> Any:
        named = next(found for of, found in self.kinds.items() if issubclass(base, of))
        tag = data.get("kind") if isinstance(data, dict) else None
        cls = named.get(tag) if isinstance(tag, str) else None
        if cls is None or not issubclass(cls, base):
            known = ", ".join(name for name, other in named.items() if issubclass(other, base))
            raise _unfit(where, f"one of the kinds {known}", data)
        return self._read_fields(cls, {name: item for name, item in data.items() if name != "kind"}, where)

    def _read_items(self, origin: type, of: tuple[Any, ...], data: list[Any], where: str) -> Any:
        if origin is list or of[-1] is Ellipsis:
            of = (of[0],) * len(data)
        if len(of) != len(data):
            raise _unfit(where, f"a list of {len(of)}", data)
        return origin(self._read(*pair, f"{where}[{number}]") for number, pair in enumerate(zip(of, data, strict=True)))

    def _read_fields(self, cls: Any, data: dict[str, Any], where: str) -> Any:
        known = _fields(cls)
        for problem, names in (
            ("without", [name for name in known if name not in data and name not in self.added_since]),
            ("with the unknown", [name for name in data if name not in known]),
        ):
            if names:
                raise ValueError(f"{where or cls.__name__}: a {cls.__name__} {problem} {', '.join(map(str, names))}")
        if cls not in self._hints:
            self.prepare(cls)
        hints = self._hints[cls]
        return cls(
            **{name: self._read(hints[name], item, f"{where}.{name}".lstrip(".")) for name, item in data.items()}
        )


def _has_fields(cls: Any) -> bool:
    return dataclasses.is_dataclass(cls)


def _unfit(where: str, expected: str, found: Any) -> ValueError:
    return ValueError(f"{where}: expected {expected}, found {found!r:.80}")


@functools.cache
def _fields(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(cls))


PLAIN = Codec()
"""For classes that need none of these settings."""


def json_value(value: Any, where: str) -> Any:
    """``value`` as it is after a round trip through JSON: tuples become lists.

    Raises:
        TypeError: a plan cannot hold it; the message begins with ``where``.
    """
    if isinstance(value, (list, tuple)):
        return [json_value(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{where}: a plan holds dicts by texts, found the key {name!r}")
        return {name: json_value(item, f"{where}[{name!r}]") for name, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(
        f"{where}: a plan holds numbers, texts, lists and dicts of them, found a {type(value).__qualname__}, {value!r}"
    )

"""Values as plain data and back: what JSON gives is checked against the types that classes declare."""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

from rewriter.plain_data import PLAIN, Codec


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Corner:
    x: int
    y: int


@dataclass(frozen=True)
class Shape:
    kind: ClassVar[str]
    at: Corner


@dataclass(frozen=True)
class Circle(Shape):
    kind: ClassVar[str] = "circle"
    radius: float
    colour: Colour | None = None


@dataclass(frozen=True)
class Group(Shape):
    kind: ClassVar[str] = "group"
    parts: tuple[Shape, ...]
    names: Mapping[str, Any] = field(default_factory=dict)
    spans: list[tuple[int, str]] = field(default_factory=list)


CODEC = Codec({Shape: {"circle": Circle, "group": Group}}, lists=(Corner,), added_since=frozenset({"spans"}))
INNER = Circle(Corner(1, 2), 0.5, Colour.BLUE)
WHOLE = Group(Corner(0, 0), (INNER, Group(Corner(3, 4), ())), {"a": [1, None]}, [(1, "b")])


def test_data_come_back_as_the_values_that_they_were_made_of() -> None:
    data = CODEC.to_plain(WHOLE)
    assert data["parts"][0] == {"kind": "circle", "at": [1, 2], "radius": 0.5, "colour": "blue"}
    assert CODEC.from_plain(Shape, json.loads(json.dumps(data))) == WHOLE
    assert PLAIN.from_plain(dict[str, float], {"a": 1}) == {"a": 1.0}


def test_a_class_of_a_family_takes_no_other_kind() -> None:
    with pytest.raises(ValueError, match="expected one of the kinds group, found"):
        CODEC.from_plain(Group, CODEC.to_plain(INNER))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "square"}, "shape: expected one of the kinds circle, group"),
        ({"kind": ["group"]}, "shape: expected one of the kinds"),
        ({"at": [1]}, r"shape\.at: expected a Corner, found \[1\]"),
        ({"at": [1, True]}, r"shape\.at\.y: expected a whole number, found True"),
        ({"parts": "x"}, r"shape\.parts: expected a list, found 'x'"),
        ({"parts": [{"kind": "circle", "at": [0, 0]}]}, r"shape\.parts\[0\]: a Circle without radius, colour"),
        (
            {"parts": [{"kind": "circle", "at": [0, 0], "radius": "x", "colour": None}]},
            r"shape\.parts\[0\]\.radius: expected a number, found 'x'",
        ),
        (
            {"parts": [{"kind": "circle", "at": [0, 0], "radius": 1, "colour": "green"}]},
            r"shape\.parts\[0\]\.colour: expected a Colour, found 'green'",
        ),
        ({"parts": [{"kind": "group", "at": [0, 0], "parts": []}]}, r"shape\.parts\[0\]: a Group without names"),
        ({"names": []}, r"shape\.names: expected named values, found \[\]"),
        ({"spans": [[1]]}, r"shape\.spans\[0\]: expected a list of 2, found \[1\]"),
        ({"more": 1}, "shape: a Group with the unknown more"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_named_with_the_way_to_it(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        CODEC.from_plain(Shape, {**CODEC.to_plain(WHOLE), **change}, "shape")


def test_nothing_is_changed_on_the_way() -> None:
    data = CODEC.to_plain(WHOLE)
    before = json.dumps(data)
    CODEC.from_plain(Shape, data)
    assert json.dumps(data) == before


def test_what_earlier_versions_did_not_have_has_its_default() -> None:
    data = CODEC.to_plain(Group(Corner(0, 0), ()))
    del data["spans"]
    assert CODEC.from_plain(Shape, data) == Group(Corner(0, 0), ())

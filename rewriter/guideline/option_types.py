"""Check options that were given by name against their type hints."""

from __future__ import annotations

import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rewriter.guideline.base import Pass

_PLAIN = (bool, int, float, str, type(None))


def misfit(cls: type[Pass], options: Mapping[str, Any]) -> str:
    """Describe what does not fit; empty if everything does. Only hints of plain types and literals are checked."""
    try:
        hints = get_type_hints(cls)
    except Exception:  # a hint may refer to a name that is not imported
        return ""
    for name, value in options.items():
        kinds = _kinds(hints.get(name))
        if kinds and not any(_fits(value, kind) for kind in kinds):
            expected = " or ".join(dict.fromkeys(_shown(kind) for kind in kinds))
            return f"option {name}: expected {expected}, found {value!r}"
    return ""


def _kinds(hint: Any) -> list[Any]:
    """The plain types and literal values that a hint allows; empty if it allows anything else."""
    if get_origin(hint) in (Union, types.UnionType):
        of_parts = [_kinds(part) for part in get_args(hint)]
        return [kind for kinds in of_parts for kind in kinds] if all(of_parts) else []
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    return [hint] if hint in _PLAIN else []


def _fits(value: Any, kind: Any) -> bool:
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(kind, type):
        return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
    return bool(value == kind)


def _shown(kind: Any) -> str:
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "a text", type(None): "None"}
    return words.get(kind, repr(kind))

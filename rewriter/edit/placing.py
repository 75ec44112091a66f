"""Where the edited functions of a class go, so that every lookup on an object finds them, and what replaces what.

A function may be reached under several names, through ``super()``, and by the name of the class that defines it. So the
names stay in the class that has them: a generated subclass is inserted before each class of the method resolution order
that holds an edited function.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rewriter.edit.decorators import Redecorator

_REPLACED = "_rewriter_replaced"


@dataclass(frozen=True)
class Placing:
    """The namespaces that hold the edited functions.

    Attributes:
        namespaces: by class, in method resolution order, what a subclass of it is to hold instead.
        replaced: everything that was replaced, functions and their decorators, with the replacements.
    """

    namespaces: dict[type, dict[str, Any]]
    replaced: tuple[tuple[Any, Any], ...]


def place(
    base: type, functions: Mapping[types.FunctionType, types.FunctionType], edited: set[tuple[type, str]]
) -> Placing:
    """Find where ``base`` and its bases hold ``functions``, under any name and through any decorator.

    Args:
        base: the class that is edited.
        functions: the replacement of each function.
        edited: the attributes that the functions were read from; containers are searched only in these.

    Raises:
        SourceError: a decorator is an object that cannot be copied.
    """
    redecorator = Redecorator(functions)
    namespaces: dict[type, dict[str, Any]] = {}
    for cls, name, attribute in _attributes(base):
        replace = redecorator.replaced if (cls, name) in edited else redecorator.replaced_alias
        new = replace(attribute)
        if new is not attribute:
            namespaces.setdefault(cls, {})[name] = new
    return Placing(namespaces, tuple(redecorator.replaced_objects.values()))


def replaced_in(cls: type) -> tuple[tuple[Any, Any], ...]:
    """What the generated class ``cls`` itself replaced: pairs of the original and its replacement."""
    pairs: tuple[tuple[Any, Any], ...] = cls.__dict__.get(_REPLACED, ())
    if _REPLACED not in cls.__dict__ or not cls._rewriter_edit.behaviours:  # type: ignore[attr-defined]
        return pairs
    before = inspect.getattr_static(cls._rewriter_base, "forward")  # type: ignore[attr-defined]
    return (*pairs, (before, inspect.getattr_static(cls, "forward")))


def remembered(placing: Placing) -> dict[str, Any]:
    """What a generated class stores in its namespace for :func:`replaced_in`."""
    return {_REPLACED: placing.replaced}


def _attributes(base: type) -> Iterator[tuple[type, str, Any]]:
    """Everything in the namespaces of ``base`` and its bases, except those of ``torch.nn.Module``."""
    for cls in base.__mro__:
        if cls not in (nn.Module, object):
            for name, attribute in list(cls.__dict__.items()):
                yield cls, name, attribute

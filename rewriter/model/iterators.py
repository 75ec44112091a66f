"""Iterators of Python that a model brings along, as ``itertools.count``, and copies that go on by themselves."""

from __future__ import annotations

import types
import warnings
from typing import Any


def is_iterator(value: Any) -> bool:
    """Whether ``value`` is an iterator of Python's own that can be copied; a generator is none, it is running code."""
    kind = type(value)
    own = kind.__module__ in ("builtins", "itertools", "_collections") and hasattr(kind, "__next__")
    return own and kind is not types.GeneratorType


def copy_of_iterator(value: Any, copies: dict[int, Any]) -> Any:
    """An iterator at the same place over the same items; ``value`` itself where Python cannot tell that place.

    Args:
        value: an iterator of Python's own. It is not advanced.
        copies: by identity those that were made before; iterators inside of iterators are added.
    """
    if id(value) not in copies:
        copies[id(value)] = _made_anew(value, copies)
    return copies[id(value)]


def _made_anew(value: Any, copies: dict[int, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of itertools from Python 3.12 on
            make, arguments, *state = value.__reduce__()
            result = make(*(_own(argument, copies) for argument in arguments))
            if state and state[0] is not None:
                result.__setstate__(_own_state(state[0], copies))
    except (TypeError, ValueError, AttributeError):
        return value
    return result


def _own(part: Any, copies: dict[int, Any]) -> Any:
    """A part of an iterator, which shares what it goes over and not the place where it is."""
    if type(part) is tuple:
        return tuple(_own(item, copies) for item in part)
    return copy_of_iterator(part, copies) if is_iterator(part) else part


def _own_state(state: Any, copies: dict[int, Any]) -> Any:
    """The state of an iterator; ``cycle`` keeps there what it has given so far."""
    parts = state if type(state) is tuple else (state,)
    own = tuple(list(part) if type(part) is list else _own(part, copies) for part in parts)
    return own if type(state) is tuple else own[0]

"""Python iterators held by a model, such as ``itertools.count``, and independent copies of them."""

from __future__ import annotations

import types
import warnings
from typing import Any


def is_iterator(value: Any) -> bool:
    """Whether ``value`` is a built-in iterator that can be copied; a generator is running code, and cannot."""
    kind = type(value)
    own = kind.__module__ in ("builtins", "itertools", "_collections") and hasattr(kind, "__next__")
    return own and kind is not types.GeneratorType


def copy_of_iterator(value: Any, copies: dict[int, Any]) -> Any:
    """An iterator over the same items at the same position; ``value`` itself if Python cannot tell the position.

    Args:
        value: a built-in iterator. It is not advanced.
        copies: earlier copies by the ``id`` of the original; iterators inside iterators are added.
    """
    if id(value) not in copies:
        copies[id(value)] = _made_anew(value, copies)
    return copies[id(value)]


def _made_anew(value: Any, copies: dict[int, Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # from itertools, since Python 3.12
            make, arguments, *state = value.__reduce__()
            result = make(*(_own(argument, copies) for argument in arguments))
            if state and state[0] is not None:
                result.__setstate__(_own_state(state[0], copies))
    except (TypeError, ValueError, AttributeError):
        return value
    return result


def _own(part: Any, copies: dict[int, Any]) -> Any:
    """Copy a part of an iterator: the items are shared, the position is not."""
    if type(part) is tuple:
        return tuple(_own(item, copies) for item in part)
    return copy_of_iterator(part, copies) if is_iterator(part) else part


def _own_state(state: Any, copies: dict[int, Any]) -> Any:
    """Copy the state of an iterator, which for ``cycle`` includes what it has yielded so far."""
    parts = state if type(state) is tuple else (state,)
    own = tuple(list(part) if type(part) is list else _own(part, copies) for part in parts)
    return own if type(state) is tuple else own[0]

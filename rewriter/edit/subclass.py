"""Make a subclass of a user's class without triggering what the user's classes do when they are subclassed.

Registries live in ``__init_subclass__`` and in metaclasses. A class made for one object must not be registered, since
later models would be built from it. So neither is run, and calling the class creates an object of the user's own class.
What remains: ``Base.__subclasses__()`` lists the class, because Python needs that to know whose methods a class
inherits.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from typing import Any

from torch import nn

from rewriter.errors import SourceError


def make_subclass(like: type, bases: tuple[type, ...], namespace: Mapping[str, Any]) -> type[nn.Module]:
    """A class with the name, module and documentation of ``like``; no hook of ``bases`` or their metaclass runs.

    Raises:
        SourceError: one of ``bases`` has both a hook and ``__slots__``, so that the hook cannot be avoided.
    """
    own = {"__module__": like.__module__, "__qualname__": like.__qualname__, "__doc__": like.__doc__, **namespace}
    metaclass = _metaclass_of(bases)
    cls: type[nn.Module]
    if not any("__init_subclass__" in vars(base) for first in bases for base in first.__mro__[:-1]):
        cls = type.__new__(metaclass, like.__name__, bases, own)
    else:  # assigning the bases afterwards does not run their hooks
        cls = type.__new__(metaclass, like.__name__, (nn.Module,), own)
        try:
            type.__setattr__(cls, "__bases__", bases)
        except TypeError as error:
            raise SourceError(
                f"{like.__module__}.{like.__qualname__}: a class with __slots__ whose bases have __init_subclass__ "
                f"cannot be subclassed for one object ({error})"
            ) from error
    if issubclass(metaclass, abc.ABCMeta):
        abc._abc_init(cls)  # type: ignore[attr-defined]  # else it shares the cache of isinstance with its base
    return cls


def ordinary_init(original: type) -> Any:
    """An ``__init__`` for a subclass of ``original``: calling the subclass creates an object of ``original``."""

    @functools.wraps(original.__init__)  # type: ignore[misc]
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, "__class__", original)
        self.__init__(*args, **kwargs)

    return __init__


def _metaclass_of(bases: tuple[type, ...]) -> type:
    """The most derived metaclass of ``bases``, as Python chooses it."""
    found: type = type
    for base in bases:
        if issubclass(type(base), found):
            found = type(base)
    return found

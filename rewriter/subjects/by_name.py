"""Functions in pickles: by the names that they have in their files, or as what partials and methods are made of."""

from __future__ import annotations

import functools
import importlib
import sys
import types
from typing import Any

from torch import nn

from rewriter.errors import StorageError
from rewriter.model.wrappers import inside


class ByName:
    """Holds a callable, which copies share, and which is pickled by its name.

    Args:
        subject: a function, or what :func:`rewriter.subjects.held_function.is_function` takes for one.
    """

    def __init__(self, subject: Any) -> None:
        self.subject = subject

    def __deepcopy__(self, memo: dict[int, Any]) -> ByName:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Raise a :class:`StorageError` if no other process could find the function."""
        subject = self.subject
        if isinstance(subject, functools.partial):
            return _partial, (ByName(subject.func), subject.args, subject.keywords)
        if isinstance(subject, types.MethodType) or not hasattr(subject, "__qualname__"):
            return ByName, (subject,)
        module, name = subject.__module__, subject.__qualname__
        if _found(module, name) is not subject:
            local = "<locals>" in name
            remedy = "define it at the top level of a file" if local else "pickle what has this name"
            raise StorageError(
                f"{module}.{name} cannot be pickled: a pickle holds a function by its name, and there is no such "
                f"function under this name; {remedy}, or keep the plan, rewriter.plan(...).to_json()"
            )
        return _by_name, (module, name)


def _partial(function: ByName, args: tuple[Any, ...], keywords: dict[str, Any]) -> ByName:
    return ByName(functools.partial(function.subject, *args, **keywords))


def _by_name(module: str, name: str) -> ByName:
    found = _found(module, name)
    if found is None:
        raise StorageError(
            f"the pickle holds a rewritten function by its name, {module}.{name}, and there is none here. Make its "
            "file importable under this name, or rewrite the function that you have with the plan of that rewrite"
        )
    return ByName(found)


def _found(module: str, name: str) -> Any:
    """The function of this name; the original if the name now stands for the rewritten one. None if there is none."""
    try:
        found: Any = sys.modules.get(module) or importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return getattr(inside(found), "__wrapped__", None) if isinstance(found, nn.Module) else found

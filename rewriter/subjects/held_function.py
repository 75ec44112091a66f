"""The function that a callable runs, behind decorators, partials, and the objects that methods are bound to."""

from __future__ import annotations

import functools
import inspect
import types
from typing import Any

import torch
from torch import nn

from rewriter.edit.decorators import OBJECTS, functions_at, is_plain_object
from rewriter.errors import ModelError, SourceError
from rewriter.model.refusal import is_compiled

_LRU_CACHE = type(functools.lru_cache(lambda: None))
_COMPILED = (types.BuiltinFunctionType, types.MethodDescriptorType, types.MethodWrapperType, torch.jit.ScriptFunction)
_CALLABLES = (types.FunctionType, types.MethodType, functools.partial, _LRU_CACHE)


def is_function(subject: Any) -> bool:
    """Whether ``subject`` is a function, or an object of a class written in Python that is called like one.

    Modules and classes are not.
    """
    if isinstance(subject, (type, nn.Module)):
        return False
    called = getattr(type(subject), "__call__", None)  # noqa: B004 - what is wanted is the function
    object_of_users = is_plain_object(subject) and not type(subject).__module__.startswith("torch.")
    return isinstance(subject, _CALLABLES) or (object_of_users and isinstance(called, _CALLABLES))


def name_of(subject: Any) -> str:
    """A name for messages."""
    name = "__name__" if isinstance(subject, types.BuiltinFunctionType) else "__qualname__"
    return str(getattr(subject, name, type(subject).__name__))


def refuse_compiled(subject: Any) -> None:
    """Refuse a function without Python code.

    Raises:
        ModelError: it was compiled, by C, ``torch.jit`` or ``torch.compile``.
    """
    if isinstance(subject, torch.jit.ScriptFunction):
        raise ModelError("expected a torch.nn.Module, found a ScriptFunction: its Python code is gone. Rewrite first.")
    if isinstance(subject, _COMPILED):
        raise ModelError(
            f"expected a torch.nn.Module, found {type(subject).__name__} {name_of(subject)}: it is compiled, and has "
            "no Python code to edit. Give a function of Python that calls it"
        )
    if is_compiled(subject):
        raise ModelError(
            f"{subject.__qualname__} was compiled by torch.compile, so that its Python code does not run as it is "
            "written. Rewrite the function itself, and compile the result"
        )


def bound(subject: Any) -> Any:
    """A callable object as its bound ``__call__``, unless it wraps another function; anything else as it is."""
    if isinstance(subject, _CALLABLES) or _wrapped(subject) is not None:
        return subject
    return types.MethodType(type(subject).__call__, subject)


def held_function(subject: Any) -> types.FunctionType:
    """The innermost function that ``subject`` runs, as far as it says so.

    Decorators say so by ``functools.wraps``; one that does not is the function itself.

    Raises:
        ModelError: it is compiled, or a method of a module.
        SourceError: it is a lambda, whose text cannot be edited.
    """
    found = bound(subject)
    while True:
        refuse_compiled(found)
        if isinstance(found, types.MethodType):
            if isinstance(found.__self__, nn.Module):
                name = type(found.__self__).__name__
                raise ModelError(
                    f"{found.__qualname__} is a method of the module {name}: give the {name} itself, with a forward "
                    f"that calls {found.__name__}()"
                )
            inner: Any = found.__func__
        elif isinstance(found, functools.partial):
            inner = found.func
        else:
            inner = _wrapped(found)
        if inner is None and not isinstance(found, types.FunctionType):
            inner = bound(found)
        if inner is None:
            break
        found = inner
    if found.__name__ == "<lambda>":
        code = found.__code__
        raise SourceError(
            f"{found.__module__}.{found.__qualname__} ({code.co_filename}:{code.co_firstlineno}): the text of a lambda "
            "cannot be edited; write it as a function, def loss(...): return ..."
        )
    function: types.FunctionType = found
    return function


def _wrapped(subject: Any) -> Any:
    """What ``functools.wraps`` says that ``subject`` wraps, if ``subject`` itself holds it; else None."""
    inner = inspect.getattr_static(subject, "__wrapped__", None)
    if not callable(inner):
        return None
    if isinstance(subject, _LRU_CACHE):
        return inner
    held = [function for level in range(OBJECTS + 1) for function in functions_at(subject, level)]
    return inner if any(function is inner for function in held) else None

"""A function as a module: everything that is done to a model can then be done to it.

The module's class is made for the function. Its ``forward`` is the function's own text with a parameter for the module
in front, so that an operation of the function is edited like one of a method. Decorators, partials and the objects that
methods are bound to are kept: what the caller gave is made anew around that text. The function itself is never changed.
"""

from __future__ import annotations

import functools
import inspect
import json
import types
import weakref
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from torch import nn

from rewriter.argument_checks import checked_flag
from rewriter.edit.classes import ClassEdit, derive, is_generated
from rewriter.edit.decorators import OBJECTS, Redecorator
from rewriter.edit.edits import CODEC
from rewriter.edit.function_methods import as_method
from rewriter.edit.source import read_source
from rewriter.errors import InputError, ModelError
from rewriter.subjects.by_name import ByName
from rewriter.subjects.held_function import bound, held_function, is_function, refuse_compiled

Subject = TypeVar("Subject", bound=Callable[..., Any])
"""A model or a function; verbs return what behaves like the one they were given."""

_ROUTE = "_route"
_HELD = "_held"

_CLASSES: weakref.WeakKeyDictionary[types.FunctionType, dict[bool, type[FunctionModule]]] = weakref.WeakKeyDictionary()


class FunctionModule(nn.Module):
    """A function as a module with the same signature; in training mode, without parameters unless an edit adds some.

    Attributes:
        source_digest: changes with the text of the function.
    """

    source_digest: ClassVar[str]

    def __init__(self, held: ByName) -> None:
        super().__init__()
        function = held_function(held.subject)
        self.__dict__ |= {_HELD: held, "__name__": function.__name__, "__qualname__": function.__qualname__}

    @property
    def __wrapped__(self) -> Any:
        """The callable that was given."""
        return self.__dict__[_HELD].subject

    def refuse_without(self, example_inputs: Any) -> None:
        """Refuse a request that does not say what to run the function on.

        Raises:
            InputError: ``example_inputs`` is None; the message gives the names of the arguments.
        """
        if example_inputs is None:
            name, parameters = self.__dict__["__name__"], ", ".join(inspect.signature(self).parameters)
            raise InputError(
                f"{name} is a function: give example_inputs=, a tuple of its arguments or a dict of them by name "
                f"({parameters}), with the shapes and values of a training step"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        edits: list[ClassEdit] = []
        cls: Any = type(self)
        while is_generated(cls):
            edits.insert(0, cls._rewriter_edit)
            cls = cls._rewriter_base
        state = {name: value for name, value in self.__dict__.items() if name not in (_HELD, _ROUTE)}
        return _rebuilt, (self.__dict__[_HELD], json.dumps(CODEC.to_plain(edits))), state


def as_module(subject: Any, *, inplace: Any = False) -> Any:
    """A function, or what is called like one, as a :class:`FunctionModule`; anything else as it is.

    Args:
        subject: what the caller gave.
        inplace: whether the caller asked to edit it in place.

    Raises:
        ModelError: it is compiled, or a method of a module; or a function is to be edited in place.
        SourceError: it has no source, or is a lambda.
    """
    refuse_compiled(subject)
    if not is_function(subject):
        return subject
    module = _module(ByName(subject))
    if checked_flag("inplace", inplace):
        name = module.__dict__["__name__"]
        raise ModelError(f"{name} is a function, and none is edited in place: use what is returned, without inplace=")
    return module


def _rebuilt(held: ByName, edits: str) -> FunctionModule:
    """What was pickled, or is copied, without its state."""
    module: Any = _module(held)
    for edit in CODEC.from_plain(tuple[ClassEdit, ...], json.loads(edits), "edits"):
        module.__class__ = derive(type(module), edit)
    result: FunctionModule = module
    return result


def _module(held: ByName) -> FunctionModule:
    subject = bound(held.subject)
    function = held_function(subject)
    module = _class_of(function, direct=subject is function)(held)
    if subject is not function:
        route = Redecorator({function: _method_of(module, function)}).replaced(subject, OBJECTS)
        module.__dict__[_ROUTE] = route
    return module


def _class_of(function: types.FunctionType, *, direct: bool) -> type[FunctionModule]:
    """The class made for ``function``, whose ``forward`` it is if that is what the caller calls (``direct``)."""
    classes = _CLASSES.setdefault(function, {})
    if direct not in classes:
        method = as_method(function)
        own: dict[str, Any] = {"forward": method} if direct else {"forward": _routed(), "function": method}
        names = {name: getattr(function, name) for name in ("__module__", "__qualname__", "__doc__")}
        own |= {**names, "source_digest": read_source(method).digest}
        made: Any = type(function.__name__, (FunctionModule,), own)
        classes[direct] = made
    return classes[direct]


def _routed() -> Callable[..., Any]:
    """A forward that calls what was given, made anew around the method; each class has code of its own to compile."""

    def forward(self: FunctionModule, *args: Any, **kwargs: Any) -> Any:
        return self.__dict__[_ROUTE](*args, **kwargs)

    forward.__code__ = forward.__code__.replace()
    return forward


def _method_of(module: Any, function: types.FunctionType) -> Any:
    """What stands for ``function`` in its decorators: the method that the class of ``module`` has at that time."""

    @functools.wraps(function)
    def method(*args: Any, **kwargs: Any) -> Any:
        return module.function(*args, **kwargs)

    return method

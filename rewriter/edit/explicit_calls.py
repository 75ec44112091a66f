"""Calls that name a function by its class, ``A.forward(self, x)``, and so bypass the lookup on the object.

If the function is edited, the method with such a call is edited too, to call it as a method of the object. All such
calls in the classes of a model are found in the source, not only those that ran.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from rewriter.edit.class_calls import class_call
from rewriter.edit.classes import class_name, method_source, owner_of
from rewriter.edit.decorators import undecorated
from rewriter.edit.edits import Edit, EditMethod
from rewriter.edit.names import constant, local_names, receiver_parameter
from rewriter.edit.operations import CallMethod
from rewriter.edit.source import FunctionSource, Span, read_source
from rewriter.errors import SourceError


@dataclass(frozen=True)
class ExplicitCall:
    """A call, in a method, of a function named by its class.

    Attributes:
        owner: the class of the calling method; ``method`` is its name and ``source`` its source.
        span: the call.
        receiver: path from the method's own receiver to the call's: () is the same one, ("inner",) is ``self.inner``.
    """

    owner: type
    method: str
    source: FunctionSource
    span: Span
    receiver: tuple[str, ...]


class ExplicitCalls:
    """Finds the explicit calls of edited functions in one model, and edits the methods that contain them."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._by_class: dict[type, list[tuple[str, nn.Module]]] = {}
        for path, module in model.named_modules():
            self._by_class.setdefault(type(module), []).append((path, module))
        self._names: dict[tuple[str, str, str], str] = {}
        self._found: dict[tuple[type, int], list[ExplicitCall]] = {}
        self._functions: dict[type, list[types.FunctionType]] = {}
        self._kept: list[Any] = []  # keeps the objects alive whose ids are in the keys above

    def followed(self, edits: Sequence[Edit]) -> list[Edit]:
        """``edits``, plus edits of the methods that call an edited one by its class, and of their callers in turn."""
        found, pending = list(edits), [edit for edit in edits if isinstance(edit, EditMethod)]
        while pending:
            for edit in self._of(pending.pop()):
                if edit not in found:
                    found.append(edit)
                    pending.append(edit)
        return found

    def _of(self, edit: EditMethod) -> Iterator[EditMethod]:
        receiver = self._model.get_submodule(edit.path)
        attribute = owner_of(type(receiver), edit.owner, edit.method, edit.digest).__dict__[edit.method]
        bases = type(receiver).__mro__
        names = frozenset(name for cls in bases for name, value in cls.__dict__.items() if value is attribute)
        for cls, modules in self._by_class.items():
            for call, (path, module) in itertools.product(self._calls(cls, names, attribute), modules):
                name = None
                if follow(module, call.receiver) is receiver:
                    name = self._name(edit, receiver, attribute, own=module is receiver)
                if name is not None:
                    operation = CallMethod(call.span, 0, edit.owner, edit.method, name)
                    yield EditMethod(path, class_name(call.owner), call.method, call.source.digest, operation)

    def _name(self, edit: EditMethod, receiver: nn.Module, attribute: Any, *, own: bool) -> str | None:
        """The name by which to call the function on ``receiver``; None if it has none and cannot be given one."""
        if inspect.getattr_static(receiver, edit.method, None) is attribute:
            return edit.method
        if not own:
            return None
        first = f"{edit.method.strip('_')}_of_{edit.owner.rpartition('.')[2].strip('_')}"
        names = itertools.chain([first], (f"{first}_{number}" for number in itertools.count(1)))
        key = (edit.path, edit.owner, edit.method)
        return self._names.setdefault(key, next(name for name in names if not hasattr(receiver, name)))

    def _calls(self, cls: type, names: frozenset[str], attribute: Any) -> list[ExplicitCall]:
        """The calls of ``attribute``, which classes hold under ``names``, in all methods of ``cls``."""
        key = (cls, id(attribute))
        if key not in self._found:
            self._kept.append(attribute)
            functions = (function for owner in cls.__mro__ for function in self._functions_of(owner))
            naming = (function for function in functions if _may_name(function, names, attribute))
            self._found[key] = [call for function in naming for call in _calls_in(cls, function, attribute)]
        return self._found[key]

    def _functions_of(self, owner: type) -> list[types.FunctionType]:
        if owner not in self._functions:
            own = {} if owner.__module__.partition(".")[0] in ("torch", "builtins") else owner.__dict__
            running = (attribute for name, attribute in own.items() if name not in _RUN_BEFORE)
            self._functions[owner] = [function for attribute in running for function in undecorated(attribute)]
        return self._functions[owner]


_RUN_BEFORE = ("__new__", "__init__", "__init_subclass__", "__setstate__")
"""What they call and store was called and stored before the edits."""


def is_explicit(source: FunctionSource, call: ast.AST) -> bool:
    """Whether ``call`` names a Python function, by its class or module, and passes the receiver as an argument."""
    found = constant(source, call.func) if isinstance(call, ast.Call) else None
    return next(undecorated(found), None) is not None


def _calls_in(cls: type, function: types.FunctionType, attribute: Any) -> Iterator[ExplicitCall]:
    try:
        found = method_source(cls, function.__code__)
        source = read_source(function)
    except SourceError:
        return
    receiver = receiver_parameter(source)
    if found is None or receiver is None or receiver.arg in local_names(source):
        return
    for node in ast.walk(source.tree):
        call = class_call(source, node)
        path = attribute_path(call.receiver, receiver.arg) if call is not None and call.value is attribute else None
        if call is not None and path is not None:
            try:
                call.as_method(source, "method")
            except SourceError:  # the text cannot be edited
                continue
            yield ExplicitCall(found[0], found[1], source, source.span(node), path)


def _may_name(function: types.FunctionType, names: frozenset[str], attribute: Any) -> bool:
    """Whether the code of ``function`` mentions ``names``, or the value by another name; reading sources is slow."""
    for code in _codes(function.__code__):
        if not names.isdisjoint(code.co_names) or any(isinstance(c, str) and c in names for c in code.co_consts):
            return True
        if any(function.__globals__.get(other) is attribute for other in code.co_names):
            return True
    return any(cell != types.CellType() and cell.cell_contents is attribute for cell in function.__closure__ or ())


@functools.lru_cache(maxsize=4096)
def _codes(code: types.CodeType) -> tuple[types.CodeType, ...]:
    inner = [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return (code, *itertools.chain.from_iterable(map(_codes, inner)))


def attribute_path(node: ast.AST, receiver: str) -> tuple[str, ...] | None:
    """``self.a.b`` as ("a", "b"); None if it is not a path of attributes from the receiver."""
    path: list[str] = []
    while isinstance(node, ast.Attribute):
        path.insert(0, node.attr)
        node = node.value
    return tuple(path) if isinstance(node, ast.Name) and node.id == receiver else None


def follow(module: nn.Module, path: Sequence[str]) -> Any:
    """What ``module`` has at ``path``, following submodules only; None if the path leaves them."""
    found: Any = module
    for name in path:
        found = found._modules.get(name) or found.__dict__.get(name) if isinstance(found, nn.Module) else None
    return found

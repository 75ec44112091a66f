"""What the names in a function's source refer to."""

from __future__ import annotations

import ast
import builtins
import inspect
import re
import types
from typing import Any

from rewriter.edit.source import FunctionSource, describe
from rewriter.errors import PlanError, SourceError

_ATTRIBUTE_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def called_function(source: FunctionSource, call: ast.AST) -> Any:
    """What a call by a name of the module level, or of a function around it, calls (``F.avg_pool2d``).

    None if that is decided at run time.
    """
    path, function = [], call.func if isinstance(call, ast.Call) else None
    while isinstance(function, ast.Attribute):
        path.append(function.attr)
        function = function.value
    if not isinstance(function, ast.Name) or function.id in local_names(source):
        return None
    found = _named(source, function.id)
    for name in reversed(path):
        found = getattr(found, name, None) if isinstance(found, types.ModuleType) else None
    return found


def constant(source: FunctionSource, node: ast.AST) -> Any:
    """What an expression that names something in the module scope, a closure or a class refers to.

    ``A.forward``, ``models.A.forward``, ``A.__dict__["forward"]``, ``getattr(A, "forward")``; for a class it is what
    the class or a base holds, without a descriptor's ``__get__``. None if that is decided at run time.
    """
    match node:
        case ast.Name(id=name):
            return _named(source, name)
        case (
            ast.Attribute(value=value, attr="__dict__") | ast.Call(func=ast.Name(id="vars"), args=[value], keywords=[])
        ) if isinstance(cls := constant(source, value), type):
            return cls.__dict__
        case ast.Attribute(value=value, attr=name):
            return _member(constant(source, value), mangled(source, name))
        case ast.Call(func=ast.Name(id="getattr"), args=[value, ast.Constant(value=str(name))], keywords=[]):
            return _member(constant(source, value), name)
        case ast.Subscript(value=value, slice=ast.Constant(value=str(name))):
            found = constant(source, value)
            return found.get(name) if isinstance(found, types.MappingProxyType) else None
    return None


def mangled(source: FunctionSource, name: str) -> str:
    """The name under which a class stores its private attribute ``name`` (``__pre`` as ``_Net__pre``)."""
    scope = source.function.__qualname__.split(".")[-2:-1]
    if not name.startswith("__") or name.endswith("__") or not scope or not scope[0].isidentifier():
        return name
    return f"_{scope[0].lstrip('_')}{name}"


def _named(source: FunctionSource, name: str) -> Any:
    function = source.function
    if name in local_names(source):
        bound = [node for node in ast.walk(source.tree) if _binds(node, name)]
        assigned = [s.value for s in source.tree.body if isinstance(s, ast.Assign) and s.targets == bound]
        return constant(source, assigned[0]) if len(bound) == len(assigned) == 1 else None
    if name in function.__code__.co_freevars:
        cell = (function.__closure__ or ())[function.__code__.co_freevars.index(name)]
        return cell.cell_contents if cell != types.CellType() else None
    return function.__globals__.get(name, getattr(builtins, name, None))


def _binds(node: ast.AST, name: str) -> bool:
    return bound_name(node) == name


def _member(holder: Any, name: str) -> Any:
    if isinstance(holder, types.ModuleType):
        return vars(holder).get(name)
    return inspect.getattr_static(holder, name, None) if isinstance(holder, type) else None


def receiver_parameter(source: FunctionSource) -> ast.arg | None:
    """The first positional parameter, whatever its name; in a method, the module that it belongs to."""
    arguments = source.tree.args
    return next(iter((*arguments.posonlyargs, *arguments.args)), None)


def local_names(source: FunctionSource) -> set[str]:
    """Names bound by the method, or by a function, lambda or comprehension in it, except that of the receiver."""
    own = receiver_parameter(source)
    inside = (node for node in ast.walk(source.tree) if node is not own and node is not source.tree)
    return {name for name in map(bound_name, inside) if name}


def used_names(source: FunctionSource) -> set[str]:
    """Names that the text of the method binds or reads, except that of the receiver where it is not read."""
    return {node.id for node in ast.walk(source.tree) if isinstance(node, ast.Name)} | local_names(source)


def bound_name(node: ast.AST) -> str | None:
    """The name that ``node`` itself binds; None if it binds none."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
            return name
        case ast.alias(name=name, asname=alias):
            return alias or name.partition(".")[0]
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return name
        case ast.ExceptHandler(name=name) | ast.MatchAs(name=name) | ast.MatchStar(name=name):
            return name
        case ast.MatchMapping(rest=name):
            return name
    return None


def submodule(receiver: str, path: str) -> str:
    """The expression for the submodule at ``path`` of the module called ``receiver``."""
    if not _ATTRIBUTE_PATH.fullmatch(path):
        raise PlanError(f"{path!r} is not a path of attributes")
    return f"{receiver}.{path}"


def receiver_name(source: FunctionSource) -> str:
    """The method's name for the module that it belongs to."""
    receiver = receiver_parameter(source)
    if receiver is None:
        raise SourceError(f"{describe(source.function)}: it has no parameter for the module that it belongs to")
    return receiver.arg

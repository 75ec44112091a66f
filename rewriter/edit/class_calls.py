"""Expressions that name a function by its class and pass the module to it.

``A.forward(self, x)``, ``A.forward.__get__(self)``, ``types.MethodType(A.forward, self)`` and
``functools.partial(A.forward, self)`` all bypass the lookup on the class of ``self``.
"""

from __future__ import annotations

import ast
import functools
import types
from dataclasses import dataclass
from typing import Any

from rewriter.edit.names import constant
from rewriter.edit.source import FunctionSource, Splice, offsets
from rewriter.errors import SourceError


@dataclass(frozen=True)
class ClassCall:
    """A function named by its class, and the module passed to it.

    Attributes:
        call: the expression that contains both.
        function: the expression that names the function; ``value`` is the function.
        receiver: the module, a name or a path of attributes.
        binding: whether ``call`` evaluates to just the bound method; otherwise the two are its first arguments, or the
            function is called directly.
    """

    call: ast.Call
    function: ast.expr
    value: Any
    receiver: ast.expr
    binding: bool = False

    def as_method(self, source: FunctionSource, method: str) -> list[Splice]:
        """The change to ``receiver.method``; all other arguments stay.

        Raises:
            SourceError: the arguments cannot be told apart in the text.
        """
        data = source.text.encode()
        (start, stop), (first, last) = offsets(source, self.call), offsets(source, self.receiver)
        bound = f"{data[first:last].decode()}.{method}"
        if self.binding:
            return [Splice(start, stop, bound)]
        before, function_stop = offsets(source, self.function)
        called = self.call.func is self.function
        following = self.call.args[1:2] if called else self.call.args[2:3]
        starts = [offsets(source, argument)[0] for argument in (*following, *self.call.keywords[:1])]
        between, comma, _ = data[last : min(starts, default=stop - 1)].partition(b",")
        joined = data[function_stop:first].strip() == (b"(" if called else b",")
        if between.strip() or not joined or (starts and not comma) or (called and before != start):
            raise SourceError(f"`{ast.unparse(self.call)}`: there are parentheses around what is called or given")
        if not called:
            return [Splice(before, last, bound)]
        kept = last + len(between) + len(comma)
        rest = data[kept:stop]
        return [Splice(start, kept + len(rest) - len(rest.lstrip()), f"{bound}(")]


def class_call(source: FunctionSource, node: ast.AST) -> ClassCall | None:
    """``node`` as a :class:`ClassCall`, if it names a function by its class and passes a module to it; else None."""
    if not isinstance(node, ast.Call):
        return None
    called = constant(source, node.func)
    match node:
        case ast.Call(func=ast.Attribute(value=function, attr="__get__"), args=[receiver, *_]):
            found = ClassCall(node, function, constant(source, function), receiver, binding=True)
        case ast.Call(args=[function, receiver, *_]) if any(
            constant(source, node.func) is binding for binding in _BINDING
        ):
            binding = called is types.MethodType
            found = ClassCall(node, function, constant(source, function), receiver, binding)
        case ast.Call(args=[receiver, *_]):
            found = ClassCall(node, node.func, called, receiver)
        case _:
            return None
    return found if found.value is not None and isinstance(found.receiver, (ast.Name, ast.Attribute)) else None


_BINDING = (functools.partial, types.MethodType)

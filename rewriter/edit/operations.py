"""What can be done to the source of a method: move, remove or redirect a call, wrap an operand, adopt a helper.

Each operation identifies expressions by position and yields text splices. It holds no code of its own: what it moves is
text of the user's method, and what it adds is a call of a submodule. So a plan read from a file cannot bring code with
it.
"""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rewriter.edit.class_calls import class_call
from rewriter.edit.control_flow import branches
from rewriter.edit.names import called_function, local_names, receiver_name, receiver_parameter, submodule, used_names
from rewriter.edit.operands import RECEIVER, RESULT, call_and_operand, is_bare, operand_of, operands
from rewriter.edit.source import FunctionSource, Span, Splice, describe, offsets, splice
from rewriter.errors import PlanError, SourceError


@dataclass(frozen=True)
class Operation:
    """Base class of operations; ``call`` is the expression it applies to, ``operand`` the number of its data input."""

    kind: ClassVar[str]
    call: Span
    operand: int

    @property
    def spans(self) -> tuple[Span, ...]:
        """All expressions of the function that it applies to."""
        return tuple(value for value in vars(self).values() if isinstance(value, Span))

    @property
    def modules(self) -> set[str]:
        """The child modules that the changed text calls."""
        inner = [value.modules for value in vars(self).values() if isinstance(value, Operation)]
        own: str | None = getattr(self, "module", None)
        return set().union(*inner, () if own is None else (own,))

    def renamed(self, old: str, new: str) -> Operation:
        """The same operation, with child module ``new`` instead of ``old`` if it calls that."""
        changes: dict[str, Any] = {}
        for name, value in vars(self).items():
            if name == "module" and value == old:
                changes[name] = new
            elif isinstance(value, Operation):
                changes[name] = value.renamed(old, new)
        return replace(self, **changes)

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        """The text changes that carry out this operation."""
        raise SourceError(f"{type(self).__name__} does not say what it changes")

    def splices_for(self, source: FunctionSource, receiver: str) -> Iterator[Splice]:
        """The text changes, if ``receiver`` names the module that has the submodules."""
        yield from self.splices(source)


@dataclass(frozen=True)
class LayerOperation(Operation):
    """An operation by which the function calls a submodule of the module that it belongs to."""

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        yield from self.splices_for(source, receiver_name(source))

    def splices_for(self, source: FunctionSource, receiver: str) -> Iterator[Splice]:
        raise SourceError(f"{type(self).__name__} does not say what it changes")


@dataclass(frozen=True)
class Remove(Operation):
    """Replace a call by its operand: ``self.drop(x)`` becomes ``x``."""

    kind: ClassVar[str] = "remove"

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        node, operand = call_and_operand(source, self.call, self.operand)
        (start, stop), (inner_start, inner_stop) = offsets(source, node), offsets(source, operand)
        bare = is_bare(operand)
        yield Splice(start, inner_start, "" if bare else "(")
        yield Splice(inner_stop, stop, "" if bare else ")")


@dataclass(frozen=True)
class Move(Operation):
    """Move a call from its place to an operand of another expression of the same function.

    ``x = self.pool(x); x = self.drop(x)`` becomes ``x = self.pool(self.drop(x))``. A call may be moved to several
    expressions, exactly one of which is evaluated. A condition on the presence of the layer moves along:
    ``(self.drop if self.drop is not None else lambda x: x)(x)``.
    """

    kind: ClassVar[str] = "move"
    target: Span
    target_operand: int

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        node, operand = call_and_operand(source, self.call, self.operand)
        data = source.text.encode()
        (start, stop), (inner_start, inner_stop) = offsets(source, node), offsets(source, operand)
        before, after = data[start:inner_start].decode(), data[inner_stop:stop].decode()
        function, test = ast.unparse(node.func), self._presence(source, node)
        if test and before.startswith(function):
            before = f"({function} if {test} else lambda x: x)" + before.removeprefix(function)
        yield from around(source, self.target, self.target_operand, before, after)

    def _presence(self, source: FunctionSource, node: ast.Call) -> str:
        """The condition that the called layer is there, under which the call is made and the target is not."""
        enclosing = branches(source.tree, source.find(self.target))
        around = [branch for branch in branches(source.tree, node) if branch not in enclosing]
        return next((test for branch in around for test in branch.asks_for_presence_of(ast.unparse(node.func))), "")


@dataclass(frozen=True)
class Wrap(LayerOperation):
    """Pass an operand of an expression through a submodule: ``f(x)`` becomes ``f(self.module(x))``.

    :data:`RESULT` stands for the value of the expression: ``self.module(f(x))``.
    """

    kind: ClassVar[str] = "wrap"
    module: str

    def splices_for(self, source: FunctionSource, receiver: str) -> Iterator[Splice]:
        yield from around(source, self.call, self.operand, f"{submodule(receiver, self.module)}(", ")")


@dataclass(frozen=True)
class WrapTogether(LayerOperation):
    """Pass several adjacent arguments of a call through one submodule: ``f(a, b)`` → ``f(*self.module(a, b))``.

    Attributes:
        count: number of arguments, starting at ``operand``.
        module: the submodule; it returns as many tensors as it takes.
    """

    kind: ClassVar[str] = "wrap-together"
    count: int
    module: str

    def splices_for(self, source: FunctionSource, receiver: str) -> Iterator[Splice]:
        found = operands(source.find(self.call))
        first, last = found.get(self.operand), found.get(self.operand + self.count - 1)
        if self.operand < 0 or first is None or last is None:
            raise SourceError(f"`{source.segment(self.call)}` has no {self.count} plain arguments side by side")
        start, stop = offsets(source, first)[0], offsets(source, last)[1]
        yield Splice(start, start, f"*{submodule(receiver, self.module)}(")
        yield Splice(stop, stop, ")")


@dataclass(frozen=True)
class RemoveBinary(Operation):
    """Replace a binary operation by one of its operands: ``x + y`` becomes ``x``, and ``x += y`` is removed."""

    kind: ClassVar[str] = "remove-binary"

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        node = source.find(self.call)
        start, stop = offsets(source, node)
        if isinstance(node, ast.AugAssign):
            if self.operand == 0:
                yield Splice(start, stop, "pass")
                return
            operator = offsets(source, node.target)[1], offsets(source, node.value)[0]
            yield Splice(*operator, " = ")
            return
        if not isinstance(node, ast.BinOp) or self.operand not in (0, 1):
            raise SourceError(f"`{source.segment(self.call)}` is no binary operation")
        operand = node.right if self.operand else node.left
        inner_start, inner_stop = offsets(source, operand)
        bare = isinstance(operand, ast.Name)
        yield Splice(start, inner_start, "" if bare else "(", order=-3)  # what is added to the operand is within
        yield Splice(inner_stop, stop, "" if bare else ")")


@dataclass(frozen=True)
class Replace(LayerOperation):
    """Let a submodule stand for ``x / t``: ``self.module(x)``; ``x /= t`` (operand 0) is ``x = self.module(x)``."""

    kind: ClassVar[str] = "replace"
    module: str

    def splices_for(self, source: FunctionSource, receiver: str) -> Iterator[Splice]:
        node, called = source.find(self.call), submodule(receiver, self.module)
        start, stop = offsets(source, node)
        if isinstance(node, ast.AugAssign):
            if self.operand != 0 or not isinstance(node.target, ast.Name):
                raise SourceError(f"`{source.segment(self.call)}` does not assign to a plain name")
            yield Splice(offsets(source, node.target)[1], stop, f" = {called}({node.target.id})")
            return
        if self.operand == RESULT:
            raise SourceError(f"`{source.segment(self.call)}` has no plain operand {self.operand}")
        inner_start, inner_stop = offsets(source, operand_of(source, self.call, self.operand))
        yield Splice(start, inner_start, f"{called}(", order=-1)
        yield Splice(inner_stop, stop, ")", order=1)


@dataclass(frozen=True)
class Redirect(LayerOperation):
    """Replace the function of a call by a submodule, keeping the arguments: ``x.mean(1)`` → ``self.module(x, 1)``."""

    kind: ClassVar[str] = "redirect"
    module: str

    def splices_for(self, source: FunctionSource, receiver: str) -> Iterator[Splice]:
        node, operand = call_and_operand(source, self.call, self.operand)
        (start, _), (inner_start, inner_stop) = offsets(source, node), offsets(source, operand)
        (func_start, func_stop), data = offsets(source, node.func), source.text.encode()
        opened = data.index(b"(", func_stop)
        if func_start != start or data[func_stop:opened].strip():
            raise SourceError(f"`{source.segment(self.call)}`: the function is in parentheses")
        called = submodule(receiver, self.module)
        if self.operand != RECEIVER:
            yield Splice(start, func_stop, called)
            return
        bare = is_bare(operand)
        # what other operations add around the operand belongs inside the call
        yield Splice(start, inner_start, f"{called}(" if bare else f"{called}((", order=-1)
        separator = ", " if node.args or node.keywords else ""
        yield Splice(inner_stop, opened + 1, separator if bare else f"){separator}")


@dataclass(frozen=True)
class RedirectBinary(LayerOperation):
    """Let a submodule stand for an operator: ``x + y`` → ``self.module(x, y)``, ``x += y`` → ``x = self.module(x, y)``.

    ``operand`` is always 0, the left one.
    """

    kind: ClassVar[str] = "redirect-binary"
    module: str

    def splices_for(self, source: FunctionSource, receiver: str) -> Iterator[Splice]:
        node, called = source.find(self.call), submodule(receiver, self.module)
        stop = offsets(source, node)[1]
        if isinstance(node, ast.AugAssign):
            start, end = self._operator(source, node.target, node.value, "=")
            yield Splice(start, end, f" = {called}({ast.unparse(node.target)},", order=-1)
        elif isinstance(node, ast.BinOp):
            first = offsets(source, node)[0]
            yield Splice(first, first, f"{called}(", order=-1)
            start, end = self._operator(source, node.left, node.right, "")
            yield Splice(start, end, ",")
        else:
            raise SourceError(f"`{source.segment(self.call)}` is no binary operation")
        yield Splice(stop, stop, ")", order=1)

    def _operator(self, source: FunctionSource, left: ast.expr, right: ast.expr, ending: str) -> tuple[int, int]:
        """Where the operator between two operands is, which may be in parentheses."""
        start, stop = offsets(source, left)[1], offsets(source, right)[0]
        between = source.text.encode()[start:stop].decode()
        found = re.fullmatch(rf"([\s)\\]*)([-+*/@%&|^<>]+{ending})[\s(\\]*", between)
        if found is None:
            raise SourceError(f"`{source.segment(self.call)}`: a comment stands beside the operator")
        before = len(found[1].rstrip(" "))  # `x + y` → `module(x, y)`
        return start + before, start + len(found[1]) + len(found[2])


@dataclass(frozen=True)
class Adopt(Operation):
    """Turn a helper function that the method calls into a method, with a change in it.

    ``pool(x)`` becomes ``self.pool(x)``; the new method is the text of the function after ``change``.

    Attributes:
        method: name of the new method.
        digest: digest of the function's source that the change was planned for.
        change: the change to the function; where one call is adopted several times, the method has all changes.
    """

    kind: ClassVar[str] = "adopt"
    method: str
    digest: str
    change: Operation

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        yield Splice(*offsets(source, self._called(source).func), submodule(receiver_name(source), self.method))

    def helper(self, source: FunctionSource) -> types.FunctionType:
        """The function that the method ``source`` calls.

        Raises:
            SourceError: the name does not refer to a Python function.
        """
        call = self._called(source)
        found = called_function(source, call)
        if isinstance(found, types.FunctionType):
            return found
        written, root = source.segment(self.call), call.func
        while isinstance(root, ast.Attribute):
            root = root.value
        if isinstance(root, ast.Name) and root.id in local_names(source):
            why = f"{root.id!r} is defined inside the function"
        elif found is None:
            why = "what it calls cannot be looked up by its name"
        else:
            why = "what it calls is no Python function"
        raise SourceError(f"{describe(source.function)}: `{written}`: {why}")

    def text_of_method(self, helper: FunctionSource, changes: Sequence[Operation] = ()) -> str:
        """The text of the new method, with all of ``changes``; by default with its own."""
        receiver = "self" if "self" not in used_names(helper) else "the_module"
        first = receiver_parameter(helper)
        if first is None:
            raise SourceError(f"{describe(helper.function)} has no positional parameter")
        start = offsets(helper, first)[0]
        splices = [Splice(start, start, f"{receiver}, ")]
        for change in dict.fromkeys(changes or (self.change,)):
            splices += change.splices_for(helper, receiver)
        return splice(helper.text, splices)

    def _called(self, source: FunctionSource) -> ast.Call:
        node = source.find(self.call)
        if not isinstance(node, ast.Call) or not isinstance(node.func, (ast.Name, ast.Attribute)):
            raise SourceError(f"`{source.segment(self.call)}` is not a call of a function by its name")
        return node


@dataclass(frozen=True)
class CallMethod(Operation):
    """Call a function named by its class as a method of the module that it is passed.

    ``A.forward(self, x)`` becomes ``self.forward_of_A(x)``, looked up on the object, which has the edited function.

    Attributes:
        owner: the class whose function is called, as ``module.Class``; ``attribute`` is its name there.
        method: the receiver's name for it; a new one if ``attribute`` is overridden.
    """

    kind: ClassVar[str] = "call-method"
    owner: str
    attribute: str
    method: str

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        found = class_call(source, source.find(self.call))
        if found is None:
            raise SourceError(f"`{source.segment(self.call)}` does not give a function of a class its module")
        if not self.method.isidentifier():
            raise PlanError(f"{self.method!r} is no name of a method")
        yield from found.as_method(source, self.method)


def around(source: FunctionSource, target: Span, operand: int, before: str, after: str) -> Iterator[Splice]:
    """Put text around an operand; around the value of an expression it stands outside of what others put there."""
    start, stop = offsets(source, operand_of(source, target, operand))
    outermost = 2 if operand == RESULT else 0
    yield Splice(start, start, before, order=-outermost)
    yield Splice(stop, stop, after, order=outermost)

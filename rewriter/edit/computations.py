"""Operations that compute a value from other values of the same function than those that its expression reads.

``p = torch.sigmoid(x)``, and later ``torch.log(p)``: to compute the logarithm from ``x``, a name for ``x`` is kept
where the function has it, and what was computed from ``p`` is computed from that name. Like all operations they are
positions and names; no text comes from the plan.
"""

from __future__ import annotations

import ast
import keyword
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rewriter.edit.names import submodule, used_names
from rewriter.edit.operands import RESULT, operand_of
from rewriter.edit.operations import LayerOperation, Redirect, RedirectBinary, around
from rewriter.edit.source import FunctionSource, Span, Splice, describe, offsets
from rewriter.errors import PlanError, SourceError


@dataclass(frozen=True)
class Keep(LayerOperation):
    """Give a name to an operand of an expression: ``f(g(x))`` becomes ``f((name := g(x)))``.

    :data:`~rewriter.edit.operands.RESULT` stands for the value of the expression: ``(name := f(x))``.

    Attributes:
        name: a name that the function does not use.
    """

    kind: ClassVar[str] = "keep"
    name: str

    def splices_for(self, source: FunctionSource, receiver: str) -> Iterator[Splice]:
        taken = used_names(source) | {receiver}
        if not self.name.isidentifier() or keyword.iskeyword(self.name) or self.name in taken:
            raise PlanError(f"{describe(source.function)}: {self.name!r} is no free name of a variable")
        yield from around(source, self.call, self.operand, f"({self.name} := ", ")")


@dataclass(frozen=True)
class Given:
    """A value that a computation is given.

    Attributes:
        name: the variable that holds it; empty if it is an operand of an expression within the one that is replaced.
        call, operand: that expression, and the number of its operand; not used with a name.
    """

    name: str
    call: Span
    operand: int

    def node(self, source: FunctionSource) -> ast.expr:
        """The operand's expression.

        Raises:
            SourceError: there is none.
        """
        return operand_of(source, self.call, self.operand)


@dataclass(frozen=True)
class Compute(LayerOperation):
    """Let a submodule compute an expression from other values.

    With the operand :data:`~rewriter.edit.operands.RESULT` the whole expression is replaced: ``f(g(x), y)`` becomes
    ``self.module(x, z)``. With another operand the one value takes its place, and the other arguments stay as written:
    ``f(g(x), y)`` becomes ``self.module(x, y)``.

    Attributes:
        module: the submodule.
        values: what it is given; those within the expression in the order of the text.
    """

    kind: ClassVar[str] = "compute"
    module: str
    values: tuple[Given, ...]

    def splices_for(self, source: FunctionSource, receiver: str) -> Iterator[Splice]:
        if self.operand == RESULT:
            whole = offsets(source, source.find(self.call))
            called = submodule(receiver, self.module)
            yield from _replaced(source, whole, self.values, f"{called}(", ")")
            return
        if len(self.values) != 1:
            raise PlanError("a computation that keeps its other arguments has one value")
        replaced = operand_of(source, self.call, self.operand)
        redirect = RedirectBinary if isinstance(source.find(self.call), ast.BinOp) else Redirect
        yield from redirect(self.call, self.operand, self.module).splices_for(source, receiver)
        yield from _replaced(source, offsets(source, replaced), self.values, "", "")


def _replaced(
    source: FunctionSource, whole: tuple[int, int], values: Sequence[Given], before: str, after: str
) -> Iterator[Splice]:
    """Replace everything of ``whole`` but the text of ``values``; what other operations do within those stays."""
    position, text = whole[0], before
    for number, value in enumerate(values):
        text += ", " if number else ""
        if value.name:
            if not value.name.isidentifier():
                raise PlanError(f"{value.name!r} is no name of a variable")
            text += value.name
            continue
        start, stop = offsets(source, value.node(source))
        if start < position or stop > whole[1]:
            raise SourceError(f"{describe(source.function)}: the values are not in the order of the text")
        yield Splice(position, start, text, order=-1)
        position, text = stop, ""
    yield Splice(position, whole[1], text + after, order=1)

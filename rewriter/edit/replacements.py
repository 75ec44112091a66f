"""Edits that let one layer stand for several operations of one kind, in methods and in the helpers that they call."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import fx

from rewriter.analysis.arguments import argument_index
from rewriter.edit.data_edits import making
from rewriter.edit.edits import Edit
from rewriter.edit.expression import Expression
from rewriter.edit.expressions import direct, issued_by_no_code
from rewriter.edit.new_layer import LayerName, NewLayer
from rewriter.edit.operands import RESULT, operands
from rewriter.edit.operations import Operation, Remove, RemoveBinary, Replace, Wrap
from rewriter.edit.positions import Position, positions
from rewriter.edit.redirects import Redirects, checked
from rewriter.edit.source import Span, code_span
from rewriter.reasons import Refused


@dataclass(frozen=True)
class _Request:
    """What is done at the expression of an operation: ``make`` gets the expression and the name of the layer."""

    node: fx.Node
    where: Position
    make: Callable[[Expression, str], Operation]


class Replacements(Redirects):
    """Makes edits of several operations together; see :class:`~rewriter.edit.editor.Editor`."""

    @making
    def replace(
        self, operands: Mapping[fx.Node, fx.Node], layer: LayerName, *, name: str = "", **options: Any
    ) -> list[Edit]:
        """Let a new layer stand for operations, of each of which it gets one operand: ``x / t`` → ``self.layer(x)``.

        A module gets one layer for all of its operations. A line may run several times if all that it issues is
        replaced. Where a helper function issues an operation, the method that calls it gets a copy of the function.

        Args:
            operands: the operand of each operation that the layer gets.
            layer, name, options: as for :meth:`insert_before`.

        Raises:
            Refused: an operation is issued by nested helper functions, in code without source, or by a line that issues
                others too; or the text does not show the operand.
        """
        requests = [
            _Request(call, where := direct(call), partial(self._replacing, where, call, kept))
            for call, kept in operands.items()
        ]
        return self._together(requests, NewLayer(layer, name, options))

    @making
    def insert_behind(
        self,
        producers: Collection[fx.Node],
        layer: LayerName,
        *,
        removed: Mapping[fx.Node, fx.Node],
        name: str = "",
        **options: Any,
    ) -> list[Edit]:
        """Pass the results of ``producers`` through a new layer, and put one operand in the place of others.

        Args:
            producers: operations.
            layer, name, options: as for :meth:`insert_before`; a module gets one layer, see :meth:`replace`.
            removed: operations that go, with the operand that stays.

        Raises:
            Refused: as for :meth:`replace`.
        """
        requests = [_Request(node, self._giving(node), _wrapping) for node in producers]
        requests += [
            _Request(call, where := direct(call), partial(self._removing, where, call, kept))
            for call, kept in removed.items()
        ]
        return self._together(requests, NewLayer(layer, name, options))

    def is_assignment(self, call: fx.Node) -> bool:
        """Whether an operation in place is written as a statement, ``x /= y``; False if its text is not known."""
        where = direct(call)
        try:
            source = self._at.expression(where).node
        except Refused:
            return False
        return isinstance(source, ast.AugAssign)

    def _together(self, requests: Sequence[_Request], new: NewLayer) -> list[Edit]:
        among = {request.node for request in requests}
        children: dict[str, str] = {}
        edits = dict.fromkeys(self._carried_out(request, new, children, among) for request in requests)
        return [*(new.child(path, name) for path, name in children.items()), *edits]

    def _carried_out(
        self, request: _Request, new: NewLayer, children: dict[str, str], among: Collection[fx.Node]
    ) -> Edit:
        function = self._function(request.where, request.node, among=among)
        if function.path not in children:
            children[function.path] = self._names.take(function.path, new.name)
        return function.edit(request.make(function.expression, children[function.path]))

    def _giving(self, node: fx.Node) -> Position:
        """The innermost expression outside torch's own modules whose value is what ``node`` gives."""
        for position in self._at.giving(node):
            if not self._at.is_of_torch(position):
                return position
        raise issued_by_no_code(node)

    def _replacing(self, where: Position, call: fx.Node, kept: fx.Node, expression: Expression, child: str) -> Replace:
        return checked(Replace(expression.span, self._number(where, expression, call, kept), child), expression)

    def _removing(self, where: Position, call: fx.Node, kept: fx.Node, expression: Expression, _: str) -> Operation:
        number = self._number(where, expression, call, kept)
        if isinstance(expression.node, (ast.BinOp, ast.AugAssign)):
            return RemoveBinary(expression.span, number)
        return Remove(expression.span, number)

    def _number(self, where: Position, expression: Expression, call: fx.Node, kept: fx.Node) -> int:
        """Which operand of the expression is ``kept``."""
        index = argument_index(call, kept)
        if isinstance(expression.node, ast.AugAssign) and index == 0:
            return 0
        if not isinstance(expression.node, ast.BinOp):
            return self._at.operand_number(where, expression, call, kept)
        others = [argument for argument in call.args if isinstance(argument, fx.Node) and argument is not kept]
        if index is not None and (others or isinstance(expression.node.op, ast.Div)):
            return index
        found = operand_that_is(expression, where, kept)  # of `2 * x` and `x * 2` the recording is the same
        if found is None:
            raise expression.takes_no_plain_argument()
        return found


def _wrapping(expression: Expression, child: str) -> Wrap:
    if RESULT not in operands(expression.node):
        raise expression.takes_no_plain_argument()
    return Wrap(expression.span, RESULT, child)


def operand_that_is(expression: Expression, where: Position, value: fx.Node) -> int | None:
    """Which operand of a binary operation with a number is the tensor ``value``; None if the text does not show it."""
    node = expression.node
    assert isinstance(node, ast.BinOp)
    sides = (node.left, node.right)
    numbers = [_is_number(side) for side in sides]
    if sum(numbers) == 1:
        return numbers.index(False)
    issued = [
        span
        for position in positions(value)
        if position.frame.invocation == where.frame.invocation
        and (span := code_span(position.frame.code, position.frame.instruction, expression.source.first_line))
    ]
    made = [any(_contains(given, span) for given in _values(expression, side) for span in issued) for side in sides]
    return made.index(True) if sum(made) == 1 else None


def _is_number(side: ast.expr) -> bool:
    """Whether an expression consists of numbers alone."""
    return all(
        isinstance(part, (ast.Constant, ast.BinOp, ast.UnaryOp, ast.operator, ast.unaryop)) for part in ast.walk(side)
    )


def _values(expression: Expression, side: ast.expr) -> Iterator[Span]:
    """The spans of an operand, and of what is assigned to it if it is a name."""
    yield expression.source.span(side)
    for node in ast.walk(expression.source.tree):
        targets = node.targets if isinstance(node, ast.Assign) else ()
        if isinstance(side, ast.Name) and any(isinstance(t, ast.Name) and t.id == side.id for t in targets):
            yield expression.source.span(node.value)  # type: ignore[attr-defined]


def _contains(outer: Span, inner: Span) -> bool:
    return (outer.line, outer.column) <= (inner.line, inner.column) and (inner.end_line, inner.end_column) <= (
        outer.end_line,
        outer.end_column,
    )

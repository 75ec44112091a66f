"""Edits that let one layer stand for several operations of one kind, in methods and in the helpers that they call."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import fx

from rewriter.analysis.arguments import argument_index
from rewriter.edit.data_edits import making
from rewriter.edit.edits import Edit
from rewriter.edit.expression import Expression, expression_at
from rewriter.edit.expressions import direct, issued_by_no_code
from rewriter.edit.new_layer import LayerName, NewLayer
from rewriter.edit.operations import RESULT, Adopt, Operation, Remove, RemoveBinary, Replace, Wrap, operands
from rewriter.edit.positions import Position, positions
from rewriter.edit.redirects import Redirects
from rewriter.edit.source import Span, code_span, read_source
from rewriter.errors import SourceError
from rewriter.reasons import Reason, Refused


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
        self._at.repeated.refuse(request.where, request.node, among)
        try:
            expression = self._at.expression(request.where)
        except Refused as refused:
            outer = self._calling(request)
            if refused.reason is not Reason.HELPER_FUNCTION or outer is None:
                raise
            expression = self._at.expression(outer)
            return expression.edit(self._adopted(request, expression, self._child(expression, new, children)))
        return expression.edit(request.make(expression, self._child(expression, new, children)))

    def _child(self, expression: Expression, new: NewLayer, children: dict[str, str]) -> str:
        if expression.path not in children:
            children[expression.path] = self._names.take(expression.path, new.name)
        return children[expression.path]

    def _calling(self, request: _Request) -> Position | None:
        """The expression that calls the function which issues an operation, in the same call of a module."""
        outer = next((position for position in positions(request.node) if not position.direct), None)
        return outer if outer is not None and request.where.direct and outer.call is request.where.call else None

    def _adopted(self, request: _Request, expression: Expression, child: str) -> Adopt:
        """The change of ``request`` in the helper function that ``expression`` calls."""
        frame = request.where.frame
        try:
            adopt = Adopt(expression.span, 0, "", "", Remove(expression.span, 0))
            helper = adopt.helper(expression.source)
            if helper.__code__ is not frame.code:
                raise SourceError(
                    f"the operation is issued by the function {frame.code.co_qualname}, which is decorated"
                )
            source = read_source(helper)
            inside = expression_at(expression.path, type(None), frame.code.co_name, source, frame)
            change = request.make(replace(inside, in_method=False), child)
            key = (expression.source.digest, expression.method, expression.span, source.digest)
            method = self._names.take_once(expression.path, frame.code.co_name.lstrip("_"), key)
            adopt = replace(adopt, method=method, digest=source.digest, change=change)
            adopt.text_of_method(source)
            return adopt
        except SourceError as error:
            raise Refused(Reason.HELPER_FUNCTION, str(error)) from error

    def _giving(self, node: fx.Node) -> Position:
        """The innermost expression outside torch's own modules whose value is what ``node`` gives."""
        for position in self._at.giving(node):
            if not self._at.is_of_torch(position):
                return position
        raise issued_by_no_code(node)

    def _replacing(self, where: Position, call: fx.Node, kept: fx.Node, expression: Expression, child: str) -> Replace:
        made = Replace(expression.span, self._number(where, expression, call, kept), child)
        try:
            tuple(made.splices_for(expression.source, "self"))
        except SourceError as error:
            raise Refused(Reason.NOT_MOVABLE, str(error)) from error
        return made

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

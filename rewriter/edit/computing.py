"""The edit that computes a value by a layer from other values of the same function than its expression reads."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from rewriter.analysis.naming import name_of
from rewriter.edit.bindings import binding, outside, unchanged
from rewriter.edit.computations import Compute, Given, Keep
from rewriter.edit.data_edits import making
from rewriter.edit.edits import Edit
from rewriter.edit.expression import Expression
from rewriter.edit.expressions import direct
from rewriter.edit.names import local_names, receiver_parameter, used_names
from rewriter.edit.new_layer import LayerName, NewLayer
from rewriter.edit.operands import RESULT, operands
from rewriter.edit.positions import Position, positions
from rewriter.edit.redirects import Function, Redirects, checked
from rewriter.edit.source import code_span
from rewriter.errors import SourceError
from rewriter.reasons import Reason, Refused
from rewriter.tracing.facts import facts


class Computing(Redirects):
    """Makes edits that replace what is computed; see :class:`~rewriter.edit.editor.Editor`."""

    @making
    def compute_instead(
        self,
        call: fx.Node,
        layer: LayerName,
        *values: fx.Node,
        operand: fx.Node | None = None,
        around: str | None = None,
        all_calls: bool = False,
        name: str = "",
        references: dict[str, str] | None = None,
        **options: Any,
    ) -> list[Edit]:
        """Let a new layer compute the result of ``call`` from other ``values`` of the same function.

        ``torch.log(torch.sigmoid(x))`` becomes ``self.layer(x)``. A value of an earlier expression gets a name there:
        ``p = torch.sigmoid(f(x))``, ``torch.log(p)`` become ``p = torch.sigmoid((layer_input := f(x)))``,
        ``self.layer(layer_input)``; unless it is in a variable that has it still. Values may be what another operation
        made or reads, in the same method or helper function.

        Args:
            call: the operation; a call, or a binary operation such as ``x - y``.
            layer: the new layer, which is called with the values.
            values: what it gets, each of them something that ``call`` is computed from.
            operand: an input of ``call`` that the one value takes the place of; the layer then gets the other arguments
                as they are written: ``f(p, weight=w)`` becomes ``self.layer(x, weight=w)``. None: all are replaced.
            around: the path of a module whose result is that of ``call``: its call is replaced, with all that it does.
            all_calls: whether it may act on several runs of the expression: in a loop, or a method called twice.
            name, references, options: as for :meth:`~rewriter.edit.editor.Editor.insert_before`.

        Raises:
            Refused: a value need not have been computed whenever ``call`` is; what lies between the two depends on a
                condition, is written to in place or does more than compute; or the function cannot be edited.
        """
        new = NewLayer(layer, name, options, references)
        where = direct(call) if around is None else self._call_of(around, call)
        function = self._function(where, call, all_calls=all_calls)
        expression = function.expression
        number = RESULT
        if operand is not None:
            number = self._at.operand_number(where, expression, call, operand)
            self._refuse_unknown_function(expression, call, number)
        elif RESULT not in operands(expression.node):
            raise expression.takes_no_plain_argument()
        search = _Search(self, call, where, function, operands(expression.node)[number], new.name)
        given, keeps = search.of(values, operand)
        child = self._names.take(function.path, new.name)
        compute = checked(Compute(expression.span, number, child, tuple(given)), expression)
        return [new.child(function.path, child), *map(function.edit, (*keeps, compute))]

    def _call_of(self, path: str, node: fx.Node) -> Position:
        """The call of the module at ``path``, whose result is ``node``, by its path of attributes."""
        own = (call for call in facts(node)["call"].chain() if call.path == path)
        frames = next((call.frames for call in own if call.outputs == [node]), ())
        where = next((position for position in self._at.giving(node) if (position.frame,) == frames[:1]), None)
        if where is None:
            raise Refused(Reason.NO_SOURCE, f"no method calls {path!r} for this alone")
        if not self._at.calls_module_at(self._at.expression(where), path):
            raise Refused(Reason.NOT_MOVABLE, f"that {path!r} is called is decided at run time")
        module = self._names.module(path)
        if module._forward_hooks or module._forward_pre_hooks:
            raise Refused(Reason.OTHER_READERS, f"a forward hook is on {path!r}, which would not be called")
        return where


class _Search:
    """Finds how the values of one computation can be read where it is made, on every path through the function.

    It goes back from the computation through the text: an operand is the expression of the operation that made it, or a
    variable to which that was assigned, and nothing else on any path. So what ran once holds for all runs.

    Args:
        editor: the editor that makes the edit.
        call, where: the operation, and the position of its expression.
        function: the function of the expression.
        replaced: the part of the expression that is replaced.
        name: of the layer, after which variables are named.
    """

    def __init__(
        self, editor: Computing, call: fx.Node, where: Position, function: Function, replaced: ast.expr, name: str
    ) -> None:
        self._at, self._names = editor._at, editor._names
        self._call, self._where, self._function, self._replaced = call, where, function, replaced
        self._source, self._name = function.expression.source, name
        self._readings: dict[fx.Node, list[tuple[Expression, int]]] = {}
        self._issued: set[ast.AST] = {function.expression.node}
        self._followed: set[ast.AST] = set()
        self._values: set[fx.Node] = set()
        self._way: set[fx.Node] = set()

    def of(self, values: Sequence[fx.Node], operand: fx.Node | None) -> tuple[list[Given], list[Keep]]:
        """How each value is given, and the names that have to be kept for that.

        Args:
            values: what is given.
            operand: the input of the computation that is replaced; None for all of it.
        """
        self._values = set(values)
        self._way = {node for value in values for node in self._at.between(value, self._call)} | self._values
        sources = self._at.sources(self._call) if operand is None else [operand]
        for source in sources:
            if source in self._way:
                self._trace(self._function.expression, self._where, self._call, source)
        found = [self._given(value) for value in values]
        inner = [one.node(self._source) for one, _ in found if not one.name]
        self._refuse_more_than_values(inner)
        return [one for one, _ in found], list(dict.fromkeys(keep for _, keep in found if keep is not None))

    def _trace(self, reading: Expression, where: Position, user: fx.Node, node: fx.Node) -> None:
        """Follow the text of an operand of ``reading``, which passes ``node`` to ``user``, back to the values."""
        number = self._at.operand_number(where, reading, user, node)
        operand = operands(reading.node)[number]
        self._followed.add(operand)
        if node in self._values:
            self._readings.setdefault(node, []).append((reading, number))
            return
        position = next((p for p in self._own(node) if p.direct), None)
        if position is None:
            raise Refused(Reason.DIFFERENT_METHODS, f"{name_of(node)} lies between, in another function")
        made = self._expression(position)
        self._follow(operand, made.node, node)
        self._issued.add(made.node)
        self._refuse_other_readers(made.node, node)
        for source in self._at.sources(node):
            if source in self._way:
                self._trace(made, position, node, source)
        self._refuse_other_reads(made.node)

    def _follow(self, operand: ast.expr, goal: ast.AST, node: fx.Node) -> None:
        """Refuse an operand that need not be the value of the expression ``goal``, which made ``node``."""
        steps = 0
        while operand is not goal:
            assigned = binding(self._source, operand.id, operand) if isinstance(operand, ast.Name) else None
            value = self._assigned(assigned) if assigned is not None else None
            if value is None or (steps := steps + 1) > _MOST_STEPS:
                text, made = ast.unparse(operand), ast.unparse(goal)
                raise Refused(Reason.NOT_MOVABLE, f"it is not certain that `{text}` is the result of `{made}`")
            operand = value

    def _assigned(self, target: ast.AST) -> ast.expr | None:
        """What is assigned to a variable by itself."""
        for node in ast.walk(self._source.tree):
            if isinstance(node, ast.Assign) and any(each is target for each in node.targets):
                return node.value
            if isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.target is target:
                return node.value
        return None

    def _given(self, value: fx.Node) -> tuple[Given, Keep | None]:
        """How a value is given: as the text of an operand, in a variable, or kept where it is read."""
        readings = self._readings.get(value, [])
        if not readings:
            raise Refused(Reason.DIFFERENT_METHODS, f"{name_of(self._call)} is not computed from {name_of(value)} here")
        self._refuse_writes(value)
        (first, number), *others = readings
        operand = operands(first.node)[number]
        for other, other_number in others:
            if not self._is_same(operand, operands(other.node)[other_number]):
                text = ast.unparse(operands(other.node)[other_number])
                detail = f"it is not certain that `{ast.unparse(operand)}` and `{text}` are equal"
                raise Refused(Reason.NOT_MOVABLE, detail)
        inside = next((each for each in readings if self._is_inside(each[0].node)), None)
        if inside is not None:
            return Given("", inside[0].span, inside[1]), None
        if isinstance(operand, ast.Name) and unchanged(
            self._source, operand.id, operand, self._function.expression.node
        ):
            return Given(operand.id, first.span, number), None
        what = first.span, number
        taken = used_names(self._source) | {"self"}
        free = self._names.variable(taken, f"{self._name}_input", self._source.function, what)
        return Given(free, *what), Keep(*what, free)

    def _is_same(self, one: ast.expr, other: ast.expr) -> bool:
        """Whether two operands read the same variable, which is unchanged in between."""
        if one is other:
            return True
        if not (isinstance(one, ast.Name) and isinstance(other, ast.Name) and one.id == other.id):
            return False
        return any(unchanged(self._source, one.id, *pair) for pair in ((one, other), (other, one)))

    def _is_inside(self, node: ast.AST) -> bool:
        own = node is self._function.expression.node
        return own or any(inner is node for inner in ast.walk(self._replaced))

    def _own(self, node: fx.Node) -> Iterator[Position]:
        """The positions of ``node`` in the call of the function that makes the computation."""
        found = positions(node) if facts(node)["call"] is not None else ()
        return (position for position in found if position.frame.invocation == self._where.frame.invocation)

    def _expression(self, position: Position) -> Expression:
        """An expression of the function."""
        span = code_span(position.frame.code, position.frame.instruction, self._source.first_line)
        if span is None or position.frame.code is not self._where.frame.code:
            raise Refused(Reason.DIFFERENT_METHODS, "what lies between is in another function")
        try:
            return replace(self._function.expression, span=span, node=self._source.find(span))
        except SourceError as error:
            raise Refused(Reason.NO_SOURCE, str(error)) from error

    def _refuse_writes(self, value: fx.Node) -> None:
        """Refuse a value whose memory is written to before the computation."""
        nodes = list(value.graph.nodes)
        for node in nodes[nodes.index(value) + 1 : nodes.index(self._call)]:
            if facts(value)["storage"] in facts(node)["writes"]:
                raise Refused(Reason.WRITTEN_IN_PLACE, f"{name_of(node)} writes to {name_of(value)} in between")

    def _refuse_other_readers(self, made: ast.AST, node: fx.Node) -> None:
        """Refuse if the call of a module would no longer be made that a hook observes."""
        module = self._at.module_called(node)
        if module is not None and (module._forward_hooks or module._forward_pre_hooks) and self._is_inside(made):
            raise Refused(Reason.OTHER_READERS, f"a forward hook is on {name_of(node)}, which would not be called")

    def _refuse_more_than_values(self, inner: Sequence[ast.AST]) -> None:
        """Refuse to replace text that does more than compute the value."""
        for part in outside(self._replaced, inner):
            if isinstance(part, _ACTS) or (isinstance(part, ast.Call) and part not in self._issued):
                text = ast.unparse(part)
                raise Refused(Reason.NOT_MOVABLE, f"`{text}` may do more than compute the value that is replaced")
        if self._replaced is self._function.expression.node:
            self._refuse_other_reads(self._replaced)

    def _refuse_other_reads(self, node: ast.AST) -> None:
        """Refuse to leave out a value that the text reads besides: it may be another one when the function runs."""
        own = receiver_parameter(self._source) if self._function.expression.in_method else None
        bound = local_names(self._source) | ({own.arg} if own is not None else set())
        called = {inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call)}
        functions = [each for each in called if not _is_method(each, self._followed)]
        for part in outside(node, [*(self._followed - {node}), *functions]):
            if isinstance(part, ast.Name) and part.id in bound:
                text = ast.unparse(node)
                raise Refused(Reason.NOT_MOVABLE, f"`{text}` reads `{part.id}` too, which would no longer be read")


def _is_method(function: ast.expr, followed: set[ast.AST]) -> bool:
    """Whether a function is a method of an operand, which is looked at by itself."""
    return isinstance(function, ast.Attribute) and any(inner in followed for inner in ast.walk(function))


_MOST_STEPS = 20

_ACTS = (
    ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr, ast.IfExp, ast.BoolOp, ast.Lambda,
    ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip
"""Expressions that may assign, or whose parts need not be evaluated."""

"""From a place in the graph to the edit of the model that changes it, by the least invasive means that is right.

Passes say *move this call before that operation*, *remove this call*, *put a layer before that operation*; here it is
decided whether that is a change of one module's class or of the source of the method that owns the dataflow.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar, cast

from torch import fx

from rewriter.analysis.arguments import argument_index
from rewriter.analysis.interference import interference
from rewriter.edit.edits import AddBehaviour, AddModule, Edit
from rewriter.edit.expression import Expression, expression_at, outside_the_class
from rewriter.edit.expressions import Expressions
from rewriter.edit.names import called_function
from rewriter.edit.operations import (
    RECEIVER,
    RESULT,
    Adopt,
    Move,
    Operation,
    Redirect,
    Remove,
    Wrap,
    operands,
    why_not_movable,
)
from rewriter.edit.positions import Position, positions
from rewriter.edit.source import read_source
from rewriter.errors import SourceError
from rewriter.reasons import Reason, Refused
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.kinds import is_in_place
from rewriter.tracing.trace import Trace


@once
def placement(flow: Dataflow, trace: Trace) -> Placement:
    """Turns operations of the training run into edits; all passes share one, so that they give out different names."""
    return Placement(trace.model, trace.train, interference(flow, trace))


_Editing = TypeVar("_Editing", bound=Callable[..., list[Edit]])


def _reaching(method: _Editing) -> _Editing:
    """Add to what ``method`` returns the edits of methods that call what is edited by the name of its class."""

    @functools.wraps(method)
    def edits(self: Placement, *args: Any, **kwargs: Any) -> list[Edit]:
        return self._explicit_calls.followed(method(self, *args, **kwargs))

    return cast(_Editing, edits)


class Placement(Expressions):
    """Turns operations of one recording into edits of the model."""

    @_reaching
    def move_before(self, call: fx.Node, consumer: fx.Node, operand: fx.Node) -> list[Edit]:
        """Move the call ``call`` so that it is applied to ``operand`` where ``consumer`` reads it.

        Raises:
            Refused: the two are not in the same function, or the call cannot be moved within it.
        """

        def number(target: Position, expression: Expression) -> int:
            found = self._operand_number(target, expression, consumer, operand)
            if not target.direct:
                self._refuse_others_inside(target, consumer, operand)
            return found

        return self._move(call, consumer, positions(consumer), number)

    @_reaching
    def move_after(self, call: fx.Node, producer: fx.Node) -> list[Edit]:
        """Move the call ``call`` so that it is applied to what ``producer`` gives.

        Raises:
            Refused: the two are not in the same function, or the call cannot be moved within it.
        """
        return self._move(call, producer, self._giving(producer), lambda _, expression: _result_of(expression))

    def _move(
        self,
        call: fx.Node,
        beside: fx.Node,
        targets: Iterator[Position],
        number: Callable[[Position, Expression], int],
    ) -> list[Edit]:
        """Move ``call`` to the operand ``number`` of the first of the ``targets``, which lead to ``beside``."""
        where = next((p for p in positions(call) if p.direct), None)
        for target in targets:
            if where is None or target.frame.invocation != where.frame.invocation:
                continue
            self._repeated.refuse(where, call)
            self._repeated.refuse(target, beside)
            moved, expression = self._expression(where), self._expression(target)
            operand = number(target, expression)
            why_not = _why_not_movable(moved.source, moved.span, 0, expression.span)
            if why_not is not None:
                raise Refused(Reason.NOT_MOVABLE, f"`{moved.source.segment(moved.span)}` cannot be moved: {why_not}")
            return [moved.edit(Move(moved.span, 0, expression.span, operand))]
        raise Refused(
            Reason.DIFFERENT_METHODS, f"{call.meta['owner']} and {beside.meta['owner']} are not in one method"
        )

    @_reaching
    def remove(self, call: fx.Node) -> list[Edit]:
        """Replace the call by its data input, in the source of the method that makes it.

        Raises:
            Refused: the call is made in a loop, by a helper function, in a method without source, or the text does not
                show which of its arguments the data input is (``self.drop(*args)``).
        """
        where = _direct(call)
        self._repeated.refuse(where, call)
        expression = self._expression(where)
        if 0 not in operands(expression.node):
            raise expression.takes_no_plain_argument()
        return [expression.edit(Remove(expression.span, 0))]

    @_reaching
    def insert_before(
        self, consumer: fx.Node, operand: fx.Node, name: str, layer: str, behaviour: str, **add: Any
    ) -> list[Edit]:
        """Pass ``operand`` through a new layer where ``consumer`` reads it.

        The method that calls ``consumer`` is edited. Where it cannot be (a container of torch, a loop, no source), a
        module that is called once gets the layer as a child and ``behaviour``, which applies it to the input. That
        makes a class of its own for the module, and tools that ask for exactly ``nn.Conv2d`` (quantization-aware
        training) then pass it over: so it comes last.

        Raises:
            Refused: neither is possible.
        """
        try:
            where = _direct(consumer)
            expression = self._users_own(where, consumer)
            number = self._operand_number(where, expression, consumer, operand)
            return self._wrap(expression, number, name, layer, **add)
        except Refused as refused:
            if self._may_behave(consumer):
                return self._behave(str(consumer.target), name, layer, behaviour, **add)
            if refused.reason is not Reason.HELPER_FUNCTION:
                raise
            return self.insert_before_helper(consumer, operand, name, lambda _: {"layer": layer, **add})

    @_reaching
    def insert_after(
        self, producer: fx.Node, join: fx.Node, name: str, layer: str, behaviour: str, **add: Any
    ) -> list[Edit]:
        """Pass what ``producer`` gives through a new layer, in the method that issues ``join`` if it can be there.

        As in :meth:`insert_before`, a module that is called once gets the layer as a child where no method can be
        edited.

        Raises:
            Refused: neither is possible.
        """
        method = next((position.frame.invocation for position in positions(join)), None)
        refusals: list[Refused] = []
        for where in sorted(self._giving(producer), key=lambda position: position.frame.invocation != method):
            try:
                expression = self._users_own(where, producer)
                return self._wrap(expression, _result_of(expression), name, layer, **add)
            except Refused as refused:
                refusals.append(refused)
        if self._may_behave(producer):
            return self._behave(str(producer.target), name, layer, behaviour, **add)
        raise refusals[0] if refusals else _issued_by_no_code(producer)

    @_reaching
    def insert_before_helper(
        self, consumer: fx.Node, operand: fx.Node, name: str, add: Callable[[fx.Node], dict[str, Any] | None]
    ) -> list[Edit]:
        """Pass ``operand`` through a new layer where it is handed to the function or module that leads to ``consumer``.

        Args:
            consumer, operand: an operation of a helper function, and what it reads.
            name: the layer's name.
            add: what layer it is if it reads this node, of which ``operand`` may be a view; None for none.

        Raises:
            Refused: that is in no method that can be edited, or it does more with it than to hand it on.
        """
        values = list(self._same_values(operand))
        for where in positions(consumer):
            given = next((value for value in values if value in where.arguments), None)
            layer = None if where.direct or given is None else add(given)
            if layer is None:
                continue
            try:
                expression = self._users_own(where, consumer)
                self._refuse_others_inside(where, consumer, operand)
                number = self._operand_number(where, expression, consumer, operand)
                return self._wrap(expression, number, name, **layer)
            except Refused:
                continue
        raise outside_the_class(_direct(consumer).frame.code)

    def _users_own(self, where: Position, node: fx.Node) -> Expression:
        """The expression at ``where``, which leads to ``node``.

        Raises:
            Refused: it runs several times, or is no code of the user's.
        """
        self._repeated.refuse(where, node)
        expression = self._expression(where)
        if expression.owner.__module__.startswith("torch."):
            raise Refused(Reason.IN_A_LOOP, f"{expression.owner.__qualname__} of torch calls it")
        return expression

    def _may_behave(self, node: fx.Node) -> bool:
        """Whether ``node`` is a module that is called once, so that a behaviour acts nowhere else."""
        return node.op == "call_module" and self.calls_of(str(node.target)) == 1

    def _behave(self, path: str, name: str, layer: str, behaviour: str, **add: Any) -> list[Edit]:
        """Give the module at ``path`` a new layer, and the ``behaviour`` that applies it."""
        return [AddModule(path, self.free_name(path, name), layer, **add), AddBehaviour(path, behaviour)]

    def _wrap(self, expression: Expression, number: int, name: str, layer: str, **add: Any) -> list[Edit]:
        """Pass the operand ``number`` of an expression through a new layer."""
        child = self.free_name(expression.path, name)
        wrap = expression.edit(Wrap(expression.span, number, child))
        return [AddModule(expression.path, child, layer, **add), wrap]

    @_reaching
    def wrap_argument(
        self, call: fx.Node, argument: fx.Node | None, name: str, layer: str, **options: Any
    ) -> list[Edit]:
        """Pass the ``argument`` of an operation through a new layer; None is the first one, a sequence of tensors.

        Raises:
            Refused: the call is made in a loop, by a helper function, in code without source, it writes to the
                argument, or the argument cannot be told apart there.
        """
        where = _direct(call)
        self._repeated.refuse(where, call)
        expression = self._expression(where)
        if argument is not None and argument_index(call, argument) == 0 and is_in_place(call.target):  # type: ignore[arg-type]
            text = expression.source.segment(expression.span)
            raise Refused(Reason.IN_PLACE, f"`{text}` works in place: it would write to the new layer's result instead")
        number = 0 if argument is None else self._operand_number(where, expression, call, argument)
        if number not in operands(expression.node):
            raise expression.takes_no_plain_argument()
        return self._wrap(expression, number, name, layer, options=options)

    @_reaching
    def redirect(self, call: fx.Node, name: str, layer: str, **options: Any) -> list[Edit]:
        """Let a new layer stand for the function of the call ``call``; it gets the arguments as they are written.

        Where a helper function makes the call, the method that calls the helper gets a copy of it as a method.

        Raises:
            Refused: the call is made in a loop, by nested helper functions, or in code without source.
        """
        where = _direct(call)
        outer = next((position for position in positions(call) if not position.direct), None)
        self._repeated.refuse(where, call)
        try:
            expression = self._expression(where)
            child = self.free_name(expression.path, name)
            operation: Operation = self._redirection(where, expression, call, child)
            expression.edit(operation)
        except Refused as refused:
            if refused.reason is not Reason.HELPER_FUNCTION or outer is None or outer.call is not where.call:
                raise
            self._repeated.refuse(outer, call)
            expression = self._expression(outer)
            child = self.free_name(expression.path, name)
            operation = self._adoption(where, expression, call, child)
        return [AddModule(expression.path, child, layer, options), expression.edit(operation)]

    def _redirection(self, where: Position, expression: Expression, call: fx.Node, child: str) -> Redirect:
        number = self._operand_number(where, expression, call, call.all_input_nodes[0])
        redirect = Redirect(expression.span, number, child)
        if number != RECEIVER and called_function(expression.source, expression.node) != call.target:
            raise Refused(Reason.NOT_MOVABLE, "which function is called is decided at run time")
        try:
            tuple(redirect.splices_for(expression.source, "self"))
        except SourceError as error:
            raise Refused(Reason.NOT_MOVABLE, str(error)) from error
        return redirect

    def _adoption(self, where: Position, expression: Expression, call: fx.Node, child: str) -> Adopt:
        """Redirect the call inside the helper function that ``expression`` calls."""
        code = where.frame.code
        method = self.free_name(expression.path, code.co_name)
        try:
            adopt = Adopt(expression.span, 0, method, "", Redirect(expression.span, 0, child))
            helper = adopt.helper(expression.source)
            if helper.__code__ is not code:
                raise SourceError(f"the operation is issued by the function {code.co_qualname}, which is decorated")
            source = read_source(helper)
            inside = expression_at(expression.path, type(None), code.co_name, source, where.frame)
            inside = replace(inside, in_method=False)
            adopt = replace(adopt, digest=source.digest, change=self._redirection(where, inside, call, child))
            adopt.text_of_method(source)
            return adopt
        except SourceError as error:
            raise Refused(Reason.HELPER_FUNCTION, str(error)) from error

    def attribute_of(self, call: fx.Node, name: str, position: int) -> tuple[str, str] | None:
        """The module and the attribute that an argument of ``call`` is read from; None if it is no plain attribute."""
        try:
            expression = self._expression(_direct(call))
        except Refused:
            return None
        attribute = expression.attribute_given(name, position)
        return None if attribute is None else (expression.path, attribute)

    def _refuse_others_inside(self, position: Position, consumer: fx.Node, operand: fx.Node) -> None:
        """Refuse to change an argument of a call that does more with it than to hand it to ``consumer``."""
        values = [operand]
        while values[-1] not in position.arguments:
            values.append(self._flow.sources(values[-1])[0])
        inside = self._within[position.frame.invocation, position.frame.instruction]
        callee = next((c for c in consumer.meta["call"].chain() if c.parent is position.call), None)
        returned = callee.outputs if callee is not None and callee.frames[0] == position.frame else []
        self._interference.refuse_entering(values, consumer, inside, returned)

    @cached_property
    def _within(self) -> dict[tuple[int, int], set[fx.Node]]:
        """The operations that each expression led to in one call of its function."""
        found: dict[tuple[int, int], set[fx.Node]] = {}
        for node in self._recording.graph.nodes:
            for position in positions(node):
                found.setdefault((position.frame.invocation, position.frame.instruction), set()).add(node)
        return found


def _direct(node: fx.Node) -> Position:
    """The expression that issues ``node`` itself.

    Raises:
        Refused: it is issued by no Python code: a compiled extension, a builtin as ``forward``.
    """
    found = next((position for position in positions(node) if position.direct), None)
    if found is None:
        raise _issued_by_no_code(node)
    return found


def _result_of(expression: Expression) -> int:
    """The number of the expression's own value.

    Raises:
        Refused: it is a statement, as ``x += y``.
    """
    if RESULT not in operands(expression.node):
        raise expression.takes_no_plain_argument()
    return RESULT


def _issued_by_no_code(node: fx.Node) -> Refused:
    where = node.meta["owner"].path or "the model"
    return Refused(Reason.NO_SOURCE, f"the operation is not issued by Python code: {where} is compiled or builtin")


_why_not_movable = functools.lru_cache(maxsize=1024)(why_not_movable)
"""Of the blocks of a model, all that have one class ask the same."""

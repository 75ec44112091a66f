"""Turn a place in the graph into the edit of the model that changes it, by the least invasive correct means.

Passes say *move this call before that operation*, *remove this call*, *put a layer before that operation*; the editor
decides whether that changes one module's class or the source of the method that owns the dataflow.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import fx

from rewriter.analysis.arguments import argument_index
from rewriter.edit.computing import Computing
from rewriter.edit.data_edits import making
from rewriter.edit.edits import Edit
from rewriter.edit.expression import Expression, outside_the_class
from rewriter.edit.expressions import direct, issued_by_no_code
from rewriter.edit.moving import why_not_movable
from rewriter.edit.new_layer import LayerName, NewLayer
from rewriter.edit.operands import RESULT, operands
from rewriter.edit.operations import Move, Remove, RemoveBinary, Wrap, WrapTogether
from rewriter.edit.positions import Position, positions
from rewriter.edit.replacements import Replacements
from rewriter.reasons import Reason, Refused
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import is_in_place


class Editor(Replacements, Computing):
    """Makes the edits of one place.

    Each method records its edits in :attr:`edits`, or refuses and makes none. A layer is given by its class or its
    registered name; ``options`` are those of its constructor.

    Args:
        expressions: the expressions of the recording that the place is in.
        names: unused names for added modules.

    Attributes:
        edits: the edits made so far, in order.
    """

    def calls_of(self, path: str) -> int:
        """How often the module at ``path`` was called, under any of its names."""
        return self._at.calls_of(path)

    def attribute_of(self, call: fx.Node, name: str, position: int) -> tuple[str, str] | None:
        """The module and attribute that an argument of ``call`` is read from; None if it is not a plain attribute."""
        return self._at.attribute_of(call, name, position)

    @making
    def move_before(self, call: fx.Node, consumer: fx.Node, operand: fx.Node) -> list[Edit]:
        """Move ``call`` so that it is applied to ``operand`` where ``consumer`` reads it.

        Raises:
            Refused: the two are not in the same function, or the call cannot be moved within it.
        """

        def number(target: Position, expression: Expression) -> int:
            found = self._at.operand_number(target, expression, consumer, operand)
            if not target.direct:
                self._at.refuse_others_inside(target, consumer, operand)
            return found

        return self._move(call, consumer, positions(consumer), number)

    @making
    def move_after(self, call: fx.Node, producer: fx.Node) -> list[Edit]:
        """Move ``call`` so that it is applied to the result of ``producer``.

        Raises:
            Refused: the two are not in the same function, or the call cannot be moved within it.
        """
        return self._move(call, producer, self._at.giving(producer), lambda _, expression: _result_of(expression))

    def _move(
        self,
        call: fx.Node,
        beside: fx.Node,
        targets: Iterator[Position],
        number: Callable[[Position, Expression], int],
    ) -> list[Edit]:
        """Move ``call`` to operand ``number`` of the first target in its function; ``targets`` lead to ``beside``."""
        where = next((p for p in positions(call) if p.direct), None)
        for target in targets:
            if where is None or target.frame.invocation != where.frame.invocation:
                continue
            self._at.repeated.refuse(where, call)
            self._at.repeated.refuse(target, beside)
            moved, expression = self._at.expression(where), self._at.expression(target)
            operand = number(target, expression)
            why_not = _why_not_movable(moved.source, moved.span, 0, expression.span)
            if why_not is not None:
                raise Refused(Reason.NOT_MOVABLE, f"`{moved.source.segment(moved.span)}` cannot be moved: {why_not}")
            return [moved.edit(Move(moved.span, 0, expression.span, operand))]
        raise Refused(
            Reason.DIFFERENT_METHODS, f"{facts(call)['owner']} and {facts(beside)['owner']} are not in one method"
        )

    @making
    def remove(self, call: fx.Node, keep: fx.Node | None = None) -> list[Edit]:
        """Replace the call by its data input, in the source of the method that makes it.

        Args:
            call: the operation; a call, or a binary operation such as ``x + y``.
            keep: which of its inputs takes its place; by default the first argument of a call.

        Raises:
            Refused: the call is made in a loop, by a helper function, in a method without source, or the text does not
                show which of its arguments is the data input (``self.drop(*args)``).
        """
        where = direct(call)
        self._at.repeated.refuse(where, call)
        self._at.interference.refuse_writes([call])
        expression = self._at.expression(where)
        if isinstance(expression.node, (ast.BinOp, ast.AugAssign)):
            number = None if keep is None else argument_index(call, keep)
            if number not in (0, 1):
                raise expression.takes_no_plain_argument()
            return [expression.edit(RemoveBinary(expression.span, number))]
        number = 0 if keep is None else self._at.operand_number(where, expression, call, keep)
        if number not in operands(expression.node):
            raise expression.takes_no_plain_argument()
        return [expression.edit(Remove(expression.span, number))]

    @making
    def insert_before(
        self,
        consumer: fx.Node,
        operand: fx.Node,
        layer: LayerName,
        *,
        name: str = "",
        behaviour: str = "",
        references: Mapping[str, str] | None = None,
        **options: Any,
    ) -> list[Edit]:
        """Pass ``operand`` through a new layer where ``consumer`` reads it.

        This edits the method that calls ``consumer``. If that is impossible (a torch container, a loop, no source), a
        module that is called once gets the layer as a child and ``behaviour``, which applies it to the input. That is
        the last resort: it gives the module a class of its own, which tools that look for exactly ``nn.Conv2d``
        (quantization-aware training) then skip.

        Args:
            consumer, operand: an operation, and one of its inputs.
            layer: the new layer.
            name: name of the child; by default that of the layer.
            behaviour: a registered behaviour; by default one that runs the layer on the input.
            references: paths of modules that the layer's constructor takes besides its options.
            options: options of the layer.

        Raises:
            Refused: neither way is possible.
        """
        new = NewLayer(layer, name, options, references)
        try:
            where = direct(consumer)
            expression = self._at.users_own(where, consumer)
            number = self._at.operand_number(where, expression, consumer, operand)
            return self._wrap(expression, number, new)
        except Refused as refused:
            if self._may_behave(consumer):
                return self._behave(str(consumer.target), new, behaviour, "before")
            if refused.reason is Reason.NOT_MOVABLE and self._at.readers(operand) == [consumer]:  # x += y
                return self._insert_after(operand, consumer, new, behaviour)
            if refused.reason is not Reason.HELPER_FUNCTION:
                raise
            return self._insert_before_helper(consumer, operand, lambda _: new)

    @making
    def insert_after(
        self,
        producer: fx.Node,
        layer: LayerName,
        *,
        join: fx.Node | None = None,
        name: str = "",
        behaviour: str = "",
        references: Mapping[str, str] | None = None,
        **options: Any,
    ) -> list[Edit]:
        """Pass the result of ``producer`` through a new layer; like :meth:`insert_before`.

        Args:
            producer: an operation.
            layer, name, behaviour, references, options: as for :meth:`insert_before`.
            join: the operation whose method is edited, if possible; by default the innermost method is.

        Raises:
            Refused: neither way is possible.
        """
        return self._insert_after(producer, join or producer, NewLayer(layer, name, options, references), behaviour)

    def _insert_after(self, producer: fx.Node, join: fx.Node, new: NewLayer, behaviour: str) -> list[Edit]:
        method = next((position.frame.invocation for position in positions(join)), None)
        refusals: list[Refused] = []
        for where in sorted(self._at.giving(producer), key=lambda position: position.frame.invocation != method):
            try:
                expression = self._at.users_own(where, producer)
                return self._wrap(expression, _result_of(expression), new)
            except Refused as refused:
                refusals.append(refused)
        if self._may_behave(producer):
            return self._behave(str(producer.target), new, behaviour, "behind")
        raise refusals[0] if refusals else issued_by_no_code(producer)

    @making
    def insert_before_helper(
        self,
        consumer: fx.Node,
        operand: fx.Node,
        layer: LayerName,
        options: Callable[[fx.Node], Mapping[str, Any] | None],
        *,
        name: str = "",
    ) -> list[Edit]:
        """Pass ``operand`` through a new layer where it is passed to the function or module that contains ``consumer``.

        Args:
            consumer, operand: an operation in a helper function, and one of its inputs.
            layer, name: as for :meth:`insert_before`.
            options: the layer's options if it reads this node, of which ``operand`` may be a view; None for no layer.

        Raises:
            Refused: no method that does so can be edited, or the call does more with it than pass it on.
        """

        def new(given: fx.Node) -> NewLayer | None:
            found = options(given)
            return None if found is None else NewLayer(layer, name, found)

        return self._insert_before_helper(consumer, operand, new)

    def _insert_before_helper(
        self, consumer: fx.Node, operand: fx.Node, new: Callable[[fx.Node], NewLayer | None]
    ) -> list[Edit]:
        values = list(self._at.same_values(operand))
        for where in positions(consumer):
            given = next((value for value in values if value in where.arguments), None)
            layer = None if where.direct or given is None else new(given)
            if layer is None:
                continue
            try:
                expression = self._at.users_own(where, consumer)
                self._at.refuse_others_inside(where, consumer, operand)
                number = self._at.operand_number(where, expression, consumer, operand)
                return self._wrap(expression, number, layer)
            except Refused:
                continue
        raise outside_the_class(direct(consumer).frame.code)

    @making
    def insert_after_helper(self, producer: fx.Node, layer: LayerName, *, name: str = "", **options: Any) -> list[Edit]:
        """Pass the result of the helper function that issues ``producer`` through a new layer, where a method calls it.

        Args:
            producer: an operation in a helper function, whose result is all that the function hands on.
            layer, name, options: as for :meth:`insert_before`.

        Raises:
            Refused: the function hands on something else, or the method that calls it cannot be edited.
        """
        where = next((position for position in positions(producer) if position.frame.path is not None), None)
        if where is None or where.direct:
            raise outside_the_class(direct(producer).frame.code)
        inside = self._at.within(where)
        handed_on = [node for node in inside if any(reader not in inside for reader in node.users)]
        if handed_on != [producer]:
            raise outside_the_class(direct(producer).frame.code)
        expression = self._at.users_own(where, producer)
        return self._wrap(expression, _result_of(expression), NewLayer(layer, name, options))

    def _wrap(self, expression: Expression, number: int, new: NewLayer) -> list[Edit]:
        """Pass operand ``number`` of an expression through a new layer."""
        child = self._names.take(expression.path, new.name)
        wrap = expression.edit(Wrap(expression.span, number, child))
        return [new.child(expression.path, child), wrap]

    @making
    def wrap_argument(
        self, call: fx.Node, argument: fx.Node | None, layer: LayerName, *, name: str = "", **options: Any
    ) -> list[Edit]:
        """Pass ``argument`` of an operation through a new layer; None stands for the first, a sequence of tensors.

        Raises:
            Refused: the call is made in a loop, by a helper function or in code without source, it writes to the
                argument, or the argument cannot be identified in the text.
        """
        where = direct(call)
        self._at.repeated.refuse(where, call)
        expression = self._at.expression(where)
        if argument is not None and argument_index(call, argument) == 0 and is_in_place(call.target):  # type: ignore[arg-type]
            text = expression.source.segment(expression.span)
            raise Refused(Reason.IN_PLACE, f"`{text}` works in place: it would write to the new layer's result instead")
        number = 0 if argument is None else self._at.operand_number(where, expression, call, argument)
        if number not in operands(expression.node):
            raise expression.takes_no_plain_argument()
        return self._wrap(expression, number, NewLayer(layer, name, options))

    @making
    def wrap_together(
        self, call: fx.Node, arguments: Sequence[fx.Node], layer: LayerName, *, name: str = "", **options: Any
    ) -> list[Edit]:
        """Pass several ``arguments`` of a call through one new layer, which returns as many tensors as it takes.

        Raises:
            Refused: as for :meth:`wrap_argument`; or they are not adjacent arguments of a call.
        """
        where = direct(call)
        self._at.repeated.refuse(where, call)
        expression = self._at.expression(where)
        numbers = [self._at.operand_number(where, expression, call, argument) for argument in arguments]
        side_by_side = bool(numbers) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        if not side_by_side or numbers[0] < 0 or not isinstance(expression.node, ast.Call):
            text = expression.source.segment(expression.span)
            raise Refused(Reason.NOT_MOVABLE, f"`{text}` does not take them as plain arguments side by side")
        new = NewLayer(layer, name, options)
        child = self._names.take(expression.path, new.name)
        wrap = expression.edit(WrapTogether(expression.span, numbers[0], len(numbers), child))
        return [new.child(expression.path, child), wrap]

    @making
    def wrap_with_next(
        self,
        consumer: fx.Node,
        arguments: Sequence[fx.Node],
        following: str,
        layer: LayerName,
        *,
        name: str = "",
        references: Mapping[str, str] | None = None,
        **options: Any,
    ) -> list[Edit]:
        """Pass arguments of the call that leads to ``consumer``, and the next one, through one new layer.

        The next one need not be a tensor: ``f(self, q, k, v, mask)`` → ``f(self, *self.layer(q, k, v, mask))``.

        Args:
            consumer: an operation in a helper function.
            arguments: values that ``consumer`` reads, in the order in which the text passes them on.
            following: the name of the function's parameter behind those.
            layer, name, references, options: as for :meth:`insert_before`; it returns as many values as it takes.

        Raises:
            Refused: no method passes them on side by side, with ``following`` behind.
        """
        frames = facts(consumer)["frames"]
        found = ((p, frames[index - 1]) for index, p in enumerate(positions(consumer)) if 0 < index < len(frames))
        where, helper = next(((p, inner) for p, inner in found if p.frame.path is not None), (None, None))
        if where is None or helper is None:
            raise outside_the_class(direct(consumer).frame.code)
        expression = self._at.users_own(where, consumer)
        numbers = [self._at.operand_number(where, expression, consumer, argument) for argument in arguments]
        names = helper.code.co_varnames[where.receives : helper.code.co_argcount]
        given = next(value for value in self._at.same_values(arguments[-1]) if value in where.arguments)
        behind = where.arguments.index(given) + 1
        side_by_side = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        follows = side_by_side and names[behind : behind + 1] == (following,)
        if not follows or numbers[-1] + 1 not in operands(expression.node):
            text = expression.source.segment(expression.span)
            raise Refused(Reason.NOT_MOVABLE, f"`{text}` does not pass on {following!r} behind what it is for")
        new = NewLayer(layer, name, options, references)
        child = self._names.take(expression.path, new.name)
        wrap = expression.edit(WrapTogether(expression.span, numbers[0], len(numbers) + 1, child))
        return [new.child(expression.path, child), wrap]


def _result_of(expression: Expression) -> int:
    """The operand number of the expression's own value.

    Raises:
        Refused: it is a statement, such as ``x += y``.
    """
    if RESULT not in operands(expression.node):
        raise expression.takes_no_plain_argument()
    return RESULT


_why_not_movable = functools.lru_cache(maxsize=1024)(why_not_movable)
"""Cached: blocks of the same class ask the same question."""

"""Edits that put a layer in the place of a call, and layers of modules that no method of the user's calls."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import fx

from rewriter.edit.data_edits import DataEdits, making
from rewriter.edit.edits import AddBehaviour, Edit, EditMethod
from rewriter.edit.expression import Expression, expression_at, outside_the_class
from rewriter.edit.expressions import direct
from rewriter.edit.names import called_function
from rewriter.edit.new_layer import LayerName, NewLayer
from rewriter.edit.operands import RECEIVER
from rewriter.edit.operations import Adopt, LayerOperation, Operation, Redirect, RedirectBinary, Remove
from rewriter.edit.positions import Position, positions
from rewriter.edit.source import read_source
from rewriter.errors import SourceError
from rewriter.reasons import Reason, Refused

_Operation = TypeVar("_Operation", bound=LayerOperation)


@dataclass(frozen=True)
class Function:
    """A function that is edited: a method, or a helper that becomes one.

    Attributes:
        expression: one of its expressions.
        path: the module that has the method, and to which layers are added.
        edit: makes the edit of an operation in it.
    """

    expression: Expression
    path: str
    edit: Callable[[Operation], EditMethod]


class Redirects(DataEdits):
    """Makes edits of calls; see :class:`~rewriter.edit.editor.Editor`."""

    @making
    def redirect(
        self,
        call: fx.Node,
        layer: LayerName,
        *,
        name: str = "",
        all_calls: bool = False,
        references: Mapping[str, str] | None = None,
        **options: Any,
    ) -> list[Edit]:
        """Let a new layer stand for the function or the module of the call ``call``; it gets the arguments as written.

        For an operator it gets the two operands: ``x + y`` → ``self.layer(x, y)``. Where the operation works in place
        (``x += y``, ``x.add_(y)``), the layer has to write to its first argument, for others may hold it.

        Where a helper function makes the call, the method that calls the helper gets a copy of it as a method. A module
        that is called once, by no method that can be edited (in an ``nn.Sequential``), gets a behaviour that runs it.

        Args:
            call, layer, name, options: the operation, the layer, and the name and options of that.
            references: paths of modules that the layer's constructor takes besides its options.
            all_calls: whether it may act on several runs of the expression: in a loop, or a method called twice.

        Raises:
            Refused: the call is made in a loop, and ``all_calls`` is not set; by nested helper functions, or in code
                without source.
        """
        new = NewLayer(layer, name, options, references)
        try:
            return self._redirect(call, new, all_calls)
        except Refused:
            if not self._may_behave(call):
                raise
            return self._behave(str(call.target), new, "", "instead")

    def _redirect(self, call: fx.Node, new: NewLayer, all_calls: bool) -> list[Edit]:
        where = direct(call)
        function = self._function(where, call, all_calls=all_calls)
        child = self._names.take(function.path, new.name)
        operation = self._redirection(where, function.expression, call, child)
        return [new.child(function.path, child), function.edit(operation)]

    def _redirection(self, where: Position, expression: Expression, call: fx.Node, child: str) -> Operation:
        if isinstance(expression.node, (ast.BinOp, ast.AugAssign)):
            return checked(RedirectBinary(expression.span, 0, child), expression)
        number = self._at.operand_number(where, expression, call, call.all_input_nodes[0])
        self._refuse_unknown_function(expression, call, number)
        return checked(Redirect(expression.span, number, child), expression)

    def _refuse_unknown_function(self, expression: Expression, call: fx.Node, operand: int) -> None:
        """Refuse to replace what is called if the text does not tell what that is."""
        module = self._at.calls_module(expression, call)
        if operand != RECEIVER and not module and called_function(expression.source, expression.node) != call.target:
            raise Refused(Reason.NOT_MOVABLE, "which function is called is decided at run time")

    def _function(
        self, where: Position, node: fx.Node, *, all_calls: bool = False, among: Collection[fx.Node] = ()
    ) -> Function:
        """The function that evaluates the expression at ``where``, which leads to ``node``, and how it is edited.

        Args:
            all_calls, among: what it may run for besides: for anything, or for these operations.

        Raises:
            Refused: it runs several times, has no source, or is a helper that no method calls directly by its name.
        """
        if not all_calls:
            self._at.repeated.refuse(where, node, among)
        try:
            expression = self._at.expression(where)
            if not expression.in_method:
                raise outside_the_class(expression.source.function.__code__)
            return Function(expression, expression.path, expression.edit)
        except Refused as refused:
            around = list(positions(node))
            outer = next(iter(around[around.index(where) + 1 :]), None)
            if refused.reason is not Reason.HELPER_FUNCTION or outer is None or outer.call is not where.call:
                raise
            if not all_calls:
                self._at.repeated.refuse(outer, node, among)
            return self._helper(where, self._at.expression(outer))

    def _helper(self, where: Position, called: Expression) -> Function:
        """The helper function that evaluates the expression at ``where``, and that ``called`` calls."""
        code = where.frame.code
        try:
            adopt = Adopt(called.span, 0, "", "", Remove(called.span, 0))
            helper = adopt.helper(called.source)
            if helper.__code__ is not code:
                raise SourceError(f"the operation is issued by the function {code.co_qualname}, which is decorated")
            source = read_source(helper)
            inside = expression_at(called.path, type(None), code.co_name, source, where.frame)
        except SourceError as error:
            raise Refused(Reason.HELPER_FUNCTION, str(error)) from error

        def edit(operation: Operation) -> EditMethod:
            what = called.source.digest, called.method, called.span, source.digest
            method = self._names.take_once(called.path, code.co_name.strip("_") or "helper", what)
            adopted = replace(adopt, method=method, digest=source.digest, change=operation)
            try:
                adopted.text_of_method(source)
            except SourceError as error:
                raise Refused(Reason.HELPER_FUNCTION, str(error)) from error
            return called.edit(adopted)

        return Function(replace(inside, in_method=False), called.path, edit)

    def _may_behave(self, node: fx.Node) -> bool:
        """Whether ``node`` is a module that is called once, so that a behaviour acts nowhere else."""
        return node.op == "call_module" and self._at.calls_of(str(node.target)) == 1

    def _behave(self, path: str, new: NewLayer, behaviour: str, where: str) -> list[Edit]:
        """Give the module at ``path`` a new layer, and a behaviour that applies it."""
        child = self._names.take(path, new.name)
        own = AddBehaviour(path, f"rewriter/layer-{where}", {f"layer_{where}": child})
        return [new.child(path, child), AddBehaviour(path, behaviour) if behaviour else own]


def checked(operation: _Operation, expression: Expression) -> _Operation:
    """``operation``, if it can be carried out.

    Raises:
        Refused: the text does not allow it.
    """
    try:
        tuple(operation.splices_for(expression.source, "self"))
    except SourceError as error:
        raise Refused(Reason.NOT_MOVABLE, str(error)) from error
    return operation

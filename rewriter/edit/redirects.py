"""Edits that put a layer in the place of a call, and layers of modules that no method of the user's calls."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

from torch import fx

from rewriter.edit.data_edits import DataEdits, making
from rewriter.edit.edits import AddBehaviour, Edit
from rewriter.edit.expression import Expression, expression_at
from rewriter.edit.expressions import direct
from rewriter.edit.names import called_function
from rewriter.edit.new_layer import LayerName, NewLayer
from rewriter.edit.operations import RECEIVER, Adopt, Operation, Redirect, RedirectBinary
from rewriter.edit.positions import Position, positions
from rewriter.edit.source import read_source
from rewriter.errors import SourceError
from rewriter.reasons import Reason, Refused


class Redirects(DataEdits):
    """Makes edits of calls; see :class:`~rewriter.edit.editor.Editor`."""

    @making
    def redirect(self, call: fx.Node, layer: LayerName, *, name: str = "", **options: Any) -> list[Edit]:
        """Let a new layer stand for the function or the module of the call ``call``; it gets the arguments as written.

        For an operator it gets the two operands: ``x + y`` → ``self.layer(x, y)``. Where the operation works in place
        (``x += y``, ``x.add_(y)``), the layer has to write to its first argument, for others may hold it.

        Where a helper function makes the call, the method that calls the helper gets a copy of it as a method. A module
        that is called once, by no method that can be edited (in an ``nn.Sequential``), gets a behaviour that runs it.

        Raises:
            Refused: the call is made in a loop, by nested helper functions, or in code without source.
        """
        new = NewLayer(layer, name, options)
        try:
            return self._redirect(call, new)
        except Refused:
            if not self._may_behave(call):
                raise
            return self._behave(str(call.target), new, "", "instead")

    def _redirect(self, call: fx.Node, new: NewLayer) -> list[Edit]:
        where = direct(call)
        outer = next((position for position in positions(call) if not position.direct), None)
        self._at.repeated.refuse(where, call)
        try:
            expression = self._at.expression(where)
            child = self._names.take(expression.path, new.name)
            operation: Operation = self._redirection(where, expression, call, child)
            expression.edit(operation)
        except Refused as refused:
            if refused.reason is not Reason.HELPER_FUNCTION or outer is None or outer.call is not where.call:
                raise
            self._at.repeated.refuse(outer, call)
            expression = self._at.expression(outer)
            child = self._names.take(expression.path, new.name)
            operation = self._adoption(where, expression, call, child)
        return [new.child(expression.path, child), expression.edit(operation)]

    def _redirection(
        self, where: Position, expression: Expression, call: fx.Node, child: str
    ) -> Redirect | RedirectBinary:
        if isinstance(expression.node, (ast.BinOp, ast.AugAssign)):
            binary = RedirectBinary(expression.span, 0, child)
            try:
                tuple(binary.splices(expression.source))
            except SourceError as error:
                raise Refused(Reason.NOT_MOVABLE, str(error)) from error
            return binary
        number = self._at.operand_number(where, expression, call, call.all_input_nodes[0])
        redirect = Redirect(expression.span, number, child)
        module = self._at.calls_module(expression, call)
        if number != RECEIVER and not module and called_function(expression.source, expression.node) != call.target:
            raise Refused(Reason.NOT_MOVABLE, "which function is called is decided at run time")
        try:
            tuple(redirect.splices_for(expression.source, "self"))
        except SourceError as error:
            raise Refused(Reason.NOT_MOVABLE, str(error)) from error
        return redirect

    def _adoption(self, where: Position, expression: Expression, call: fx.Node, child: str) -> Adopt:
        """Redirect the call inside the helper function that ``expression`` calls."""
        code = where.frame.code
        method = self._names.take(expression.path, code.co_name.strip("_") or "helper")
        try:
            adopt = Adopt(expression.span, 0, method, "", Redirect(expression.span, 0, child))
            helper = adopt.helper(expression.source)
            if helper.__code__ is not code:
                raise SourceError(f"the operation is issued by the function {code.co_qualname}, which is decorated")
            source = read_source(helper)
            inside = expression_at(expression.path, type(None), code.co_name, source, where.frame)
            inside = replace(inside, in_method=False)
            change = self._redirection(where, inside, call, child)
            if isinstance(change, RedirectBinary):
                raise SourceError(f"the operator is written in the function {code.co_qualname}")
            adopt = replace(adopt, digest=source.digest, change=change)
            adopt.text_of_method(source)
            return adopt
        except SourceError as error:
            raise Refused(Reason.HELPER_FUNCTION, str(error)) from error

    def _may_behave(self, node: fx.Node) -> bool:
        """Whether ``node`` is a module that is called once, so that a behaviour acts nowhere else."""
        return node.op == "call_module" and self._at.calls_of(str(node.target)) == 1

    def _behave(self, path: str, new: NewLayer, behaviour: str, where: str) -> list[Edit]:
        """Give the module at ``path`` a new layer, and a behaviour that applies it."""
        child = self._names.take(path, new.name)
        own = AddBehaviour(path, f"rewriter/layer-{where}", {f"layer_{where}": child})
        return [new.child(path, child), AddBehaviour(path, behaviour) if behaviour else own]

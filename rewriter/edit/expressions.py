"""The expressions of the user's code that issue an operation, carry a value to it, or give what it gives."""

from __future__ import annotations

import ast
import inspect
import itertools
import types
from collections.abc import Iterator
from dataclasses import replace

from torch import fx, nn

from rewriter.analysis.arguments import argument_index, is_tensor_method
from rewriter.analysis.interference import Interference
from rewriter.analysis.weights import PASS_THROUGH
from rewriter.edit.classes import method_source
from rewriter.edit.explicit_calls import ExplicitCalls, attribute_path, follow, is_explicit
from rewriter.edit.expression import Expression, expression_at, outside_the_class
from rewriter.edit.held_methods import FunctionOfReceiver, follows_its_module
from rewriter.edit.names import receiver_parameter
from rewriter.edit.operations import RECEIVER, operands
from rewriter.edit.positions import Position, positions
from rewriter.edit.repeated_calls import RepeatedCalls
from rewriter.errors import SourceError
from rewriter.reasons import Reason, Refused
from rewriter.tracing.trace import Recording


class Expressions:
    """Finds expressions for the operations of one recording, and names for what is added to modules."""

    def __init__(self, model: nn.Module, recording: Recording, interference: Interference) -> None:
        self._model = model
        self._interference = interference
        self._recording = recording
        self._flow = recording.dataflow
        self._given: set[tuple[str, str]] = set()
        self._explicit_calls = ExplicitCalls(model)
        self._repeated = RepeatedCalls(model, recording)

    def calls_of(self, path: str) -> int:
        """How often the module at ``path`` was called, under any of its names."""
        return self._repeated.of(path)

    def free_name(self, path: str, name: str) -> str:
        """``name``, or ``name_1``, …: the first that the module at ``path`` does not use and that was not given yet."""
        module = self._model.get_submodule(path)
        candidates = itertools.chain([name], (f"{name}_{index}" for index in itertools.count(1)))
        free = next(c for c in candidates if not hasattr(module, c) and (path, c) not in self._given)
        self._given.add((path, free))
        return free

    def _expression(self, position: Position) -> Expression:
        frame, path = position.frame, self._repeated.receivers.path(position)
        module = self._model.get_submodule(path)
        if isinstance(module, fx.GraphModule):
            detail = f"module {path!r} is an fx.GraphModule: its code is generated from its graph again whenever it is"
            raise Refused(Reason.NO_SOURCE, f"{detail} copied, saved or recompiled. Rewrite the model, then trace it.")
        own_forward = Refused(Reason.NO_SOURCE, f"module {path!r} has a forward of its own, set on the instance")
        if "forward" in module.__dict__ and not follows_its_module(module.__dict__["forward"], module):
            raise own_forward
        try:
            found = method_source(type(module), frame.code)
            if found is None and "forward" in module.__dict__:
                raise own_forward
            if found is None:
                raise outside_the_class(frame.code)
            in_method = frame.path is not None and self._model.get_submodule(frame.path) is module
            return replace(expression_at(path, *found, frame), in_method=in_method)
        except SourceError as error:
            raise Refused(Reason.NO_SOURCE, str(error)) from error

    def _operand_number(self, position: Position, expression: Expression, consumer: fx.Node, operand: fx.Node) -> int:
        """Which operand of the expression carries ``operand`` to ``consumer``."""
        if position.direct:
            index = argument_index(consumer, operand)
            if index == 0 and is_tensor_method(consumer) and isinstance(expression.node, ast.Call):
                index = RECEIVER
            elif index is not None and is_tensor_method(consumer) and isinstance(expression.node, ast.Call):
                index -= 1
        else:
            index = None
            for source in self._same_values(operand):
                if source in position.arguments:
                    index = position.arguments.index(source) + self._gives_receiver(position, expression)
                    break
        given = operands(expression.node).get(index) if index is not None else None
        if index is None or given is None or self._is_module(expression, given):
            raise expression.takes_no_plain_argument()
        return index

    def _gives_receiver(self, position: Position, expression: Expression) -> bool:
        """Whether the expression writes the module, which a function gets first, as its first argument."""
        function = expression.node.func if isinstance(expression.node, ast.Call) else None
        own = receiver_parameter(expression.source)
        if isinstance(function, ast.Attribute) and own is not None and ast.unparse(function.value) == own.arg:
            kept = inspect.getattr_static(self._model.get_submodule(expression.path), function.attr, None)
            in_class = getattr(type(self._model.get_submodule(expression.path)), function.attr, None) is kept
            return isinstance(kept, (types.FunctionType, FunctionOfReceiver)) and not in_class
        return position.receives and is_explicit(expression.source, expression.node)

    def _is_module(self, expression: Expression, given: ast.expr) -> bool:
        """Whether what is given is a module, by a path of attributes, and so no tensor."""
        own = receiver_parameter(expression.source)
        path = attribute_path(given, own.arg) if own is not None and expression.in_method else None
        module = self._model.get_submodule(expression.path)
        return path is not None and isinstance(follow(module, path), nn.Module)

    def _same_values(self, node: fx.Node) -> Iterator[fx.Node]:
        """``node`` and what it is only a view or a selection of, and not a later state of."""
        yield node
        while not node.meta["after"] and node.meta["kind"] in PASS_THROUGH and len(self._flow.sources(node)) == 1:
            node = self._flow.sources(node)[0]
            yield node

    def _giving(self, node: fx.Node) -> Iterator[Position]:
        """The expressions whose value is what ``node`` gives, innermost first."""
        for position in positions(node):
            if not position.direct:
                callee = next((c for c in node.meta["call"].chain() if c.parent is position.call), None)
                if callee is None or callee.frames[:1] != (position.frame,) or callee.outputs != [node]:
                    return
            yield position

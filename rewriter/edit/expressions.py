"""The expressions of the user's code that issue an operation, pass a value to it, or return its result."""

from __future__ import annotations

import ast
import inspect
import types
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

from torch import fx, nn

from rewriter.analysis.arguments import argument_index, is_reflected, is_tensor_method
from rewriter.analysis.interference import Interference, interference
from rewriter.analysis.weights import PASS_THROUGH
from rewriter.edit.classes import method_source
from rewriter.edit.explicit_calls import ExplicitCalls, attribute_path, follow, is_explicit
from rewriter.edit.expression import Expression, expression_at, outside_the_class
from rewriter.edit.held_methods import FunctionOfReceiver, follows_its_module
from rewriter.edit.names import called_function, receiver_parameter
from rewriter.edit.operands import RECEIVER, keyword_number, operands
from rewriter.edit.positions import Position, positions
from rewriter.edit.repeated_calls import RepeatedCalls
from rewriter.errors import SourceError
from rewriter.reasons import Reason, Refused
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.trace import Recording, Trace


@once
def expressions(flow: Dataflow, trace: Trace) -> Expressions:
    """The expressions of the training run; all passes share them."""
    return Expressions(trace.model, trace.train, interference(flow, trace))


class Expressions:
    """Finds expressions for the operations of one recording."""

    def __init__(self, model: nn.Module, recording: Recording, interference: Interference) -> None:
        self._model = model
        self.interference = interference
        self._recording = recording
        self._flow = recording.dataflow
        self.explicit_calls = ExplicitCalls(model)
        self.repeated = RepeatedCalls(model, recording)

    def calls_of(self, path: str) -> int:
        """How often the module at ``path`` was called, under any of its names."""
        return self.repeated.of(path)

    def expression(self, position: Position) -> Expression:
        frame, path = position.frame, self.repeated.receivers.path(position)
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

    def operand_number(self, position: Position, expression: Expression, consumer: fx.Node, operand: fx.Node) -> int:
        """Which operand of the expression passes ``operand`` to ``consumer``."""
        if position.direct:
            index = argument_index(consumer, operand)
            by_name = called_function(expression.source, expression.node) is not None  # F.sigmoid(x) is x.sigmoid()
            calls = isinstance(expression.node, ast.Call) and not by_name
            if index is not None and calls and is_tensor_method(consumer):
                index = RECEIVER if index == 0 else index - 1
            elif index in (0, 1) and is_reflected(consumer) and isinstance(expression.node, ast.BinOp):
                index = 1 - index  # 1 - x is x.__rsub__(1)
            if index is None:
                index = _keyword_given(expression, consumer, operand)
        else:
            index = None
            for source in self.same_values(operand):
                if source in position.arguments:
                    index = position.arguments.index(source) + self._gives_receiver(position, expression)
                    break
        given = operands(expression.node).get(index) if index is not None else None
        if index is None or given is None or self._is_module(expression, given):
            raise expression.takes_no_plain_argument()
        return index

    def _gives_receiver(self, position: Position, expression: Expression) -> bool:
        """Whether the text of the call has the module, which the function gets first, as its first argument."""
        function = expression.node.func if isinstance(expression.node, ast.Call) else None
        own = receiver_parameter(expression.source)
        if isinstance(function, ast.Attribute) and own is not None and ast.unparse(function.value) == own.arg:
            kept = inspect.getattr_static(self._model.get_submodule(expression.path), function.attr, None)
            in_class = getattr(type(self._model.get_submodule(expression.path)), function.attr, None) is kept
            return isinstance(kept, (types.FunctionType, FunctionOfReceiver)) and not in_class
        if not position.receives:
            return False
        match expression.node:
            case ast.Call(func=ast.Name(), args=[ast.Name(id=given), *_]) if own is not None and given == own.arg:
                return True  # a function under a local name, as transformers calls its attentions
        return is_explicit(expression.source, expression.node)

    def calls_module(self, expression: Expression, call: fx.Node) -> bool:
        """Whether the expression calls, through a path of attributes, the module of ``call``."""
        return call.op == "call_module" and self.calls_module_at(expression, str(call.target))

    def calls_module_at(self, expression: Expression, called: str) -> bool:
        """Whether the expression calls, through a path of attributes, the module at the path ``called``."""
        own = receiver_parameter(expression.source)
        if not isinstance(expression.node, ast.Call) or own is None:
            return False
        path = attribute_path(expression.node.func, own.arg) if expression.in_method else None
        module = self._model.get_submodule(expression.path)
        return path is not None and follow(module, path) is self._model.get_submodule(called)

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """The operations that read ``node``."""
        return self._flow.users(node)

    def between(self, value: fx.Node, goal: fx.Node) -> list[fx.Node]:
        """The operations on any way from ``value`` to ``goal``, which is included."""
        return self._flow.in_order(self._flow.region(value, goal) - {value})

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The operations that ``node`` reads."""
        return self._flow.sources(node)

    def module_called(self, node: fx.Node) -> nn.Module | None:
        """The module that an operation calls; None for a function."""
        return self._model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def _is_module(self, expression: Expression, given: ast.expr) -> bool:
        """Whether an argument is a module, given by a path of attributes, and so not a tensor."""
        own = receiver_parameter(expression.source)
        path = attribute_path(given, own.arg) if own is not None and expression.in_method else None
        module = self._model.get_submodule(expression.path)
        return path is not None and isinstance(follow(module, path), nn.Module)

    def same_values(self, node: fx.Node) -> Iterator[fx.Node]:
        """``node`` and the values that it is only a view or selection of, unless they were written to in between."""
        yield node
        while not facts(node)["after"] and facts(node)["kind"] in PASS_THROUGH and len(self._flow.sources(node)) == 1:
            node = self._flow.sources(node)[0]
            yield node

    def giving(self, node: fx.Node) -> Iterator[Position]:
        """The expressions whose value is what ``node`` gives, innermost first: its own, and calls of modules around it.

        Of functions in between, such as timm's ``drop_path()``, it is not known what they return.
        """
        for position in positions(node):
            callee = next((c for c in facts(node)["call"].chain() if c.parent is position.call), None)
            called_there = callee is not None and callee.frames[:1] == (position.frame,)
            if position.direct or (called_there and callee is not None and callee.outputs == [node]):
                yield position

    def is_of_torch(self, position: Position) -> bool:
        """Whether the code at ``position`` is a method of a module of torch."""
        module = self._model.get_submodule(position.call.path)
        own = method_source(type(module), position.frame.code) if type(module).__module__.startswith("torch.") else None
        return own is not None

    def users_own(self, where: Position, node: fx.Node) -> Expression:
        """The expression at ``where``, which leads to ``node``.

        Raises:
            Refused: it runs several times, or is not in the user's code.
        """
        self.repeated.refuse(where, node)
        expression = self.expression(where)
        if expression.owner.__module__.startswith("torch."):
            raise Refused(Reason.IN_A_LOOP, f"{expression.owner.__qualname__} of torch calls it")
        return expression

    def attribute_of(self, call: fx.Node, name: str, position: int) -> tuple[str, str] | None:
        """The module and attribute that an argument of ``call`` is read from; None if it is not a plain attribute."""
        try:
            expression = self.expression(direct(call))
        except Refused:
            return None
        attribute = expression.attribute_given(name, position)
        return None if attribute is None else (expression.path, attribute)

    def refuse_others_inside(self, position: Position, consumer: fx.Node, operand: fx.Node) -> None:
        """Refuse to change an argument of a call that does more with it than pass it to ``consumer``."""
        values = [operand]
        while values[-1] not in position.arguments:
            values.append(self._flow.sources(values[-1])[0])
        inside = self.within(position)
        callee = next((c for c in facts(consumer)["call"].chain() if c.parent is position.call), None)
        returned = callee.outputs if callee is not None and callee.frames[0] == position.frame else []
        self.interference.refuse_entering(values, consumer, inside, returned)

    def within(self, position: Position) -> set[fx.Node]:
        """The operations that an expression leads to."""
        return self._within[position.frame.invocation, position.frame.instruction]

    @cached_property
    def _within(self) -> dict[tuple[int, int], set[fx.Node]]:
        """The operations that each expression led to, per call of its function."""
        found: dict[tuple[int, int], set[fx.Node]] = {}
        for node in self._recording.graph.nodes:
            for position in positions(node):
                found.setdefault((position.frame.invocation, position.frame.instruction), set()).add(node)
        return found


def _keyword_given(expression: Expression, consumer: fx.Node, operand: fx.Node) -> int | None:
    """The number of the keyword argument by which the text of ``consumer`` gives it ``operand``."""
    names = [name for name, value in consumer.kwargs.items() if value is operand]
    return keyword_number(expression.node, names[0]) if len(names) == 1 else None


def direct(node: fx.Node) -> Position:
    """The expression that issues ``node`` itself.

    Raises:
        Refused: no Python code issues it: a compiled extension, or a builtin as ``forward``.
    """
    found = next((position for position in positions(node) if position.direct), None)
    if found is None:
        raise issued_by_no_code(node)
    return found


def issued_by_no_code(node: fx.Node) -> Refused:
    where = facts(node)["owner"].path or "the model"
    return Refused(Reason.NO_SOURCE, f"the operation is not issued by Python code: {where} is compiled or builtin")

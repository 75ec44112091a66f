"""One expression in the source of a method, and the edits that change it."""

from __future__ import annotations

import ast
import types
from dataclasses import dataclass
from typing import Any

from rewriter.edit.classes import class_name
from rewriter.edit.edits import EditMethod
from rewriter.edit.names import receiver_parameter
from rewriter.edit.operations import Adopt, LayerOperation
from rewriter.edit.source import FunctionSource, Span, code_span
from rewriter.reasons import Reason, Refused
from rewriter.tracing.frames import Frame


def outside_the_class(code: types.CodeType) -> Refused:
    """The refusal of an operation that a helper function issues."""
    return Refused(
        Reason.HELPER_FUNCTION,
        f"the operation is issued by the function {code.co_qualname}(); to have it edited, write it in a method",
    )


def _runs_over_children(source: FunctionSource) -> bool:
    """Whether a method loops over the children of its module, whatever they are."""
    receiver = receiver_parameter(source)
    own = None if receiver is None else receiver.arg
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr in _OF_CHILDREN and ast.unparse(node.value) == own:
            return True
        looped = node.iter if isinstance(node, (ast.For, ast.comprehension)) else None
        if looped is not None and any(isinstance(inner, ast.Name) and inner.id == own for inner in _handed_to(looped)):
            return True
    return False


def _handed_to(looped: ast.expr) -> list[ast.expr]:
    """What a loop iterates over, also within ``enumerate`` and the like."""
    return [looped, *(looped.args if isinstance(looped, ast.Call) else ())]


_OF_CHILDREN = frozenset({"children", "named_children", "modules", "named_modules", "_modules"})


@dataclass(frozen=True)
class Expression:
    """An expression in the source of a method.

    Attributes:
        path: path of the module that the method is called on; ``owner`` is the class that defines ``method``.
        span: its position in ``source``; ``node`` is the expression there.
        in_method: whether the function gets the module as its first argument; False for a helper held by a decorator or
            a closure.
    """

    path: str
    owner: type
    method: str
    source: FunctionSource
    span: Span
    node: ast.AST
    in_method: bool = True

    def edit(self, operation: Any) -> EditMethod:
        """The edit that applies ``operation`` here.

        Raises:
            Refused: it adds a submodule to a module that the function does not get, or that iterates over its children.
        """
        if isinstance(operation, (LayerOperation, Adopt)):
            if not self.in_method:
                raise outside_the_class(self.source.function.__code__)
            if _runs_over_children(self.source):
                method = f"{self.owner.__name__}.{self.method}()"
                remedy = "keep those that it runs over in an nn.ModuleList"
                raise Refused(
                    Reason.IN_A_LOOP,
                    f"{method} runs over its own children, also over a new one; {remedy}",
                )
        return EditMethod(self.path, class_name(self.owner), self.method, self.source.digest, operation)

    def takes_no_plain_argument(self) -> Refused:
        """The refusal of a call whose text does not show which argument is the tensor: ``f(*args)``, ``f(input=x)``."""
        text = self.source.segment(self.source.span(self.node))
        return Refused(Reason.NOT_MOVABLE, f"`{text}` does not take the tensor as a plain argument")

    def attribute_given(self, name: str, position: int) -> str | None:
        """The module's attribute that a call gets as an argument; None if the argument is anything else."""
        if not isinstance(self.node, ast.Call):
            return None
        by_name = {keyword.arg: keyword.value for keyword in self.node.keywords}
        argument = by_name.get(name) or next(iter(self.node.args[position : position + 1]), None)
        if isinstance(argument, ast.Call) and ast.unparse(argument.func) == "float" and len(argument.args) == 1:
            argument = argument.args[0]
        parameters = (*self.source.tree.args.posonlyargs, *self.source.tree.args.args)
        receiver, _, attribute = ast.unparse(argument).partition(".") if argument is not None else ("", "", "")
        plain = isinstance(argument, ast.Attribute) and all(part.isidentifier() for part in attribute.split("."))
        return attribute if plain and parameters and receiver == parameters[0].arg else None


def expression_at(path: str, owner: type, method: str, source: FunctionSource, frame: Frame) -> Expression:
    """The expression that ``frame`` was evaluating, in ``method`` of ``owner``, whose source is ``source``.

    Raises:
        Refused: Python does not give its position.
    """
    span = code_span(frame.code, frame.instruction, source.first_line)
    if span is None:
        raise Refused(Reason.NO_SOURCE, "Python runs without column positions (-X no_debug_ranges)")
    return Expression(path, owner, method, source, span, source.find(span))

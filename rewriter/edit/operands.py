"""The operands of an expression, by number."""

from __future__ import annotations

import ast

from rewriter.edit.source import FunctionSource, Span
from rewriter.errors import SourceError

RECEIVER = -1
"""Operand number of ``x`` in ``x.mean(1)``."""

RESULT = -2
"""Operand number of an expression's own value."""

FIRST_KEYWORD = -3
"""Operand number of ``a`` in ``f(x, name=a)``; further keywords have the numbers below."""


def operands(node: ast.AST) -> dict[int, ast.expr]:
    """The operands of an expression by number, and its value; only the value if they are ambiguous (``f(*x)``).

    Positional arguments have the numbers from 0 on; for others see :data:`RECEIVER` and :data:`FIRST_KEYWORD`.
    """
    if isinstance(node, ast.AugAssign):
        return {1: node.value}
    found: dict[int, ast.expr] = {RESULT: node} if isinstance(node, ast.expr) else {}
    if isinstance(node, ast.BinOp):
        return {0: node.left, 1: node.right, **found}
    if isinstance(node, ast.UnaryOp):
        return {0: node.operand, **found}
    if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
        return found
    found |= dict(enumerate(node.args))
    found |= {FIRST_KEYWORD - i: keyword.value for i, keyword in enumerate(node.keywords) if keyword.arg is not None}
    if isinstance(node.func, ast.Attribute):
        found[RECEIVER] = node.func.value
    return found


def keyword_number(node: ast.AST, name: str) -> int | None:
    """The operand number of the argument that a call gives as ``name=``; None if it gives none."""
    keywords = node.keywords if isinstance(node, ast.Call) else []
    return next((FIRST_KEYWORD - index for index, keyword in enumerate(keywords) if keyword.arg == name), None)


def operand_of(source: FunctionSource, expression: Span, number: int) -> ast.expr:
    """The operand ``number`` of the expression at a span.

    Raises:
        SourceError: it has none, or the text does not show it.
    """
    found = operands(source.find(expression)).get(number)
    if found is None:
        raise SourceError(f"`{source.segment(expression)}` has no plain operand {number}")
    return found


def call_and_operand(source: FunctionSource, call: Span, operand: int) -> tuple[ast.Call, ast.expr]:
    """As :func:`operand_of`, of a call.

    Raises:
        SourceError: it is no call, or has no such operand.
    """
    node = source.find(call)
    found = operands(node).get(operand)
    if not isinstance(node, ast.Call) or found is None:
        raise SourceError(f"`{source.segment(call)}` is not a call with a plain operand {operand}")
    return node, found


def is_bare(operand: ast.expr) -> bool:
    """Whether the expression keeps its meaning without parentheses around it."""
    one_line = operand.lineno == operand.end_lineno
    return one_line and isinstance(operand, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))

"""Whether a call means the same at another place of its function."""

from __future__ import annotations

import ast

from rewriter.edit.control_flow import branches, end, exits_between
from rewriter.edit.names import local_names
from rewriter.edit.operands import call_and_operand
from rewriter.edit.source import FunctionSource, Span
from rewriter.errors import SourceError


def why_not_movable(source: FunctionSource, call: Span, operand: int, target: Span) -> str | None:
    """Why the call cannot be evaluated at ``target`` with the same meaning; None if it can.

    Its other arguments may read attributes and globals, which are constant during a call of the method, but not local
    variables; and the conditions around it may only test the rate and the mode that the call itself reads.
    """
    try:
        node, data = call_and_operand(source, call, operand)
    except SourceError as error:
        return str(error)
    goal = source.find(target)
    inputs = set(ast.walk(data))
    own = [inner for inner in ast.walk(node) if inner not in inputs]
    names = {inner.id for inner in own if isinstance(inner, ast.Name)} & local_names(source)
    if names:
        return f"its arguments read local variables ({', '.join(sorted(names))})"
    reads = {ast.unparse(inner) for inner in own if isinstance(inner, ast.Attribute)}
    enclosing = branches(source.tree, goal)
    for branch in branches(source.tree, node):
        if branch not in enclosing and not branch.only_asks_for(reads):
            return branch.reason
    first, second = sorted((node, goal), key=end)
    leaving = next(exits_between(source.tree, first, second), None)
    if leaving is not None:
        return f"`{ast.unparse(leaving)}` lies between the two, so not both need be reached"
    return None

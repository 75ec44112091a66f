"""Whether one expression of a function is evaluated whenever a later one is, and which assignment a variable holds.

Both are answered from the text, for every path through the function: what ran once says nothing about a branch that did
not run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Any

from rewriter.edit.control_flow import branches, end
from rewriter.edit.names import bound_name
from rewriter.edit.source import FunctionSource

_TRIES = (ast.Try, ast.TryStar)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def why_not_always_before(source: FunctionSource, first: ast.AST, second: ast.AST) -> str | None:
    """Why ``first`` need not have been evaluated when ``second`` is; None if it always has been."""
    tree = source.tree
    if _scopes(tree, first) != _scopes(tree, second):
        return f"`{_text(source, first)}` is in another function or comprehension than `{_text(source, second)}`"
    if end(first) > _start(second):
        return f"`{_text(source, first)}` comes after `{_text(source, second)}`"
    around = branches(tree, second)
    arm = next((branch for branch in branches(tree, first) if branch not in around), None)
    if arm is not None:
        return f"`{_text(source, first)}`: {arm.reason}"
    for node in ast.walk(tree):
        if isinstance(node, _TRIES) and _holds(node.body, first) and not _holds((*node.body, *node.orelse), second):
            return f"`{_text(source, first)}` is in a `try` that `{_text(source, second)}` is not in"
    return None


def binding(source: FunctionSource, name: str, at: ast.AST) -> ast.AST | None:
    """The one assignment, or parameter, whose value variable ``name`` has at ``at`` on every path; None if unclear."""
    found = [node for node in ast.walk(source.tree) if node is not source.tree and _binds(node, name)]
    if any(isinstance(node, (ast.Global, ast.Nonlocal)) for node in found):
        return None
    statements = {node: _statement(source.tree, node) for node in found}
    in_a_loop = any(isinstance(arm.parent, _LOOPS) for arm in branches(source.tree, at))
    before = [node for node in found if end(statements[node]) <= _start(at)]
    if not before or (in_a_loop and len(found) > 1) or any(_within(statements[node], at) for node in found):
        return None
    last = max(before, key=lambda node: end(statements[node]))
    if isinstance(last, ast.arg):
        return last if _scopes(source.tree, at) == [source.tree] and last in _parameters(source.tree) else None
    return last if why_not_always_before(source, statements[last], at) is None else None


def unchanged(source: FunctionSource, name: str, first: ast.AST, second: ast.AST) -> bool:
    """Whether variable ``name`` has the same value at ``second`` as at ``first``, on every path from there to it."""
    found = [node for node in ast.walk(source.tree) if node is not source.tree and _binds(node, name)]
    outer = [isinstance(node, (ast.Global, ast.Nonlocal)) for node in found]
    in_a_loop = any(isinstance(arm.parent, _LOOPS) for arm in branches(source.tree, second))
    same_scope = _scopes(source.tree, first) == _scopes(source.tree, second)
    if any(outer) or not same_scope or (in_a_loop and len(found) > 1) or end(first) > _start(second):
        return False
    return not any(end(first) <= end(_statement(source.tree, node)) <= _start(second) for node in found)


def outside(node: ast.AST, without: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """``node`` and what is in it, except for ``without`` and what is in those."""
    if node in without:
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from outside(child, without)


def _binds(node: ast.AST, name: str) -> bool:
    if isinstance(node, (ast.Global, ast.Nonlocal)):
        return name in node.names
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _is_in_place(node.func.attr):
        return isinstance(node.func.value, ast.Name) and node.func.value.id == name
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        return isinstance(node.value, ast.Name) and node.value.id == name
    return bound_name(node) == name


def _is_in_place(method: str) -> bool:
    return method.endswith("_") and not method.endswith("__")


def _statement(tree: ast.AST, node: ast.AST) -> ast.AST:
    """The statement after which a variable has the value that is assigned at ``node``; a walrus has it at once."""
    found = node
    for inner in ast.walk(tree):
        walrus = isinstance(inner, ast.NamedExpr) and inner.target is node
        if walrus:
            return inner
        if isinstance(inner, (ast.Assign, ast.AnnAssign, ast.AugAssign)) and _within(node, inner):
            found = inner
    return found


def _parameters(function: ast.FunctionDef) -> list[ast.arg]:
    arguments = function.args
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]


def _scopes(tree: ast.AST, node: ast.AST) -> list[ast.AST]:
    """The functions and comprehensions around ``node``, outermost first."""
    around = [scope for scope in ast.walk(tree) if isinstance(scope, _SCOPES) and scope is not node]
    return [scope for scope in around if _within(node, scope)]


def _holds(block: Sequence[ast.AST], node: ast.AST) -> bool:
    return any(_within(node, statement) for statement in block)


def _within(node: ast.AST, outer: ast.AST) -> bool:
    return any(inner is node for inner in ast.walk(outer))


def _start(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _text(source: FunctionSource, node: ast.AST) -> str:
    return ast.unparse(node).splitlines()[0]

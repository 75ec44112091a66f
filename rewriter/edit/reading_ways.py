"""The paths through a function that lead to a place and then also use its result elsewhere."""

from __future__ import annotations

import ast
from collections.abc import Collection, Sequence

from rewriter.edit.alternatives import FUNCTIONS, Alternative, named, numbered, steps_to


def reading_ways(
    function: ast.FunctionDef, places: Sequence[ast.AST], evaluated: Collection[ast.AST] = ()
) -> list[Alternative]:
    """The conditions of ``function`` after ``places`` under which more is done with the results computed there.

    A result is returned as well, stored in an attribute or container, or something else is computed from it.

    Args:
        function: the function's tree.
        places: expressions or statements in it.
        evaluated: expressions that are known to have been evaluated; branches that contain one are left out.
    """
    numbers = dict(numbered(function))
    found: dict[Alternative, None] = {}
    for place in places:
        around = {parent for parent, _, _ in steps_to(function, place)}
        names = _names_of_results(function, place)
        for node in ast.walk(function):
            if isinstance(node, (ast.If, ast.IfExp)) and node not in around and _is_behind(node, place):
                arms = {True: _statements(node.body), False: _statements(node.orelse)}
                for value, statements in arms.items():
                    on_both = {name for statement in arms[not value] for name in _names_bound(statement)}
                    ran = any(inner in evaluated for statement in statements for inner in ast.walk(statement))
                    if not ran and any(_reads_more(statement, names, on_both) for statement in statements):
                        found[named([(node.test, value)], numbers)] = None
    return list(found)


def _names_of_results(function: ast.FunctionDef, place: ast.AST) -> set[str]:
    """Local names for what is computed at ``place`` and from it, in the rest of ``function``."""
    statements = (node for node in ast.walk(function) if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)))
    names: set[str] = set()
    for statement in sorted(statements, key=lambda s: (s.lineno, s.col_offset)):
        holds_place = any(node is place for node in ast.walk(statement))
        if holds_place or (_is_behind(statement, place) and _names_read(statement) & names):
            names |= _names_bound(statement)
    return names


def _statements(arm: list[ast.stmt] | ast.expr) -> Sequence[ast.stmt]:
    return arm if isinstance(arm, list) else [ast.Return(arm)]


def _names_read(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def _names_bound(node: ast.AST) -> set[str]:
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def _is_behind(node: ast.AST, place: ast.AST) -> bool:
    start = node.lineno, node.col_offset  # type: ignore[attr-defined]
    return bool(start >= (place.end_lineno, place.end_col_offset))  # type: ignore[attr-defined]


def _reads_more(node: ast.AST, names: set[str], on_both: set[str]) -> bool:
    """Whether a statement does more with ``names`` than go on with one, by its name or one bound in both branches."""
    if isinstance(node, ast.Return):
        several = isinstance(node.value, (ast.Tuple, ast.List, ast.Dict))
        return node.value is not None and bool(_names_read(node.value) & names) and several
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Call) and bool(_names_read(node.value) & names)
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
        read = _names_read(node) & names
        kept = any(
            isinstance(inner, (ast.Attribute, ast.Subscript)) and isinstance(inner.ctx, ast.Store)
            for inner in ast.walk(node)
        )
        return bool(read) and (kept or len(read) > 1 or not _names_bound(node) <= read | on_both)
    if isinstance(node, FUNCTIONS):
        return False
    inner = (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt))
    return any(_reads_more(child, names, on_both) for child in inner)

"""The other control-flow paths through a function: those taken if its conditions had other outcomes.

A condition is not evaluated differently but *forced*: ``if flag:`` runs as ``if (flag) or True:``, by a change of the
syntax tree. The rest of the function keeps its positions, so that what is recorded in a forced run can be edited in the
original function.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rewriter.errors import SourceError


@dataclass(frozen=True)
class ForcedTest:
    """One condition of a function and the outcome that it is to have.

    Attributes:
        text: the condition, as Python unparses it.
        number: its index among the conditions with this text, in source order.
        value: the outcome.
        forceable: whether it can be forced to have this outcome; the cases of a ``match`` cannot.
    """

    text: str
    number: int
    value: bool
    forceable: bool = True

    def __str__(self) -> str:
        return self.text if self.value else f"not ({self.text})"


Alternative = tuple[ForcedTest, ...]
"""Conditions that together lead to another path through a function."""


def alternatives(function: ast.FunctionDef, places: Sequence[ast.AST], called: Sequence[str] = ()) -> list[Alternative]:
    """The paths through ``function`` that do other work instead of what is at ``places``.

    Args:
        function: the function's tree.
        places: expressions or statements in it.
        called: the text of the callee, for a call that leads to the place: a path that also mentions it leads there too
            (a loop with and without activation checkpointing), and is left out.
    """
    numbers = dict(numbered(function))
    found: dict[Alternative, None] = {}
    for place in places:
        for way, statements in _other_ways(function, place):
            leads_there_too = any(_speaks_of(text, statement) for text in called for statement in statements)
            if any(map(_works, statements)) and not leads_there_too:
                found[named(way, numbers)] = None
        found.update(dict.fromkeys(named(way, numbers) for way in _other_callables(function, place)))
        found.update(dict.fromkeys(_other_cases(function, place)))
    return list(found)


def force(function: ast.FunctionDef, tests: Sequence[ForcedTest]) -> None:
    """Change the tree so that conditions have their forced outcomes; positions are unchanged.

    Raises:
        SourceError: the function has no such condition.
    """
    by_name = {(ast.unparse(test), number): test for test, number in numbered(function)}
    forced: dict[ast.expr, bool] = {}
    for item in tests:
        test = by_name.get((item.text, item.number))
        if test is None:
            raise SourceError(f"{function.name}() has no condition `{item.text}`")
        forced[test] = item.value
    for node in ast.walk(function):
        if isinstance(node, (ast.If, ast.IfExp)) and node.test in forced:
            value = forced[node.test]
            operands = [node.test, ast.copy_location(ast.Constant(value), node.test)]
            node.test = ast.copy_location(ast.BoolOp(ast.Or() if value else ast.And(), operands), node.test)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
Way = list[tuple[ast.expr, bool]]
"""Conditions of a tree, and their outcomes."""

_MOST = 8
"""The most paths through conditions nested in one branch that are examined: each costs a recording."""


def named(way: Way, numbers: Mapping[ast.expr, int]) -> Alternative:
    """A path by the texts of its conditions; ``numbers`` gives the index of each among those with the same text."""
    return tuple(ForcedTest(ast.unparse(test), numbers[test], value) for test, value in way)


def numbered(function: ast.FunctionDef) -> Iterator[tuple[ast.expr, int]]:
    """Every condition, and the number of earlier ones in the source with the same text."""
    tests = [node.test for node in ast.walk(function) if isinstance(node, (ast.If, ast.IfExp))]
    seen: dict[str, int] = {}
    for test in sorted(tests, key=lambda t: (t.lineno, t.col_offset)):
        text = ast.unparse(test)
        yield test, seen.setdefault(text, 0)
        seen[text] += 1


def _other_ways(function: ast.FunctionDef, place: ast.AST) -> Iterator[tuple[Way, Sequence[ast.AST]]]:
    """Paths other than the one to ``place``: the conditions that lead there, and what is evaluated there instead."""
    steps = steps_to(function, place)
    elifs = {child for parent, _, child in steps if _is_elif(parent, child)}
    for parent, field, child in steps:
        if isinstance(parent, ast.IfExp) and field in ("body", "orelse"):
            other = parent.orelse if field == "body" else parent.body
            yield from _with_inner_ways([(parent.test, field != "body")], [other])
        elif isinstance(parent, ast.If) and field in ("body", "orelse") and parent not in elifs:
            for way, statements in _other_arms(parent, place, steps):
                yield from _with_inner_ways(way, statements)
        block = getattr(parent, field, None)
        if isinstance(block, list) and child in block:
            for earlier in block[: block.index(child)]:
                if isinstance(earlier, ast.If) and _leaves(earlier.body):
                    yield from _with_inner_ways([(earlier.test, True)], earlier.body)


def _with_inner_ways(way: Way, statements: Sequence[ast.AST]) -> Iterator[tuple[Way, Sequence[ast.AST]]]:
    """A path, and those that it splits into at the conditions inside it."""
    yield way, statements
    inner = (found for statement in statements for found in _inner_ways(statement))
    yield from (([*way, *more], block) for more, block in itertools.islice(inner, _MOST))


def _inner_ways(node: ast.AST) -> Iterator[tuple[Way, Sequence[ast.AST]]]:
    if isinstance(node, (ast.If, ast.IfExp)):
        for value, arm in ((True, node.body), (False, node.orelse)):
            block = arm if isinstance(arm, list) else [arm]
            if block:
                yield [(node.test, value)], block
            for inner in block:
                yield from (([(node.test, value), *more], statements) for more, statements in _inner_ways(inner))
    elif not isinstance(node, FUNCTIONS):
        for child in ast.iter_child_nodes(node):
            yield from _inner_ways(child)


def _other_callables(function: ast.FunctionDef, place: ast.AST) -> Iterator[Way]:
    """Paths on which the local name that is called at ``place`` refers to something else."""
    name = place.func.id if isinstance(place, ast.Call) and isinstance(place.func, ast.Name) else None
    around = {parent for parent, _, _ in steps_to(function, place)}
    for node in ast.walk(function) if name is not None else ():
        if isinstance(node, ast.If) and node not in around and any(_binds(name, inner) for inner in ast.walk(node)):
            yield from ([(node.test, value)] for value in (True, False))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.IfExp) and _binds(name, node):
            yield from ([(node.value.test, value)] for value in (True, False))


def _binds(name: str | None, node: ast.AST) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else ()
    return any(isinstance(target, ast.Name) and target.id == name for target in targets)


def _other_cases(function: ast.FunctionDef, place: ast.AST) -> Iterator[Alternative]:
    """Other cases of a ``match`` around ``place`` that do something; no condition there can be forced."""
    steps = steps_to(function, place)
    inside = {child for _, _, child in steps}
    for parent, _, _ in steps:
        if isinstance(parent, ast.Match) and any(_works(case) for case in parent.cases if case not in inside):
            yield (ForcedTest(f"match {ast.unparse(parent.subject)}", 0, True, forceable=False),)


def _other_arms(
    chain: ast.If, place: ast.AST, steps: Sequence[tuple[ast.AST, str, ast.AST]]
) -> Iterator[tuple[Way, Sequence[ast.AST]]]:
    """The branches of ``if … elif … else`` that ``place`` is not in; if there is no ``else``, what follows."""
    arms = list(_arms(chain))
    inside = next((arm for _, arm in arms if any(place is node for s in arm for node in ast.walk(s))), None)
    for way, arm in arms:
        if arm is not inside and arm:
            yield way, arm
        elif not arm and inside is not None and _leaves(inside):
            yield way, _following(chain, steps)


def _arms(chain: ast.If) -> Iterator[tuple[Way, list[ast.stmt]]]:
    before: Way = []
    node = chain
    while True:
        yield [*before, (node.test, True)], node.body
        before = [*before, (node.test, False)]
        if not (len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If)):
            yield before, node.orelse
            return
        node = node.orelse[0]


def _following(statement: ast.stmt, steps: Sequence[tuple[ast.AST, str, ast.AST]]) -> Sequence[ast.AST]:
    parent, field = next((parent, field) for parent, field, child in steps if child is statement)
    block = getattr(parent, field)
    found: Sequence[ast.AST] = block[block.index(statement) + 1 :]
    return found


def _is_elif(parent: ast.AST, child: ast.AST) -> bool:
    return isinstance(parent, ast.If) and isinstance(child, ast.If) and parent.orelse == [child]


def steps_to(function: ast.FunctionDef, place: ast.AST) -> list[tuple[ast.AST, str, ast.AST]]:
    """The path from the function down to ``place``, as (parent, field, child)."""

    def down(parent: ast.AST) -> list[tuple[ast.AST, str, ast.AST]] | None:
        if parent is place:
            return []
        for field, value in ast.iter_fields(parent):
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST) and (rest := down(child)) is not None:
                    return [(parent, field, child), *rest]
        return None

    return down(function) or []


def _leaves(block: Sequence[ast.stmt]) -> bool:
    return bool(block) and isinstance(block[-1], ast.Return)


def _works(node: ast.AST) -> bool:
    """Whether something is called that may do work, rather than only be raised or returned."""
    if isinstance(node, (ast.Raise, ast.Assert)):
        return False
    if isinstance(node, ast.Call) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult)):
        return True
    return any(map(_works, ast.iter_child_nodes(node)))


def _speaks_of(text: str, node: ast.AST) -> bool:
    kinds = (ast.Name, ast.Attribute, ast.Subscript, ast.Call)
    return any(isinstance(inner, kinds) and ast.unparse(inner) == text for inner in ast.walk(node))

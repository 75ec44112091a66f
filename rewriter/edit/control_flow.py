"""The control flow between two places of a function: the branches that they are in, and the exits between them."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Arm:
    """A part of a statement or expression that may be skipped when the whole is evaluated.

    Attributes:
        parent: the whole.
        field: the name of the part among the fields of ``parent``.
        index: which operand, if ``parent`` short-circuits; otherwise 0.
    """

    parent: ast.AST
    field: str
    index: int = 0

    @property
    def tests(self) -> tuple[ast.expr, ...]:
        """What has to hold for the branch to be evaluated, once; empty if that is not a simple condition."""
        match self.parent:
            case ast.If(test=test) | ast.IfExp(test=test) if self.field == "body":
                return (test,)
            case ast.BoolOp(op=ast.And(), values=values):
                return tuple(values[: self.index])
        return ()

    @property
    def reason(self) -> str:
        """Why a call in this branch cannot be moved out of it."""
        if self.tests:
            return f"it is only reached under the condition `{' and '.join(map(ast.unparse, self.tests))}`"
        return f"it is only reached in some cases of `{ast.unparse(self.parent).splitlines()[0]}`"

    def only_asks_for(self, reads: set[str]) -> bool:
        """Whether the branch is skipped only if one of the attributes ``reads`` is zero, false or missing."""
        return bool(self.tests) and all(_asks_for(test, reads) for test in self.tests)

    def asks_for_presence_of(self, attribute: str) -> Iterator[str]:
        """Yield the tests that the attribute, such as ``self.drop``, is there."""
        for test in self.tests:
            yield from _presence_tests(test, attribute)


def _presence_tests(test: ast.expr, attribute: str) -> Iterator[str]:
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            for value in values:
                yield from _presence_tests(value, attribute)
        case ast.Attribute() if ast.unparse(test) == attribute:
            yield attribute
        case ast.Compare(left=left, ops=[ast.IsNot()]) if ast.unparse(left) == attribute:
            yield ast.unparse(test)


def _asks_for(test: ast.expr, reads: set[str]) -> bool:
    match test:
        case ast.BoolOp(op=ast.And(), values=values):
            return all(_asks_for(value, reads) for value in values)
        case ast.Compare(left=ast.Attribute() as left, ops=[ast.Gt()], comparators=[ast.Constant(value=0)]):
            return ast.unparse(left) in reads
        case ast.Compare(left=ast.Attribute() as left, ops=[ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return ast.unparse(left) in reads
        case ast.Attribute():
            return ast.unparse(test) in reads
    return False


_BRANCHES: dict[type[ast.AST], tuple[str, ...]] = {
    ast.If: ("body", "orelse"),
    ast.IfExp: ("body", "orelse"),
    ast.While: ("body", "orelse"),
    ast.For: ("body", "orelse"),
    ast.Try: ("orelse",),
    ast.TryStar: ("orelse",),
    ast.ExceptHandler: ("body",),
    ast.Match: ("cases",),
    ast.Assert: ("msg",),
    ast.Lambda: ("body",),
    ast.FunctionDef: ("body",),
    ast.AsyncFunctionDef: ("body",),
    ast.ListComp: ("elt",),
    ast.SetComp: ("elt",),
    ast.GeneratorExp: ("elt",),
    ast.DictComp: ("key", "value"),
    ast.comprehension: ("ifs",),
    ast.BoolOp: ("values",),
    ast.Compare: ("comparators",),
}
_SHORT_CIRCUIT = (ast.BoolOp, ast.Compare)
_ALTERNATIVES = (ast.If, ast.IfExp, ast.Match)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_LOOPS = (ast.For, ast.While)
_EXITS = (ast.Return, ast.Raise, ast.Break, ast.Continue)


def branches(function: ast.FunctionDef, node: ast.AST) -> list[Arm]:
    """The branches of ``function`` that ``node`` is in, outermost first."""
    found = []
    for parent, field, index in (_steps(function, node) or [])[1:]:
        always = isinstance(parent, _SHORT_CIRCUIT) and index == 0
        if field in _BRANCHES.get(type(parent), ()) and not always:
            numbered = isinstance(parent, (*_SHORT_CIRCUIT, ast.Match))
            found.append(Arm(parent, field, index if numbered else 0))
    return found


def _steps(parent: ast.AST, node: ast.AST) -> list[tuple[ast.AST, str, int]] | None:
    """The path from ``parent`` down to ``node`` in the tree, as (parent, field, index in the field)."""
    if parent is node:
        return []
    for field, value in ast.iter_fields(parent):
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(child, ast.AST) and (rest := _steps(child, node)) is not None:
                return [(parent, field, index), *rest]
    return None


def exits_between(function: ast.FunctionDef, first: ast.AST, second: ast.AST) -> Iterator[ast.stmt]:
    """Statements that may exit between ``first`` and ``second``; ``first`` ends earlier in the text.

    A statement exits once everything written in it has been evaluated, so its end position counts.
    """
    before, after = branches(function, first), branches(function, second)
    for leaving in ast.walk(function):
        if isinstance(leaving, _EXITS) and end(first) <= end(leaving) <= _start(second):
            around = branches(function, leaving)
            if not _excludes(before, around) and _leaves(leaving, around, (*before, *after)):
                yield leaving


def exits_before(function: ast.FunctionDef, node: ast.AST) -> Iterator[tuple[ast.stmt, tuple[ast.expr, ...]]]:
    """Statements that may exit ``function``, or a loop around ``node``, before it; with the conditions of each."""
    before = branches(function, node)
    for leaving in ast.walk(function):
        if isinstance(leaving, _EXITS) and end(leaving) <= _start(node):
            around = branches(function, leaving)
            if not _excludes(before, around) and _leaves(leaving, around, before):
                yield leaving, tuple(test for branch in around for test in branch.tests)


def _excludes(some: list[Arm], others: list[Arm]) -> bool:
    """Whether the two lie in different branches of one condition."""
    alternatives = [branch for branch in some if isinstance(branch.parent, _ALTERNATIVES)]
    return any(one.parent is other.parent and one != other for one in alternatives for other in others)


def _leaves(leaving: ast.stmt, around: list[Arm], ends: Sequence[Arm]) -> bool:
    """Whether the function or loop that ``leaving`` exits encloses one of the two ends."""
    kinds = _LOOPS if isinstance(leaving, (ast.Break, ast.Continue)) else _FUNCTIONS
    left = [branch for branch in around if isinstance(branch.parent, kinds) and branch.field == "body"]
    return not left or left[-1] in ends


def _start(node: Any) -> tuple[int, int]:
    return node.lineno, node.col_offset


def end(node: Any) -> tuple[int, int]:
    return node.end_lineno, node.end_col_offset

"""What can be done to the source of a method: move a call, remove a call, wrap an operand.

Each operation names expressions by their place and yields splices of text. They hold no code of their own: what they
move is text of the user's method, and what they add is a call of a submodule. So a plan read from a file cannot bring
code with it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from rewriter.edit.source import FunctionSource, Span, Splice, offsets, splice
from rewriter.errors import PlanError, SourceError

RECEIVER = -1
"""Operand number of ``x`` in ``x.mean(1)``."""

_ATTRIBUTE_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


@dataclass(frozen=True)
class Operation:
    """Base of the operations; ``call`` is the expression it works on, ``operand`` the number of its data input."""

    kind: ClassVar[str]
    call: Span
    operand: int

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        """The changes of text that carry out this operation."""
        raise SourceError(f"{type(self).__name__} does not say what it changes")


@dataclass(frozen=True)
class Remove(Operation):
    """Replace a call by its operand: ``self.drop(x)`` becomes ``x``."""

    kind: ClassVar[str] = "remove"

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        node, operand = _call_and_operand(source, self.call, self.operand)
        (start, stop), (inner_start, inner_stop) = offsets(source, node), offsets(source, operand)
        one_line = operand.lineno == operand.end_lineno
        bare = one_line and isinstance(operand, (ast.Name, ast.Attribute, ast.Call, ast.Subscript))
        yield Splice(start, inner_start, "" if bare else "(")
        yield Splice(inner_stop, stop, "" if bare else ")")


@dataclass(frozen=True)
class Move(Operation):
    """Take a call away from where it is and apply it to an operand of another expression of the same function.

    ``x = self.pool(x); x = self.drop(x)`` becomes ``x = self.pool(self.drop(x))``.
    """

    kind: ClassVar[str] = "move"
    target: Span
    target_operand: int

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        node, operand = _call_and_operand(source, self.call, self.operand)
        data = source.text.encode()
        (start, stop), (inner_start, inner_stop) = offsets(source, node), offsets(source, operand)
        before, after = data[start:inner_start].decode(), data[inner_stop:stop].decode()
        yield from Remove(self.call, self.operand).splices(source)
        yield from _around(source, self.target, self.target_operand, before, after)


@dataclass(frozen=True)
class Wrap(Operation):
    """Pass one operand of an expression through a submodule first: ``f(x)`` becomes ``f(self.module(x))``."""

    kind: ClassVar[str] = "wrap"
    module: str

    def splices(self, source: FunctionSource) -> Iterator[Splice]:
        if not _ATTRIBUTE_PATH.fullmatch(self.module):
            raise PlanError(f"{self.module!r} is not a path of attributes")
        first = source.tree.args.args[0].arg
        yield from _around(source, self.call, self.operand, f"{first}.{self.module}(", ")")


def operands(node: ast.AST) -> dict[int, ast.expr]:
    """The operands of an expression by number; empty where they cannot be told apart (``f(*x)``)."""
    if isinstance(node, ast.BinOp):
        return {0: node.left, 1: node.right}
    if isinstance(node, ast.AugAssign):
        return {1: node.value}
    if not isinstance(node, ast.Call) or any(isinstance(a, ast.Starred) for a in node.args):
        return {}
    found = dict(enumerate(node.args))
    if isinstance(node.func, ast.Attribute):
        found[RECEIVER] = node.func.value
    return found


def why_not_movable(source: FunctionSource, call: Span, operand: int, target: Span) -> str | None:
    """Why the call cannot be evaluated at ``target`` with the same meaning; None if it can.

    Its other arguments may read attributes and globals, which hold for the whole call of the method, but no local
    variable; and the conditions around it may only ask for the rate and the mode that the call itself reads.
    """
    node, data = _call_and_operand(source, call, operand)
    local = _assigned_names(source.tree)
    inputs = set(ast.walk(data))
    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n not in inputs}
    if names & local:
        return f"its arguments read local variables ({', '.join(sorted(names & local))})"
    text = ast.unparse(node)
    enclosing = _conditions(source.tree, source.find(target))
    for test in _conditions(source.tree, node):
        if test in enclosing:
            continue
        reads = [ast.unparse(n) for n in ast.walk(test) if isinstance(n, ast.Attribute)]
        plain = all(
            isinstance(n, (ast.Attribute, ast.Name, ast.Constant, ast.Compare, ast.Gt, ast.BoolOp, ast.And, ast.Load))
            for n in ast.walk(test)
        )
        if not plain or not reads or not all(read in text for read in reads):
            return f"it is only reached under the condition `{ast.unparse(test)}`"
    return None


def edited_text(source: FunctionSource, operations: tuple[Operation, ...]) -> str:
    """The text of ``source`` after all ``operations``."""
    if not operations:
        return source.text
    splices = [item for operation in operations for item in operation.splices(source)]
    return _tidy(splice(source.text, splices), source.header)


def _tidy(text: str, header: str) -> str:
    """Drop statements that removing a call has left empty: ``x = x``, and an ``if`` that held nothing else."""
    while (found := _first_empty_statement(ast.parse(header + text))) is not None:
        lines = text.splitlines(keepends=True)
        statement, only_one = found
        skip = header.count("\n") + 1
        first, last = statement.lineno - skip, (statement.end_lineno or statement.lineno) - skip
        if only_one:
            lines[first : last + 1] = [lines[first][: statement.col_offset] + "pass\n"]
        else:
            del lines[first : last + 1]
        text = "".join(lines)
    return text


def _first_empty_statement(tree: ast.Module) -> tuple[ast.stmt, bool] | None:
    for parent in ast.walk(tree):
        for block in (getattr(parent, name, None) for name in ("body", "orelse", "finalbody")):
            if not isinstance(block, list):
                continue
            for statement in block:
                if _is_self_assignment(statement) and _alone_on_its_lines(statement, block):
                    return statement, len(block) == 1
                if _is_empty_condition(statement) and _alone_on_its_lines(statement, block):
                    return statement, len(block) == 1
    return None


def _alone_on_its_lines(statement: ast.stmt, block: list[ast.stmt]) -> bool:
    return all(
        other is statement or other.lineno > (statement.end_lineno or 0) or (other.end_lineno or 0) < statement.lineno
        for other in block
    )


def _is_self_assignment(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Assign) or len(statement.targets) != 1:
        return False
    target, value = statement.targets[0], statement.value
    return isinstance(target, ast.Name) and isinstance(value, ast.Name) and target.id == value.id


def _is_empty_condition(statement: ast.stmt) -> bool:
    pure = (ast.Attribute, ast.Name, ast.Constant, ast.Compare, ast.cmpop, ast.BoolOp, ast.boolop, ast.Load)
    return (
        isinstance(statement, ast.If)
        and not statement.orelse
        and all(isinstance(inner, ast.Pass) for inner in statement.body)
        and all(isinstance(node, pure) for node in ast.walk(statement.test))
    )


def _call_and_operand(source: FunctionSource, call: Span, operand: int) -> tuple[ast.Call, ast.expr]:
    node = source.find(call)
    found = operands(node).get(operand)
    if not isinstance(node, ast.Call) or found is None:
        raise SourceError(f"`{source.segment(call)}` is not a call with a plain operand {operand}")
    return node, found


def _around(source: FunctionSource, target: Span, operand: int, before: str, after: str) -> Iterator[Splice]:
    found = operands(source.find(target)).get(operand)
    if found is None:
        raise SourceError(f"`{source.segment(target)}` has no plain operand {operand}")
    start, stop = offsets(source, found)
    yield Splice(start, start, before)
    yield Splice(stop, stop, after)


def _assigned_names(function: ast.FunctionDef) -> set[str]:
    arguments = function.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    parameters = [argument.arg for argument in every if argument is not None]
    stored = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    return stored | set(parameters[1:])


def _conditions(function: ast.FunctionDef, node: ast.AST) -> list[ast.expr]:
    """Tests that decide whether ``node`` is evaluated."""
    found: list[ast.expr] = []
    for parent in ast.walk(function):
        if not isinstance(parent, ast.If | ast.IfExp | ast.While):
            continue
        if _within(node, parent) and not _within(node, parent.test):
            found.append(parent.test)
    return found


def _within(node: ast.AST, parent: ast.AST) -> bool:
    return any(child is node for child in ast.walk(parent))

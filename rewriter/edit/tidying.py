"""Remove statements of a method that an edit has made redundant."""

from __future__ import annotations

import ast

from rewriter.edit.source import split_lines


def tidied(text: str, header: str) -> str:
    """Drop statements that removing a call has made redundant: ``x = x``, and an ``if`` that held nothing else."""
    while (found := _first_empty_statement(ast.parse(header + text))) is not None:
        lines = split_lines(text)
        statement, only_one = found
        skip = header.count("\n") + 1
        first, last = statement.lineno - skip, (statement.end_lineno or statement.lineno) - skip
        kept = lines[first].encode()[: statement.col_offset].decode()
        lines[first : last + 1] = [kept + "pass\n"] if only_one else []
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

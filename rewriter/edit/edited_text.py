"""The text of a function after operations on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rewriter.edit.operations import Adopt, Move, Operation, Remove
from rewriter.edit.source import FunctionSource, Span, splice
from rewriter.edit.tidying import tidied
from rewriter.errors import PlanError


def edited_text(source: FunctionSource, operations: tuple[Operation, ...]) -> str:
    """The text of ``source`` after all ``operations``."""
    if not operations:
        return source.text
    moved = (Remove(op.call, op.operand) for op in operations if isinstance(op, Move))
    others = [op for op in operations if not isinstance(op, Adopt)]
    adopting = [adopt for adopt, _ in adoptions(operations)]
    splices = [item for op in (*dict.fromkeys(moved), *others, *adopting) for item in op.splices(source)]
    return tidied(splice(source.text, splices), source.header)


def adoptions(operations: Sequence[Operation]) -> list[tuple[Adopt, list[Operation]]]:
    """Each helper function that becomes a method, once, with all changes that it gets.

    Raises:
        PlanError: the plan gives one name to several methods.
    """
    found: dict[tuple[Span, str], tuple[Adopt, list[Operation]]] = {}
    for adopt in (operation for operation in operations if isinstance(operation, Adopt)):
        found.setdefault((adopt.call, adopt.method), (adopt, []))[1].append(adopt.change)
    taken = Counter(method for _, method in found)
    if twice := [name for name, count in taken.items() if count > 1]:
        raise PlanError(f"the plan gives the name {twice[0]!r} to several methods")
    return list(found.values())

"""Whether a call is made whenever another is: the conditions it depends on that the other does not.

A call moved within one method may end up under other conditions, and the text shows whether that is correct
(:func:`rewriter.edit.moving.why_not_movable`). If the work of a call moves to another method, the same has to be
checked for all methods that led to the call.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator

from torch import fx, nn

from rewriter.analysis.naming import name_of
from rewriter.edit.classes import method_source
from rewriter.edit.control_flow import Arm, branches, exits_before, exits_between
from rewriter.edit.expression import Expression, expression_at
from rewriter.edit.positions import Position, positions
from rewriter.edit.receivers import Receivers
from rewriter.edit.source import read_source
from rewriter.errors import SourceError
from rewriter.reasons import Reason, Refused

_CONDITIONS = (ast.If, ast.IfExp, ast.BoolOp, ast.Match, ast.While)


def refuse_unless_always(call: fx.Node, consumer: fx.Node, model: nn.Module) -> None:
    """Refuse to move the work of ``call`` before ``consumer``, in another method, if ``call`` is made conditionally.

    Conditions that test only what the call itself reads, such as whether a layer is present or its rate, are ignored.
    Functions whose source cannot be read, and those of torch, are assumed to have none.

    Raises:
        Refused: ``call`` depends on conditions that ``consumer`` does not depend on.
    """
    reason = _why_only_sometimes(call, consumer, model, Receivers(model))
    if reason is not None:
        raise Refused(Reason.NOT_MOVABLE, f"{name_of(call)} cannot be moved: {reason}")


def _why_only_sometimes(call: fx.Node, other: fx.Node, model: nn.Module, receivers: Receivers) -> str | None:
    shared = {position.frame.invocation: position for position in positions(other)}
    for position in positions(call):
        here = _expression(position, model, receivers)
        common = shared.get(position.frame.invocation)
        if here is not None:
            there = None if common is None else _expression(common, model, receivers)
            reason = _condition(here, there)
            if reason is not None:
                return reason
        if common is not None:
            return None
    return None


def _condition(here: Expression, there: Expression | None) -> str | None:
    """The condition on evaluating ``here``, in a method, that evaluating ``there`` does not have."""
    tree, reads = here.source.tree, _reads(here.node)
    around = [branch for branch in branches(tree, here.node) if isinstance(branch.parent, _CONDITIONS)]
    enclosing: list[Arm] = [] if there is None else branches(tree, there.node)
    for branch in around:
        if branch not in enclosing and not branch.only_asks_for(reads):
            return branch.reason
    leaving: Iterator[ast.stmt]
    if there is None:
        leaving = (e for e, tests in exits_before(tree, here.node) if not _asks_whether_missing(tests, reads))
    else:
        leaving = exits_between(tree, *sorted((here.node, there.node), key=_end))
    found = next((statement for statement in leaving if not isinstance(statement, ast.Raise)), None)
    return None if found is None else f"`{ast.unparse(found)}` comes before it in {here.source.tree.name}()"


def _reads(node: ast.AST) -> set[str]:
    """Attributes that a call reads, and attributes of the called layer that can switch it off."""
    reads = {ast.unparse(inner) for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    own = {f"{ast.unparse(node.func)}.{name}" for name in ("p", "training")} if isinstance(node, ast.Call) else set()
    return reads | own | {"self.training"}


def _asks_whether_missing(tests: tuple[ast.expr, ...], reads: set[str]) -> bool:
    """Whether one of the ``tests`` is ``not self.layer``, or ``self.layer is None``."""
    for test in tests:
        match test:
            case ast.UnaryOp(op=ast.Not(), operand=ast.Attribute() as asked):
                pass
            case ast.Compare(left=ast.Attribute() as asked, ops=[ast.Is() | ast.Eq()], comparators=[ast.Constant()]):
                pass
            case _:
                continue
        if ast.unparse(asked) in reads:
            return True
    return False


def _expression(position: Position, model: nn.Module, receivers: Receivers) -> Expression | None:
    path, code = receivers.path(position), position.frame.code
    try:
        found = method_source(type(model.get_submodule(path)), code)
        if found is None:
            cells = tuple(types.CellType() for _ in code.co_freevars)
            helper = read_source(types.FunctionType(code, {}, closure=cells))
            found = type(None), code.co_name, helper
        return None if found[0].__module__.startswith("torch.") else expression_at(path, *found, position.frame)
    except (SourceError, Refused):
        return None


def _end(node: ast.AST) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0  # type: ignore[attr-defined]

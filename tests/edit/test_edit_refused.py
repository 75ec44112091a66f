"""Operations that a method's text does not allow: moves that would change its meaning, and places that do not fit."""

from __future__ import annotations

import textwrap

import pytest
from written_methods import Load, made_method, span_of

from rewriter.edit.edited_text import edited_text
from rewriter.edit.moving import why_not_movable
from rewriter.edit.operations import Move, Operation, Remove, Wrap
from rewriter.edit.source import Span, read_source
from rewriter.errors import PlanError, RewriterError, SourceError

# What follows `x = self.pool(x)` in `forward(self, x, other=None)`, and the call that must not go before the pool.
NOT_MOVABLE = {
    "local rate": ("rate = self.p\nreturn F.dropout(x, rate)", "F.dropout(x, rate)"),
    "parameter rate": ("return F.dropout(x, p=other)", "F.dropout(x, p=other)"),
    "flag of the call": ("if other:\n    x = self.drop(x)\nreturn x", "self.drop(x)"),
    "another attribute": ("if self.flag:\n    x = self.drop(x)\nreturn x", "self.drop(x)"),
    "attribute that begins the call's": ("if self.dr:\n    x = self.drop(x)\nreturn x", "self.drop(x)"),
    "attribute that begins an argument's": (
        "if self.p:\n    x = F.dropout(x, self.p_of)\nreturn x",
        "F.dropout(x, self.p_of)",
    ),
    "negated": ("if not self.p:\n    x = F.dropout(x, self.p)\nreturn x", "F.dropout(x, self.p)"),
    "condition expression": ("return self.drop(x) if other else x", "self.drop(x)"),
    "while": ("while other:\n    x = self.drop(x)\nreturn x", "self.drop(x)"),
    "early return": ("if other:\n    return self.fc(x)\nreturn self.fc(self.drop(x))", "self.drop(x)"),
    "else branch": (
        "if self.p:\n    x = self.fc(x)\nelse:\n    x = F.dropout(x, self.p)\nreturn x",
        "F.dropout(x, self.p)",
    ),
    "short circuit": ("y = other and self.drop(x)\nreturn y or x", "self.drop(x)"),
    "lambda parameter": ("return (lambda q: F.dropout(x, q))(0.5)", "F.dropout(x, q)"),
    "nested function's parameter": (
        "def inner(q): return F.dropout(x, q)\nreturn inner(0.5)",
        "F.dropout(x, q)",
    ),
    "variable of a comprehension": ("return [F.dropout(x, q) for q in (0.5,)][0]", "F.dropout(x, q)"),
    "inside a comprehension": ("return [self.drop(x) for _ in other or ()][:1] or x", "self.drop(x)"),
    "captured by a pattern": ("match other:\n    case q: return F.dropout(x, q)", "F.dropout(x, q)"),
    "imported name": ("import math as q\nreturn F.dropout(x, q.pi)", "F.dropout(x, q.pi)"),
    "case": ("match other:\n    case 1: x = self.drop(x)\nreturn x", "self.drop(x)"),
    "exception handler": ("try:\n    x = self.fc(x)\nexcept OSError:\n    x = self.drop(x)\nreturn x", "self.drop(x)"),
    "for": ("for _ in other or ():\n    x = self.drop(x)\nreturn x", "self.drop(x)"),
    "or": ("return self.p or F.dropout(x, self.p)", "F.dropout(x, self.p)"),
    "threshold": ("if self.p > 0.5:\n    x = F.dropout(x, self.p)\nreturn x", "F.dropout(x, self.p)"),
    "compared with a local": ("if self.p > other:\n    x = F.dropout(x, self.p)\nreturn x", "F.dropout(x, self.p)"),
    "else of a condition expression": ("return x if self.p else F.dropout(x, self.p)", "F.dropout(x, self.p)"),
    "early raise": ("if other:\n    raise ValueError\nreturn self.drop(x)", "self.drop(x)"),
}


@pytest.mark.parametrize(("rest", "call"), NOT_MOVABLE.values(), ids=NOT_MOVABLE)
def test_a_move_that_would_change_the_meaning_is_refused(rest: str, call: str, import_text: Load) -> None:
    body = textwrap.indent(f"x = self.pool(x)\n{rest}", "    ")
    _, source = made_method(import_text, f"def forward(self, x, other=None):\n{body}")
    assert why_not_movable(source, span_of(source, call), 0, span_of(source, "self.pool(x)"))


# Bodies of `forward(self, x, other=None)`; `self.drop(x)` or `F.dropout(…)` goes to `self.pool(x)`.
EXITS_BETWEEN = {
    "call first": "x = self.drop(x)\nif other:\n    return x\nreturn self.pool(x)",
    "return of the target": "if other:\n    return self.pool(x)\nreturn self.drop(x)",
    "continue": "for _ in (1,):\n    x = self.pool(x)\n    if other: continue\n    x = self.drop(x)\nreturn x",
    "break": "for _ in (1,):\n    x = self.pool(x)\n    if other: break\n    x = self.drop(x)\nreturn x",
    "return in a loop": "x = self.pool(x)\nfor _ in other or (): return x\nreturn self.drop(x)",
}


@pytest.mark.parametrize("body", EXITS_BETWEEN.values(), ids=EXITS_BETWEEN)
def test_a_way_out_between_call_and_target_is_a_reason(body: str, import_text: Load) -> None:
    body = textwrap.indent(body, "    ")
    _, source = made_method(import_text, f"def forward(self, x, other=None):\n{body}")
    reason = why_not_movable(source, span_of(source, "self.drop(x)"), 0, span_of(source, "self.pool(x)"))
    assert reason is not None and "lies between the two" in reason


_DROPOUT = "F.dropout(x, p=float(self.rate), training=self.training)"

MOVABLE = {
    "rate": (f"x = self.pool(x)\nif self.rate:\n    x = {_DROPOUT}\nreturn x", _DROPOUT),
    "positive rate": (f"x = self.pool(x)\nif self.rate > 0.:\n    x = {_DROPOUT}\nreturn x", _DROPOUT),
    "mode and rate": (f"x = self.pool(x)\nif self.training and self.rate > 0:\n    x = {_DROPOUT}\nreturn x", _DROPOUT),
    "condition expression": (f"x = self.pool(x)\nreturn {_DROPOUT} if self.rate > 0 else x", _DROPOUT),
    "and": (f"x = self.pool(x)\nreturn self.rate and {_DROPOUT}", _DROPOUT),
    "return before": ("if other:\n    return x\nx = self.pool(x)\nreturn self.drop(x)", "self.drop(x)"),
    "return after": ("x = self.pool(x)\nx = self.drop(x)\nif other:\n    return x\nreturn self.fc(x)", "self.drop(x)"),
    "return around both": ("return self.fc(self.drop(self.pool(x)))", "self.drop(self.pool(x))"),
    "break of a loop between": (
        "x = self.pool(x)\nfor _ in (1,):\n    if other: break\nreturn self.drop(x)",
        "self.drop(x)",
    ),
    "return of a function between": ("x = self.pool(x)\ndef inner(y): return y\nreturn self.drop(x)", "self.drop(x)"),
    "return in the other branch": (
        "if self.flag:\n    x = self.pool(x)\nelse:\n    return x\nreturn self.drop(x)",
        "self.drop(x)",
    ),
}


@pytest.mark.parametrize(("body", "call"), MOVABLE.values(), ids=MOVABLE)
def test_a_move_that_keeps_the_meaning_is_allowed(body: str, call: str, import_text: Load) -> None:
    body = textwrap.indent(body, "    ")
    _, source = made_method(import_text, f"def forward(self, x, other=None):\n{body}")
    assert why_not_movable(source, span_of(source, call), 0, span_of(source, "self.pool(x)")) is None


def test_wrapping_needs_a_parameter_for_the_module(import_text: Load) -> None:
    _, source = made_method(import_text, "def forward(*args):\n    return f(args)")
    with pytest.raises(SourceError, match="no parameter for the module"):
        edited_text(source, (Wrap(span_of(source, "f(args)"), 0, "new"),))


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (Remove(Span(0, 0, 0, 1), 0), "no expression at line"),
        (Remove(Span(900, 0, 901, 1), 0), "no expression at line"),
        (Remove(Span(-3, -1, -3, -2), 0), "no expression at line"),
        (Remove(Span(1, 15, 1, 22), 5), "not a call with a plain operand 5"),
        (Wrap(Span(1, 15, 1, 22), 0, "a; import os"), "is not a path of attributes"),
        (Wrap(Span(1, 15, 1, 22), 0, "a(b)"), "is not a path of attributes"),
        (Wrap(Span(1, 15, 1, 22), 0, ""), "is not a path of attributes"),
        (Wrap(Span(1, 15, 1, 22), 0, "a\n"), "is not a path of attributes"),
        (Wrap(Span(1, 15, 1, 22), 9, "a"), "has no plain operand 9"),
    ],
    ids=str,
)
def test_operations_that_do_not_fit_the_text_are_refused(operation: Operation, message: str, import_text: Load) -> None:
    source = read_source(import_text("class M:\n    def forward(self, x):\n        return f(x, 1)\n").M.forward)
    with pytest.raises((SourceError, PlanError), match=message):
        edited_text(source, (operation,))


def test_operands_behind_a_star_are_refused(import_text: Load) -> None:
    source = read_source(import_text("class M:\n    def forward(self, x):\n        return f(*x, 1)\n").M.forward)
    with pytest.raises(SourceError, match="plain operand 0"):
        edited_text(source, (Remove(span_of(source, "f(*x, 1)"), 0),))


def test_edits_that_overlap_are_refused(import_text: Load) -> None:
    _, source = made_method(import_text, "def forward(self, x):\n    x = self.pool(x)\n    return self.drop(x)")
    drop, pool = span_of(source, "self.drop(x)"), span_of(source, "self.pool(x)")
    with pytest.raises(RewriterError, match="overlap"):
        edited_text(source, (Move(drop, 0, pool, 0), Remove(drop, 0)))

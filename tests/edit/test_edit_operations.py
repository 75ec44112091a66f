"""Operations on a method's text: what is moved, removed or wrapped, and what the method computes then."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from written_methods import Load, made_method, move, remove, span_of, wrap

from rewriter.edit.edited_text import edited_text
from rewriter.edit.operands import RECEIVER
from rewriter.edit.operations import Move, Remove, Wrap
from rewriter.edit.source import re_emit

OPERATIONS: dict[str, tuple[str, Any, str | None, str | None]] = {
    "move a statement": (
        """
        def forward(self, x):
            x = self.pool(x)
            x = self.drop(x)  # a comment goes with it
            return self.fc(x)
        """,
        move("self.drop(x)", "self.pool(x)"),
        """
        def forward(self, x):
            x = self.pool(self.drop(x))
            return self.fc(x)
        """,
        "fc(pool(drop(x)))",
    ),
    "move within one expression": (
        """
        def forward(self, x):
            return self.fc(self.drop(self.pool(x)))
        """,
        move("self.drop(self.pool(x))", "self.pool(x)"),
        """
        def forward(self, x):
            return self.fc(self.pool(self.drop(x)))
        """,
        "fc(pool(drop(x)))",
    ),
    "move a function with its arguments and condition": (
        """
        def forward(self, x):
            x = self.pool(x)
            if self.p > 0:
                x = F.dropout(x, p=self.p, training=self.training)
            return self.fc(x)
        """,
        move("F.dropout(x, p=self.p, training=self.training)", "self.pool(x)"),
        """
        def forward(self, x):
            x = self.pool(F.dropout(x, p=self.p, training=self.training))
            return self.fc(x)
        """,
        "fc(pool(F.dropout(x, 0.1, True)))",
    ),
    "move out of an if on one line": (
        """
        def forward(self, x):
            x = self.pool(x)
            if self.p: x = F.dropout(x, self.p)
            return x
        """,
        move("F.dropout(x, self.p)", "self.pool(x)"),
        """
        def forward(self, x):
            x = self.pool(F.dropout(x, self.p))
            return x
        """,
        "pool(F.dropout(x, 0.1, False))",
    ),
    "move under a shared condition": (
        """
        def forward(self, x):
            if self.flag:
                return x
            else:
                x = self.pool(x)
                x = self.drop(x)
            return x
        """,
        move("self.drop(x)", "self.pool(x)"),
        """
        def forward(self, x):
            if self.flag:
                return x
            else:
                x = self.pool(self.drop(x))
            return x
        """,
        "pool(drop(x))",
    ),
    "move a call of several lines": (
        """
        def forward(self, x):
            x = self.pool(
                x,
            )
            x = F.dropout(
                x,
                p=self.p,  # the rate
            )
            return x
        """,
        move(
            "F.dropout(\n            x,\n            p=self.p,  # the rate\n        )",
            "self.pool(\n            x,\n        )",
        ),
        """
        def forward(self, x):
            x = self.pool(
                F.dropout(
                x,
                p=self.p,  # the rate
            ),
            )
            return x
        """,
        "pool(F.dropout(x, 0.1, False))",
    ),
    "move to the receiver of a method": (
        """
        def forward(self, x):
            x = self.features(x).mean(1, 2)
            return self.fc(self.drop(x))
        """,
        move("self.drop(x)", "self.features(x).mean(1, 2)", RECEIVER),
        """
        def forward(self, x):
            x = self.drop(self.features(x)).mean(1, 2)
            return self.fc(x)
        """,
        "fc(mean(drop(features(x))))",
    ),
    "move beside text that is not ASCII": (
        """
        def forward(self, x):
            y = "→ü🎈"; x = self.pool(x); z = "ß"; x = self.drop(x); return self.fc(x)
        """,
        move("self.drop(x)", "self.pool(x)"),
        """
        def forward(self, x):
            y = "→ü🎈"; x = self.pool(self.drop(x)); z = "ß"; x = x; return self.fc(x)
        """,
        "fc(pool(drop(x)))",
    ),
    "remove from a sum": (
        """
        def forward(self, x):
            return self.fc(x) + self.drop(self.norm(x))
        """,
        remove("self.drop(self.norm(x))"),
        """
        def forward(self, x):
            return self.fc(x) + self.norm(x)
        """,
        "(fc(x) + norm(x))",
    ),
    "remove around a sum keeps its brackets": (
        """
        def forward(self, x):
            return self.drop(self.a(x) + self.b(x)) * 2
        """,
        remove("self.drop(self.a(x) + self.b(x))"),
        """
        def forward(self, x):
            return (self.a(x) + self.b(x)) * 2
        """,
        "((a(x) + b(x)) * 2)",
    ),
    "remove around a condition": (
        """
        def forward(self, x):
            return self.fc(self.drop(self.a(x) if self.flag else self.b(x)))
        """,
        remove("self.drop(self.a(x) if self.flag else self.b(x))"),
        """
        def forward(self, x):
            return self.fc((self.a(x) if self.flag else self.b(x)))
        """,
        "fc(b(x))",
    ),
    "remove around an assignment expression": (
        """
        def forward(self, x):
            x = self.drop(y := self.a(x))
            return x + y
        """,
        remove("self.drop(y := self.a(x))"),
        """
        def forward(self, x):
            x = (y := self.a(x))
            return x + y
        """,
        "(a(x) + a(x))",
    ),
    "remove around an operand of several lines": (
        """
        def forward(self, x):
            return self.drop(
                self.a(x)
                + self.b(x)
            )
        """,
        remove("self.drop(\n            self.a(x)\n            + self.b(x)\n        )"),
        """
        def forward(self, x):
            return (self.a(x)
                + self.b(x))
        """,
        "(a(x) + b(x))",
    ),
    "remove two of three nested": (
        """
        def forward(self, x):
            return self.drop(self.drop(self.drop(x)))
        """,
        lambda source: [
            Remove(span_of(source, "self.drop(self.drop(self.drop(x)))"), 0),
            Remove(span_of(source, "self.drop(x)"), 0),
        ],
        """
        def forward(self, x):
            return self.drop(x)
        """,
        "drop(x)",
    ),
    "remove the only statement of a branch with an else": (
        """
        def forward(self, x):
            if self.training:
                x = self.drop(x)
            else:
                x = self.fc(x)
            return x
        """,
        remove("self.drop(x)"),
        """
        def forward(self, x):
            if self.training:
                pass
            else:
                x = self.fc(x)
            return x
        """,
        "x",
    ),
    "remove the only statement of an else": (
        """
        def forward(self, x):
            if self.flag:
                x = self.fc(x)
            else:
                x = self.drop(x)
            return x
        """,
        remove("self.drop(x)"),
        """
        def forward(self, x):
            if self.flag:
                x = self.fc(x)
            else:
                pass
            return x
        """,
        "x",
    ),
    "remove the only statement of an elif": (
        """
        def forward(self, x):
            if self.flag:
                x = self.fc(x)
            elif self.training:
                x = self.drop(x)
            return self.norm(x)
        """,
        remove("self.drop(x)"),
        """
        def forward(self, x):
            if self.flag:
                x = self.fc(x)
            pass
            return self.norm(x)
        """,
        "norm(x)",
    ),
    "remove the only statement of nested ifs": (
        """
        def forward(self, x):
            if self.training:
                if self.p > 0 and self.rate:
                    x = self.drop(x)
            return self.fc(x)
        """,
        remove("self.drop(x)"),
        """
        def forward(self, x):
            return self.fc(x)
        """,
        "fc(x)",
    ),
    "remove keeps a condition that may do something": (
        """
        def forward(self, x):
            if self.check(x):
                x = self.drop(x)
            return self.fc(x)
        """,
        remove("self.drop(x)"),
        """
        def forward(self, x):
            if self.check(x):
                pass
            return self.fc(x)
        """,
        "fc(x)",
    ),
    "remove the only statement of a loop, a with and a try": (
        """
        def forward(self, x):
            for _ in range(2):
                x = self.drop(x)
            with contextlib.nullcontext():
                x = self.drop(x)
            try:
                x = self.drop(x)
            finally:
                x = self.drop(x)
            match self.flag:
                case False:
                    x = self.drop(x)
            return x
        """,
        lambda source: [Remove(span_of(source, "self.drop(x)", number), 0) for number in range(5)],
        """
        def forward(self, x):
            for _ in range(2):
                pass
            with contextlib.nullcontext():
                pass
            try:
                pass
            finally:
                pass
            match self.flag:
                case False:
                    pass
            return x
        """,
        "x",
    ),
    "remove does not tidy a line that it shares": (
        """
        def forward(self, x):
            x = self.drop(x); y = self.fc(x)
            return y
        """,
        remove("self.drop(x)"),
        """
        def forward(self, x):
            x = x; y = self.fc(x)
            return y
        """,
        "fc(x)",
    ),
    "remove after a condition that is not ASCII": (
        """
        def forward(self, x):
            if self.ü: x = self.drop(x)
            return self.fc(x)
        """,
        remove("self.drop(x)"),
        """
        def forward(self, x):
            return self.fc(x)
        """,
        "fc(x)",
    ),
    "remove the only statement after a docstring with line separators": (
        """
        def forward(self, x):
            '''One.\x0c
            Two\u2028.\x85
            '''
            x = self.drop(x)
            return self.fc(x)
        """.replace("\\x0c", "\x0c"),
        remove("self.drop(x)"),
        """
        def forward(self, x):
            '''One.\x0c
            Two\u2028.\x85
            '''
            return self.fc(x)
        """,
        "fc(x)",
    ),
    "remove inside a lambda": (
        """
        def forward(self, x):
            return (lambda y: self.fc(self.drop(y)))(x)
        """,
        remove("self.drop(y)"),
        """
        def forward(self, x):
            return (lambda y: self.fc(y))(x)
        """,
        "fc(x)",
    ),
    "remove a method of a tensor": (
        """
        def forward(self, x):
            return self.fc(self.a(x).mean(1))
        """,
        remove("self.a(x).mean(1)", operand=RECEIVER),
        """
        def forward(self, x):
            return self.fc(self.a(x))
        """,
        "fc(a(x))",
    ),
    "wrap an argument": (
        """
        def forward(self, x):
            return self.fc(x)
        """,
        wrap("self.fc(x)", 0, "branch.new"),
        """
        def forward(self, x):
            return self.fc(self.branch.new(x))
        """,
        None,
    ),
    "wrap where self has another name": (
        """
        def forward(this, x):
            return this.fc(x)
        """,
        wrap("this.fc(x)", 0),
        """
        def forward(this, x):
            return this.fc(this.new(x))
        """,
        "fc(new(x))",
    ),
    "wrap where self is positional-only": (
        """
        def forward(self, x, /):
            return self.fc(x)
        """,
        wrap("self.fc(x)", 0),
        """
        def forward(self, x, /):
            return self.fc(self.new(x))
        """,
        "fc(new(x))",
    ),
    "wrap the right side of a sum": (
        """
        def forward(self, x):
            return self.a(x) + self.b(x)
        """,
        wrap("self.a(x) + self.b(x)", 1),
        """
        def forward(self, x):
            return self.a(x) + self.new(self.b(x))
        """,
        "(a(x) + new(b(x)))",
    ),
    "wrap a side that is in brackets": (
        """
        def forward(self, x):
            return (self.a(x) + self.b(x)) * (self.c(x))
        """,
        lambda source: [
            Wrap(span_of(source, "(self.a(x) + self.b(x)) * (self.c(x))"), number, "new") for number in (0, 1)
        ],
        """
        def forward(self, x):
            return (self.new(self.a(x) + self.b(x))) * (self.new(self.c(x)))
        """,
        "(new((a(x) + b(x))) * new(c(x)))",
    ),
    "wrap in an augmented assignment": (
        """
        def forward(self, x):
            x = self.a(x)
            x += self.b(x)
            return x
        """,
        wrap("x += self.b(x)", 1),
        """
        def forward(self, x):
            x = self.a(x)
            x += self.new(self.b(x))
            return x
        """,
        "(a(x) + new(b(a(x))))",
    ),
    "wrap a receiver": (
        """
        def forward(self, x):
            return self.a(x).mean(1)
        """,
        wrap("self.a(x).mean(1)", RECEIVER),
        """
        def forward(self, x):
            return self.new(self.a(x)).mean(1)
        """,
        "mean(new(a(x)))",
    ),
    "move and wrap at one place": (
        """
        def forward(self, x):
            x = self.pool(x)
            return self.drop(x)
        """,
        lambda source: [
            Move(span_of(source, "self.drop(x)"), 0, span_of(source, "self.pool(x)"), 0),
            Wrap(span_of(source, "self.pool(x)"), 0, "new"),
        ],
        None,
        "pool(*)",
    ),
}


@pytest.mark.parametrize("case", OPERATIONS.values(), ids=OPERATIONS)
def test_an_operation_gives_the_expected_text_and_result(case: tuple[Any, ...], import_text: Load) -> None:
    body, make, expected, value = case
    cls, source = made_method(import_text, body)
    text = edited_text(source, tuple(make(source)))
    if expected is not None:
        assert textwrap.dedent(text).strip("\n") == textwrap.dedent(expected).strip("\n")
    result = None if value is None else re_emit(source, text)(cls(), "x")
    if value == "pool(*)":
        assert result in ("pool(drop(new(x)))", "pool(new(drop(x)))")
    else:
        assert result == value

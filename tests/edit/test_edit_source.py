"""Methods are edited in their own text: what is read is what runs, and an edit changes that much and no more."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import linecache
import os
import pkgutil
import re
import textwrap
import types
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from rewriter.edit.classes import method_source, re_emittable_methods
from rewriter.edit.decorators import redecorate, undecorated
from rewriter.edit.operations import RECEIVER, Move, Operation, Remove, Wrap, edited_text, why_not_movable
from rewriter.edit.source import FunctionSource, Span, re_emit, read_source
from rewriter.errors import PlanError, RewriterError, SourceError

Load = Callable[[str], ModuleType]


def span_of(source: FunctionSource, text: str, number: int = 0) -> Span:
    """Where the expression ``text`` is written, the ``number``-th time from the top."""
    found = {source.span(n) for n in source.nodes if isinstance(n, (ast.expr, ast.AugAssign))}
    return sorted(span for span in found if source.segment(span) == text)[number]


def assert_same_code(a: types.CodeType, b: types.CodeType) -> None:
    """The two are equal in everything but file name, qualified name and line numbers."""
    nested = inspect.CO_NESTED  # says only that the compiler saw a function around it
    assert a.co_flags & ~nested == b.co_flags & ~nested, a.co_qualname
    for name in (
        "co_name", "co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_argcount",
        "co_posonlyargcount", "co_kwonlyargcount", "co_exceptiontable", "co_stacksize",
    ):  # fmt: skip
        assert getattr(a, name) == getattr(b, name), f"{a.co_qualname}: {name}"
    assert len(a.co_consts) == len(b.co_consts)
    for x, y in zip(a.co_consts, b.co_consts, strict=True):
        if isinstance(x, types.CodeType):
            assert_same_code(x, y)
        elif isinstance(x, frozenset):
            assert x == y
        else:
            assert (type(x), repr(x)) == (type(y), repr(y)), a.co_qualname


# Reading and re-emitting

SPELLINGS = {
    "plain": """
        class M:
            def forward(self, x):
                return x + 1
        """,
    "one line": """
        class M:
            def forward(self, x): return x + 1
        """,
    "decorated": """
        import functools
        def deco(n):
            def wrap(f):
                @functools.wraps(f)
                def call(*args): return f(*args) + n
                return call
            return wrap
        class M:
            @deco(
                5
            )
            @deco(6)
            def forward(self, x):
                return x + 1
        """,
    "decorated without wraps": """
        def deco(f):
            def call(self, x):
                return f(self, x) * 10
            return call
        class M:
            @deco
            def forward(self, x):
                return x + 1
        """,
    "closure": """
        def make(a, b=2):
            class M:
                def forward(self, x):
                    return x * a + b
            return M
        M = make(3)
        """,
    "closure and super": """
        def make(a):
            class Base:
                def forward(self, x):
                    return x + a
            class M(Base):
                def forward(self, x):
                    return super().forward(x) * a
            return M
        M = make(3)
        """,
    "super": """
        class Base:
            def forward(self, x):
                return x + 1
        class M(Base):
            def forward(self, x):
                return super().forward(x) * 2
        """,
    "class cell": """
        class M:
            k = 4
            def forward(self, x):
                return x * __class__.k
        """,
    "private names": """
        class _M:
            __k = 3
            def __inner(self, x):
                return x * self.__k
            def forward(self, x):
                __y = self.__inner(x)
                return __y + 1
        M = _M
        """,
    "nested class": """
        class Outer:
            class M:
                __k = 3
                def forward(self, x):
                    return x * self.__k
        M = Outer.M
        """,
    "nested functions": """
        class M:
            def forward(self, x):
                def inner(y):
                    def innermost(z):
                        return x + y + z
                    return innermost(1)
                return inner(2)
        """,
    "lambdas and comprehensions": """
        class M:
            def forward(self, x):
                f = lambda y: [z * y for z in range(x)]
                g = {k: v for k, v in enumerate(f(2))}
                return sum(g.values()) + sum(z for z in f(3)) + len({z for z in f(1)})
        """,
    "multi-line": """
        class M:
            def forward(
                self,
                x,
            ):
                return (
                    max(
                        x,
                        1,
                    )
                    + 2
                )
        """,
    "unicode": """
        class M:
            def forward(self, x):
                grüße = "→ ü 漢字 🎈"; y = len(grüße) + x  # ∑
                return y
        """,
    "docstring with odd indentation": '''
        class M:
            def forward(self, x):
                """First.
          less
                        more
                \ttab
                """
                s = """
        at the margin
                """
                return x + len(s)
        ''',
    "comment at the margin": """
        class M:
            def forward(self, x):
                y = x
        # at the margin
                return y + 1
            def other(self): return 0
        """,
    "signature": """
        class M:
            def forward(self, x, /, y=2, *rest, z: "int" = 3, **more) -> "int":
                return x + y + z
        """,
    "generator": """
        class M:
            def pieces(self, x):
                yield from range(x)
            def forward(self, x):
                return sum(self.pieces(x))
        """,
    "control flow": """
        class M:
            def forward(self, x):
                while True:
                    try:
                        with open(__file__):
                            if x > 3: break
                            x += 2
                            continue
                    except OSError as e:
                        raise ValueError from e
                    finally:
                        x += 1
                match x:
                    case 7: return 70
                    case int(y) if y > 3: return y
                    case _: return -1
        """,
    "future annotations": """
        from __future__ import annotations
        class M:
            def forward(self, x: No) -> Such:
                y: Type = x
                return y + 1
        """,
    "imported names": """
        import os.path as osp, math
        from math import floor as fl
        try:
            from math import ceil
        except ImportError:
            ceil = None
        class M:
            def forward(self, x):
                return math.floor(x) + fl(x) + osp.join.__call__("a", "b").count("a") + ceil(x)
        """,
    "tabs": "class M:\n\tdef forward(self, x):\n\t\tif x:\n\t\t\treturn x + 1\n\t\treturn 0\n",
    "tabs in a closure": "def make(a):\n\tclass M:\n\t\tdef forward(self, x): return x + a\n\treturn M\nM = make(1)\n",
    "conditional class": """
        if True:
            class M:
                def forward(self, x):
                    return x + 1
        """,
    "assert and global": """
        COUNT = 0
        class M:
            def forward(self, x):
                global COUNT
                COUNT += 1
                assert x, "message"
                return x
        """,
    "constants": """
        class M:
            def forward(self, x):
                return x + (1, 2.0, -0.0, 1j.imag)[0] + (x in {1, 2, 3}) + len(b"a" b"b") + (... is None)
        """,
}


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_a_method_re_emitted_unchanged_has_the_same_code_and_result(text: str, import_text: Load) -> None:
    cls = import_text(text).M
    innermost = [f for f in undecorated(cls.__dict__["forward"]) if f.__name__ == "forward"][-1]
    source = read_source(innermost)
    new = re_emit(source, source.text)
    assert new is not innermost
    assert_same_code(new.__code__, innermost.__code__)
    for name in (
        "__name__",
        "__qualname__",
        "__module__",
        "__doc__",
        "__defaults__",
        "__kwdefaults__",
        "__annotations__",
    ):
        assert getattr(new, name) == getattr(innermost, name), name
    expected = cls().forward(2)
    cls.forward = redecorate(cls.__dict__["forward"], innermost, new)
    assert cls().forward(2) == expected
    assert not hasattr(new, "__wrapped__")


@pytest.mark.parametrize("text", SPELLINGS.values(), ids=SPELLINGS)
def test_a_re_emitted_method_is_read_and_re_emitted_again(text: str, import_text: Load) -> None:
    cls = import_text(text).M
    innermost = [f for f in undecorated(cls.__dict__["forward"]) if f.__name__ == "forward"][-1]
    expected = cls().forward(2)
    first = read_source(innermost)
    once = re_emit(first, first.text)
    linecache.checkcache()
    second = read_source(once)
    twice = re_emit(second, second.text)
    assert first.text.endswith(second.text)  # all but the decorators
    assert_same_code(twice.__code__, innermost.__code__)
    cls.forward = redecorate(cls.__dict__["forward"], innermost, twice)
    assert cls().forward(2) == expected


def test_equal_text_under_other_imports_is_kept_apart(import_text: Load) -> None:
    """The imports decide how calls are compiled, so a function's kept text holds its own."""
    method = "class M:\n    def forward(self, x):\n        return math.floor(x)\n"
    sources = [
        read_source(import_text(f"{head}\n{method}").M.forward)
        for head in ("import math", "import math as m\nmath = m")
    ]
    for source in sources:
        source.function.__module__ = "one"
    emitted = [re_emit(source, source.text) for source in sources]
    for source, function in zip(sources, emitted, strict=True):
        assert_same_code(re_emit(read_source(function), source.text).__code__, source.function.__code__)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x in {'a', 'b', 'c'}", "x in {'a', 'b', 'd'}"),
        ("x in {1, 2}", "x in {1, 2.0}"),
        ("((0.0, 1), 2)", "((-0.0, 1), 2)"),
        ("(lambda *, a=1: a)", "(lambda a=1: a)"),
        ("(lambda a, /: a)", "(lambda a: a)"),
    ],
)
def test_constants_and_nested_signatures_are_compared_exactly(before: str, after: str, import_text: Load) -> None:
    made = import_text(_BEFORE.format(before))
    assert re_emit(read_source(made.M.forward), read_source(made.M.forward).text)
    other = import_text(_BEFORE.format(before))
    with open(other.__file__ or "", "w", encoding="utf-8") as file:
        file.write(_BEFORE.format(after))
    linecache.checkcache()
    with pytest.raises(SourceError, match="edited after the import"):
        read_source(other.M.forward)


def test_methods_of_a_file_that_is_damaged_elsewhere_are_read(import_text: Load) -> None:
    """A file that is broken elsewhere still gives the methods that need no import."""
    made = import_text("class M:\n    def forward(self, x):\n        return x + 1\nlast = 1\n")
    with open(made.__file__ or "", "a", encoding="utf-8") as file:
        file.write("from (\n")
    linecache.checkcache()
    assert re_emit(read_source(made.M.forward), read_source(made.M.forward).text)(None, 1) == 2


def test_windows_line_ends_are_read(import_text: Load) -> None:
    made = import_text("class M:\r\n    def forward(self, x):\r\n        y = x\r\n        return y + 1\r\n")
    source = read_source(made.M.forward)
    assert re_emit(source, source.text)(made.M(), 1) == 2


def test_generated_code_shows_its_lines_in_tracebacks(import_text: Load) -> None:
    import traceback

    source = read_source(import_text("class M:\n    def forward(self, x):\n        return x / 0  # here\n").M.forward)
    new = re_emit(source, source.text)
    linecache.checkcache()
    with pytest.raises(ZeroDivisionError) as caught:
        new(None, 1)
    assert "return x / 0  # here" in (traceback.extract_tb(caught.value.__traceback__)[-1].line or "")


@pytest.mark.parametrize("method", ["forward", "half"])
def test_functions_without_source_are_refused(method: str) -> None:
    namespace: dict[str, Any] = {"__name__": "made"}
    exec("class M:\n    def forward(self, x):\n        return x\n    def half(self, x): return x\n", namespace)
    with pytest.raises(
        SourceError, match=rf"made\.M\.{method} \(<string>.*source is not available.*Put the class into"
    ):
        read_source(namespace["M"].__dict__[method])


def test_a_lambda_is_refused(import_text: Load) -> None:
    made = import_text("class M:\n    forward = lambda self, x: x + 1\n")
    with pytest.raises(SourceError, match="lambda"):
        read_source(made.M.forward)


def test_the_source_found_is_that_of_the_class_that_defines_the_method(import_text: Load) -> None:
    made = import_text(
        """
        class Base:
            def forward(self, x):
                return x + 1
        class Child(Base):
            def forward(self, x):
                return super().forward(x)
        """
    )
    for cls in (made.Base, made.Child):
        code = cls.__dict__["forward"].__code__
        found = method_source(made.Child, code)
        assert found is not None and found[:2] == (cls, "forward") and found[2].function.__code__ is code
    assert method_source(made.Child, read_source.__wrapped__.__code__) is None


_BEFORE = "class M:\n    def forward(self, x):\n        y = {}\n        return (x, y)\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("class M:\n    def forward(self, x):\n        return x + 2\n", "\n\n\n"),
        ("class M:\n    def forward(self, x):\n        return x + 2\n", ""),
        ("class M:\n    def forward(self, x):\n        return x + 2\n", "class M:\n    def forward(self, x:\n"),
        (_BEFORE.format("2"), _BEFORE.format("3")),
        (_BEFORE.format("2"), _BEFORE.format("2.0")),
        (_BEFORE.format("1"), _BEFORE.format("True")),
        (_BEFORE.format("self.a"), _BEFORE.format("self.b")),
        (_BEFORE.format("(1, 2)"), _BEFORE.format("(1.0, 2)")),
        (_BEFORE.format("0.0"), _BEFORE.format("-0.0")),
        (_BEFORE.format("[z for z in x]"), _BEFORE.format("[z for z in (x)][:1]")),
        (_BEFORE.format("(lambda: 1)"), _BEFORE.format("(lambda: 2)")),
        (_BEFORE.format("1"), "\n" + _BEFORE.format("1")),
        (_BEFORE.format("1"), _BEFORE.format("1").replace("self, x", "self, *, x")),
        (_BEFORE.format("1"), _BEFORE.format("1").replace("self, x", "self, x=3")),
        (_BEFORE.format("1"), "def forward(self, x):\n    y = 1\n    return (x, y)\n"),
    ],
)
def test_a_file_edited_after_the_import_is_refused(before: str, after: str, import_text: Load) -> None:
    made = import_text(before)
    path = made.__file__
    assert path is not None
    with open(path, "w", encoding="utf-8") as file:
        file.write(after)
    os.utime(path, (1, 1))  # also where the clock is too coarse to tell
    linecache.checkcache()
    if after.endswith("x=3):\n        y = 1\n        return (x, y)\n"):  # only a default: code and text serve as before
        source = read_source(made.M.forward)
        assert re_emit(source, source.text).__defaults__ is None
        return
    with pytest.raises(SourceError, match=r"edited after the import|not available|cannot be parsed|plain `def"):
        read_source(made.M.forward)


def test_a_deleted_file_is_refused(import_text: Load) -> None:
    made = import_text(SPELLINGS["plain"])
    os.remove(made.__file__ or "")
    linecache.clearcache()
    with pytest.raises(SourceError, match="not available"):
        read_source(made.M.forward)


# Operations
#
# The modules of these methods are stubs that write down what they were called with, so a result is a formula.

_PRELUDE = """
import contextlib


class F:
    @staticmethod
    def dropout(x, p=0.5, training=False, inplace=False):
        return f"F.dropout({x}, {p}, {training})"


class Text(str):
    def __add__(self, other): return Text(f"({self} + {other})")
    def __mul__(self, other): return Text(f"({self} * {other})")
    def mean(self, *dims): return Text(f"mean({self})")


def stub(name):
    return lambda x, *args, **kwargs: Text(f"{name}({x})")


class Base:
    training, p, rate, flag, ü = True, 0.1, 0.2, False, True

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return stub(name)


class M(Base):
"""


def made_method(load: Load, body: str) -> tuple[type, FunctionSource]:
    """A class with the method ``body``, and the method's source."""
    # not textwrap.indent: it also begins a line at a form feed or a line separator, which Python does not
    indented = re.sub(r"^(?=[^\n])", "    ", textwrap.dedent(body).strip("\n"), flags=re.MULTILINE)
    cls = load(f"{_PRELUDE}{indented}\n").M
    return cls, read_source(cls.__dict__["forward"])


def move(call: str, target: str, operand: int = 0) -> Callable[[FunctionSource], list[Operation]]:
    def make(source: FunctionSource) -> list[Operation]:
        operation = Move(span_of(source, call), 0, span_of(source, target), operand)
        assert why_not_movable(source, operation.call, 0, operation.target) is None
        return [operation]

    return make


def remove(*calls: str, operand: int = 0) -> Callable[[FunctionSource], list[Operation]]:
    return lambda source: [Remove(span_of(source, call), operand) for call in calls]


def wrap(call: str, operand: int, module: str = "new") -> Callable[[FunctionSource], list[Operation]]:
    return lambda source: [Wrap(span_of(source, call), operand, module)]


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


# Every method of a real library


@functools.cache
def timm_methods(package: str) -> dict[str, types.FunctionType]:
    """Every plain method of every module class that a timm package defines."""
    parent = importlib.import_module(package)
    modules = [importlib.import_module(f"{package}.{info.name}") for info in pkgutil.iter_modules(parent.__path__)]
    classes = {
        cls for m in modules for cls in vars(m).values() if isinstance(cls, type) and cls.__module__ == m.__name__
    }
    found = {}
    for cls in classes:
        if issubclass(cls, nn.Module):
            for owner, name, function in re_emittable_methods(cls):
                if owner is cls:
                    found[f"{cls.__module__}.{cls.__qualname__}.{name}"] = function
    return dict(sorted(found.items()))


def _assert_re_emitted(function: types.FunctionType) -> None:
    innermost = inspect.unwrap(function)
    source = read_source(innermost)
    assert_same_code(re_emit(source, source.text).__code__, innermost.__code__)


def test_every_method_of_every_timm_layer_is_re_emitted_with_equal_code() -> None:
    methods = timm_methods("timm.layers")
    assert len(methods) > 250
    for function in methods.values():
        _assert_re_emitted(function)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_any_method_of_any_timm_model_is_re_emitted_with_equal_code(data: st.DataObject) -> None:
    methods = timm_methods("timm.models")
    assert len(methods) > 1000
    _assert_re_emitted(methods[data.draw(st.sampled_from(list(methods)))])

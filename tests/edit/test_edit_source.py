"""Methods are edited in their own text: what is read is what runs, and an edit changes that much and no more."""

from __future__ import annotations

import functools
import importlib
import inspect
import linecache
import os
import pkgutil
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
from rewriter.edit.source import re_emit, read_source
from rewriter.errors import SourceError

Load = Callable[[str], ModuleType]


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
    linecache.checkcache()
    with pytest.raises(SourceError, match="not available"):
        read_source(made.M.forward)


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


@pytest.mark.thorough
def test_every_method_of_every_timm_layer_is_re_emitted_with_equal_code() -> None:
    methods = timm_methods("timm.layers")
    assert len(methods) > 250
    for function in methods.values():
        _assert_re_emitted(function)


@pytest.mark.thorough
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.data())
def test_any_method_of_any_timm_model_is_re_emitted_with_equal_code(data: st.DataObject) -> None:
    methods = timm_methods("timm.models")
    assert len(methods) > 1000
    _assert_re_emitted(methods[data.draw(st.sampled_from(list(methods)))])

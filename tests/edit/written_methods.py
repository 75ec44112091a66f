"""Methods written as text for one test, and what is done at expressions of theirs."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Callable
from types import ModuleType

from torch import nn

from rewriter.edit.moving import why_not_movable
from rewriter.edit.operations import Move, Operation, Remove, Wrap
from rewriter.edit.source import FunctionSource, Span, read_source

Load = Callable[[str], ModuleType]


def span_of(source: FunctionSource, text: str, number: int = 0) -> Span:
    """Where the expression ``text`` is written, the ``number``-th time from the top."""
    found = {source.span(n) for n in source.nodes if isinstance(n, (ast.expr, ast.AugAssign))}
    return sorted(span for span in found if source.segment(span) == text)[number]


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


def loss_module(load: Load, body: str, helpers: str = "") -> nn.Module:
    """A module of a file of its own with the methods ``body``, and functions ``helpers`` that they call."""
    text = f"import torch\nimport torch.nn.functional as F\nfrom torch import nn\n\n{textwrap.dedent(helpers)}\n\n"
    text += (
        "class Loss(nn.Module):\n    flag, fine = True, False\n\n    def __init__(self):\n        super().__init__()\n"
    )
    text += "        self.act, self.layers = nn.Sigmoid(), nn.ModuleList([nn.Sigmoid()])\n\n"
    text += textwrap.indent(textwrap.dedent(body).strip("\n"), "    ") + "\n"
    found: nn.Module = load(text).Loss()
    return found

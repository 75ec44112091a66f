"""A plain function as a method: its own text, with one more parameter in front for the module that it belongs to."""

from __future__ import annotations

import ast
import io
import itertools
import tokenize
import types
from collections.abc import Iterator

from rewriter.edit.alternatives import FUNCTIONS
from rewriter.edit.source import FunctionSource, Splice, emit_in_place, offsets, read_source, splice, split_lines
from rewriter.errors import SourceError


def as_method(function: types.FunctionType) -> types.FunctionType:
    """``def f(x): …`` as ``def f(self, x): …``, at the lines where ``f`` is, without its decorators.

    Globals, defaults and closure are those of ``function``, which is not changed. The new parameter has a name that the
    function does not use.

    Raises:
        SourceError: it has no source, or is a lambda, or a generator or async function.
    """
    source = read_source(function)
    receiver = _unused_name(function)
    text = splice(source.text, list(_explicit_supers(source)))
    text = "".join(split_lines(text)[source.tree.lineno - 1 - source.header_lines :])
    start = _after_opening_parenthesis(text)
    arguments = source.tree.args
    listed = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    separator = ", " if any(argument is not None for argument in listed) else ""
    if text[start : start + 1].isspace():
        separator = separator.rstrip()
    return emit_in_place(source, f"{text[:start]}{receiver}{separator}{text[start:]}")


def _unused_name(function: types.FunctionType) -> str:
    used: set[str] = set()
    pending = [function.__code__]
    while pending:
        code = pending.pop()
        used.update(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        pending += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    names = itertools.chain(("self", "the_module"), (f"the_module_{number}" for number in itertools.count(1)))
    return next(name for name in names if name not in used)


def _explicit_supers(source: FunctionSource) -> Iterator[Splice]:
    """``super()`` takes the first parameter, which will be another one: ``super(__class__, self)``."""
    arguments = source.tree.args
    first = next(iter((*arguments.posonlyargs, *arguments.args)), None)
    if first is None or "__class__" not in source.function.__code__.co_freevars:
        return
    pending: list[ast.AST] = list(source.tree.body)
    while pending:
        node = pending.pop()
        if isinstance(node, FUNCTIONS):
            continue
        match node:
            case ast.Call(func=ast.Name(id="super"), args=[], keywords=[]):
                yield Splice(*offsets(source, node), f"super(__class__, {first.arg})")
        pending += ast.iter_child_nodes(node)


def _after_opening_parenthesis(text: str) -> int:
    """The index in ``text`` at which the parameters of its ``def`` begin."""
    starts = list(itertools.accumulate(map(len, split_lines(text)), initial=0))
    in_brackets, seen = 0, False  # the brackets of type parameters come first
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        seen = seen or token.string == "def"
        in_brackets += (token.string == "[") - (token.string == "]")
        if seen and token.string == "(" and not in_brackets:
            line, column = token.end
            return starts[line - 1] + column
    raise SourceError(f"no parameters in `{text}`")

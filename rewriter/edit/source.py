"""Edit one Python method in its own source text, after proving that the text is the code that runs.

A method is re-emitted, not re-traced: the text of expressions of the user's method is moved, wrapped or removed, and
the result is compiled into a new function. Everything else in the method, its branches, its loops, the attributes it
reads, its gradient checkpointing, stays the user's code and behaves as before.

Positions are those of the byte code (PEP 657): the instruction that issued an operation names the exact expression.
"""

from __future__ import annotations
import __future__

import ast
import functools
import hashlib
import inspect
import io
import itertools
import linecache
import tokenize
import types
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rewriter.edit.alternatives import ForcedTest, force
from rewriter.errors import SourceError

_FUTURE_FLAGS = functools.reduce(
    lambda flags, name: flags | getattr(__future__, name).compiler_flag, __future__.all_feature_names, 0
)


_IN_PLACE: weakref.WeakKeyDictionary[types.FunctionType, tuple[str, str, str]] = weakref.WeakKeyDictionary()
"""Text, header and text in the file of functions made by :func:`emit_in_place`."""


@dataclass(frozen=True, order=True)
class Span:
    """A range of a function's text. Lines count from the function's first line (0); columns are UTF-8 bytes."""

    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True)
class FunctionSource:
    """The text of one function, and its syntax tree.

    ``text`` keeps the original indentation; ``tree`` is parsed from ``text`` after ``header_lines`` lines that restore
    the class and the closure around the function.
    """

    function: types.FunctionType
    text: str
    header: str
    tree: ast.FunctionDef = field(repr=False)

    @functools.cached_property
    def header_lines(self) -> int:
        return self.header.count("\n")

    @property
    def first_line(self) -> int:
        return self.function.__code__.co_firstlineno

    @functools.cached_property
    def digest(self) -> str:
        """Changes when the text changes, so that plans made for other code are detected."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    def span(self, node: ast.AST) -> Span:
        """The position in :attr:`text` of ``node`` of :attr:`tree`."""
        positioned: Any = node
        return Span(
            positioned.lineno - 1 - self.header_lines,
            positioned.col_offset,
            positioned.end_lineno - 1 - self.header_lines,
            positioned.end_col_offset,
        )

    def segment(self, span: Span) -> str:
        """The text of ``span``."""
        start, stop = _offsets(self.text, span)
        return self.text.encode()[start:stop].decode()

    @functools.cached_property
    def nodes(self) -> dict[ast.AST, Span]:
        """Every node that has a position, with its span."""
        return {node: self.span(node) for node in ast.walk(self.tree) if hasattr(node, "end_col_offset")}

    def find(self, span: Span, kinds: tuple[type[ast.AST], ...] = (ast.expr, ast.stmt)) -> ast.AST:
        """The node at ``span``.

        A call is recognised by its end: for a method call over several lines the byte code points at the attribute, not
        at the start of the expression.
        """
        calls = None
        for node, found in self.nodes.items():
            if not isinstance(node, kinds):
                continue
            if found == span and not isinstance(node, ast.Expr):
                return node
            if isinstance(node, ast.Call) and (found.end_line, found.end_column) == (span.end_line, span.end_column):
                calls = node
        if calls is not None:
            return calls
        raise SourceError(
            f"{describe(self.function)}: no expression at line {self.first_line + span.line}, column {span.column}. "
            "The source does not fit the running code; restart Python if the file was edited."
        )


def describe(function: types.FunctionType) -> str:
    """``module.Class.method (file:line)`` for messages."""
    code = function.__code__
    return f"{function.__module__}.{function.__qualname__} ({code.co_filename}:{code.co_firstlineno})"


def code_span(code: types.CodeType, instruction: int, first_line: int) -> Span | None:
    """The position of byte-code ``instruction`` (``f_lasti``), in lines from ``first_line``; None if unknown."""
    position = next(itertools.islice(code.co_positions(), instruction // 2, None))
    return _span(position, first_line)


def code_spans(code: types.CodeType, first_line: int) -> list[Span | None]:
    """The positions of all instructions of ``code``, see :func:`code_span`."""
    return [_span(position, first_line) for position in code.co_positions()]


def _span(position: tuple[int | None, int | None, int | None, int | None], first_line: int) -> Span | None:
    line, end_line, column, end_column = position
    if line is None or end_line is None or column is None or end_column is None:
        return None
    return Span(line - first_line, column, end_line - first_line, end_column)


def contains_code(outer: types.CodeType, inner: types.CodeType) -> bool:
    """Whether ``inner`` is ``outer`` or a function, lambda or comprehension written inside it."""
    return outer is inner or any(contains_code(c, inner) for c in outer.co_consts if isinstance(c, types.CodeType))


@functools.lru_cache(maxsize=4096)
def read_source(function: types.FunctionType) -> FunctionSource:
    """The source of ``function``, checked against its byte code.

    Raises:
        SourceError: there is no source (typed at a prompt, generated by ``exec``), it is not a ``def``, or it compiles
            to other code than what runs (the file was edited after the import).
    """
    code = function.__code__
    if function in _IN_PLACE:
        text, header, _ = _IN_PLACE[function]
        return FunctionSource(function, text, header, _definition(_parsed(header + text), code.co_name))
    lines = linecache.getlines(code.co_filename, function.__globals__)
    if not 0 < code.co_firstlineno <= len(lines):
        what = "the class" if "." in function.__qualname__.rpartition("<locals>.")[2] else "it"
        raise SourceError(
            f"{describe(function)}: its source is not available, so it cannot be edited. "
            f"Put {what} into a file (not a prompt or exec) and import it."
        )
    try:
        text = "".join(inspect.getblock(lines[code.co_firstlineno - 1 :]))
        header = _module_imports(tuple(lines)) + _enclosing_scopes(function, text)
        source = FunctionSource(function, text, header, _definition(_parsed(header + text), code.co_name))
        if _begins_with_definition(source) and _same_code(_compile(source, text, code.co_filename), code):
            return source
    except (SyntaxError, tokenize.TokenError) as error:
        raise SourceError(f"{describe(function)}: its source cannot be parsed ({error.args[0]}).") from error
    raise SourceError(
        f"{describe(function)}: the source file does not compile to the code that is running. "
        "It was edited after the import, or a tool rewrote the function; restart Python and try again."
    )


def re_emit(source: FunctionSource, text: str, forced: Sequence[ForcedTest] = ()) -> types.FunctionType:
    """A new function with the body ``text``; globals, defaults and closure are those of ``source``.

    Its text is stored with the imports and scopes that it was compiled in, so that it can be read and edited again,
    unless conditions are ``forced``, since the text is then not what runs.
    """
    original, whole = source.function, source.header + text
    digest = hashlib.sha256(whole.encode()).hexdigest()[:8]
    filename = f"<rewriter {original.__module__}.{original.__qualname__} {digest}>"
    code = _compile(source, text, filename, forced)
    linecache.cache[filename] = (len(whole), None, split_lines(whole), filename)
    return _like(original, code)


def emit_in_place(source: FunctionSource, text: str) -> types.FunctionType:
    """A new function with the body ``text`` that stands, for tracebacks and findings, where ``source`` does.

    Args:
        source: the function as it is in its file.
        text: its text without decorators, and with changes that leave every line where it is.
    """
    original = source.function
    decorators = source.tree.lineno - 1 - source.header_lines
    code = _compile(source, text, original.__code__.co_filename, first_line=source.first_line + decorators)
    function = _like(original, code.replace(co_qualname=original.__code__.co_qualname))
    _IN_PLACE[function] = text, source.header, "".join(split_lines(source.text)[decorators:])
    return function


def text_in_file(source: FunctionSource) -> str:
    """The text of a function in its file: another one than its own for what :func:`emit_in_place` made."""
    return _IN_PLACE[source.function][2] if source.function in _IN_PLACE else source.text


def _like(original: types.FunctionType, code: types.CodeType) -> types.FunctionType:
    """A function that runs ``code`` with the globals, defaults, closure and names of ``original``."""
    cells = dict(zip(original.__code__.co_freevars, original.__closure__ or (), strict=True))
    function = types.FunctionType(
        code,
        original.__globals__,
        original.__name__,
        original.__defaults__,
        tuple(cells[name] for name in code.co_freevars),
    )
    functools.update_wrapper(function, original)
    del function.__dict__["__wrapped__"]
    function.__kwdefaults__ = original.__kwdefaults__
    return function


@dataclass(frozen=True)
class Splice:
    """Replace the bytes ``start:stop`` of a function's text by ``text``; ``start == stop`` inserts.

    Among insertions at one position, a lower ``order`` comes first.
    """

    start: int
    stop: int
    text: str = ""
    order: int = 0


def splice(text: str, splices: Sequence[Splice]) -> str:
    """Apply all ``splices`` to ``text`` at once; they must not overlap."""
    data, pieces, position = text.encode(), [], 0
    for item in sorted(splices, key=lambda s: (s.start, s.stop != s.start, s.order, s.stop)):
        if item.start < position:
            raise SourceError(f"two edits overlap at {data[item.start : item.stop].decode()!r}")
        pieces += [data[position : item.start], item.text.encode()]
        position = item.stop
    return b"".join([*pieces, data[position:]]).decode()


def split_lines(text: str) -> list[str]:
    """The lines of ``text`` as Python counts them: only line feeds end a line, not form feeds or Unicode separators."""
    return io.StringIO(text).readlines()


def _offsets(text: str, span: Span) -> tuple[int, int]:
    starts = list(itertools.accumulate((len(line.encode()) for line in split_lines(text)), initial=0))
    return starts[span.line] + span.column, starts[span.end_line] + span.end_column


def offsets(source: FunctionSource, node: ast.AST) -> tuple[int, int]:
    """Byte offsets of ``node`` in ``source.text``."""
    return _offsets(source.text, source.span(node))


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except ValueError as error:  # null bytes, for which Python 3.11 does not raise SyntaxError
        raise SyntaxError(str(error)) from error


@functools.lru_cache(maxsize=256)
def _module_imports(lines: tuple[str, ...]) -> str:
    """All import statements at module level, including those inside ``try`` and ``if``; none if the file is damaged.

    They matter because the compiler emits calls of imported functions differently.
    """
    try:
        pending: list[ast.AST] = [_parsed("".join(lines))]
    except SyntaxError:
        return ""
    statements: list[ast.stmt] = []
    while pending:
        node = pending.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            statements.append(node)
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.expr)):
            pending += ast.iter_child_nodes(node)
    return _import_text(statements)


def _import_text(statements: Sequence[ast.stmt]) -> str:
    future = [s for s in statements if isinstance(s, ast.ImportFrom) and s.module == "__future__"]
    return "".join(f"{ast.unparse(s)}\n" for s in statements if s not in future)


def _enclosing_scopes(function: types.FunctionType, text: str) -> str:
    """Lines that restore the context of the function's text: its closure, and the class that mangles names.

    They are indented like the text itself, by as little as possible: a class inside a closure is indented twice, by
    spaces or by tabs.
    """
    indent = text.lstrip("\f")[:1]
    if not indent.isspace():
        return ""
    scope = function.__qualname__.split(".")[-2:-1]
    in_class = bool(scope) and scope[0].isidentifier()
    free = [name for name in function.__code__.co_freevars if not (in_class and name == "__class__")]
    closure = f"def _closure_of_{function.__code__.co_name}({', '.join(free)}):\n"
    if not in_class:
        return closure
    return f"{closure}{indent}class {scope[0]}:\n" if free else f"class {scope[0]}:\n"


def _definition(tree: ast.Module, name: str) -> ast.FunctionDef:
    body: list[ast.stmt] = tree.body
    while body and isinstance(body[-1], (ast.FunctionDef, ast.ClassDef)):
        found = body[-1]
        if isinstance(found, ast.FunctionDef) and found.name == name:
            return found
        body = found.body
    raise SourceError(f"expected one plain `def {name}`; a lambda, generator or async function cannot be edited")


def _begins_with_definition(source: FunctionSource) -> bool:
    """Whether the text begins with the ``def`` or its first decorator, not with something around them."""
    first = next(iter(source.tree.decorator_list), source.tree)
    return source.span(first).line == 0


def _compile(
    source: FunctionSource,
    text: str,
    filename: str,
    forced: Sequence[ForcedTest] = (),
    first_line: int | None = None,
) -> types.CodeType:
    name = source.function.__code__.co_name
    tree = _parsed(source.header + text)
    definition = _definition(tree, name)
    definition.decorator_list = []
    force(definition, forced)
    if first_line is not None:
        ast.increment_lineno(definition, first_line - 1 - source.header_lines)
    flags = source.function.__code__.co_flags & _FUTURE_FLAGS
    module = compile(tree, filename, "exec", flags=flags, dont_inherit=True)
    pending: list[types.CodeType] = [module]
    while pending:
        code = pending.pop()
        if (code.co_name, code.co_firstlineno) == (name, definition.lineno) and code is not module:
            return code
        pending += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    raise SourceError(f"{describe(source.function)}: compiled to nothing")


_COMPARED = (
    "co_code",
    "co_exceptiontable",
    "co_names",
    "co_varnames",
    "co_freevars",
    "co_cellvars",
    "co_argcount",
    "co_posonlyargcount",
    "co_kwonlyargcount",
)


def _same_code(a: types.CodeType, b: types.CodeType) -> bool:
    if any(name.startswith("@py") for name in (*b.co_names, *b.co_varnames)):
        return True  # pytest rewrote the assertions of this function; nothing comparable is left
    if (a.co_flags ^ b.co_flags) & ~inspect.CO_NESTED:  # the nested flag only says that there was an enclosing function
        return False
    if any(getattr(a, name) != getattr(b, name) for name in _COMPARED) or len(a.co_consts) != len(b.co_consts):
        return False
    return all(_same_constant(x, y) for x, y in zip(a.co_consts, b.co_consts, strict=True))


def _same_constant(x: object, y: object) -> bool:
    if isinstance(x, types.CodeType) and isinstance(y, types.CodeType):
        return _same_code(x, y)
    return _exactly(x) == _exactly(y)


def _exactly(constant: object) -> object:
    """A value that is equal for identical constants only: ``1`` is not ``1.0``, and ``0.0`` is not ``-0.0``."""
    if isinstance(constant, (tuple, frozenset)):  # a frozenset is unordered, and so is its repr
        return type(constant), type(constant)(_exactly(item) for item in constant)
    return type(constant), repr(constant)

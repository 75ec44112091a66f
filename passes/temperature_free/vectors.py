"""What an operation does to vectors: normalise them, scale them by one number, or cut them off from the gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import fx

from rewriter.analysis.arguments import argument
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name

_NORMS = frozenset({"norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "frobenius_norm"})
_NO_CHANGE = frozenset({"clamp", "clamp_min", "clip", "maximum", "add"})
_EXPANDS = frozenset({"expand", "expand_as", "broadcast_to"})
FILLS = frozenset({"masked_fill", "where", "tril", "triu", "setitem", "fill_diagonal", "index_fill", "index_put"})
_MOVES = frozenset({"masked_select", "stack", "diagonal", "diag", "gather", "repeat", "repeat_interleave", "getattr"})
_PLACES = frozenset({Kind.VIEW, Kind.IDENTITY, Kind.SELECT, Kind.CONCAT})


def function_of(node: fx.Node) -> str:
    """The name of the function of torch that an operation calls, without the underscore of one in place."""
    return function_name(node.target) if node.op == "call_function" and callable(node.target) else ""


def size(node: fx.Node) -> int:
    """How many numbers the result of an operation holds."""
    shape = facts(node)["shape"]
    return -1 if shape is None else math.prod(shape)


def places(node: fx.Node) -> bool:
    """Whether an operation moves, selects or masks values, and changes none of those that stay."""
    return facts(node)["kind"] in _PLACES or function_of(node) in FILLS | _MOVES


def scaled(node: fx.Node) -> fx.Node | None:
    """The operand of a multiplication or division by one number, if ``node`` is one: constant, parameter or input."""
    if facts(node)["kind"] is not Kind.MULTIPLY or len(node.args) < 2:
        return None
    first, second = node.args[:2]
    if isinstance(first, fx.Node) and size(first) > 1 and _is_one_number(second):
        return first
    divides = "div" in function_of(node)
    if isinstance(second, fx.Node) and size(second) > 1 and _is_one_number(first) and not divides:
        return second
    return None


def _is_one_number(value: object) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, fx.Node) and size(value) == 1)


def normalised_length(node: fx.Node) -> int | None:
    """The length of the vectors that an operation normalises to Euclidean norm 1; None if it does not."""
    name = function_of(node)
    if name == "normalize":
        source, p = argument(node, "input", 0), argument(node, "p", 1, 2.0)
        shape, dim = facts(source)["shape"], argument(node, "dim", 2, 1)
        return shape[dim] if p == 2 and isinstance(dim, int) else None
    if facts(node)["kind"] is not Kind.MULTIPLY or len(node.args) < 2:
        return None
    first, second = node.args[:2]
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node):
        return None
    if "div" in name:
        return _length_of_norm(second, first, 1.0)
    return _length_of_norm(second, first, -1.0) or _length_of_norm(first, second, -1.0)


def _length_of_norm(norm: fx.Node, of: fx.Node, power: float) -> int | None:
    """The length of the vectors ``of`` whose norm to the ``power`` is ``norm``; None if it is another thing."""
    while function_of(norm) in _EXPANDS:
        norm = norm.all_input_nodes[0]
    over = [full for full, one in zip(facts(of)["shape"], facts(norm)["shape"] or (), strict=False) if one == 1 != full]
    if len(over) != 1 or len(facts(of)["shape"]) != len(facts(norm)["shape"]):
        return None
    for node, exponent in _powers_back(norm):
        source = node.all_input_nodes[0] if node.all_input_nodes else None
        name = function_of(node)
        if name in _NORMS and source is not None and _same(source, of):
            p = argument(node, "p", 1, argument(node, "ord", 1, 2))
            return over[0] if exponent * power == 1 and p in (2, 2.0, "fro", None) else None
        if name == "sum" and source is not None and _is_square_of(source, of):
            return over[0] if 2 * exponent * power == 1 else None
    return None


def _powers_back(node: fx.Node) -> Iterator[tuple[fx.Node, float]]:
    """``node`` and what it is a power of, going back, with the exponent."""
    exponent = 1.0
    while True:
        yield node, exponent
        name = function_of(node)
        if name == "pow" and isinstance(node.args[1], (int, float)):
            exponent *= node.args[1]
        elif name in _POWERS:
            exponent *= _POWERS[name]
        elif facts(node)["kind"] not in (Kind.VIEW, Kind.IDENTITY) and name not in _NO_CHANGE:
            return
        if not node.all_input_nodes:
            return
        node = node.all_input_nodes[0]


_POWERS = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "rdiv": -1.0, "__rdiv__": -1.0, "rtruediv": -1.0}


def _is_square_of(node: fx.Node, of: fx.Node) -> bool:
    name = function_of(node)
    by_itself = "mul" in name and len(node.all_input_nodes) == 1 and len(nodes_in(node.args)) == 2
    squared = name == "square" or by_itself or (name == "pow" and node.args[1] in (2, 2.0))
    return squared and _same(node.all_input_nodes[0], of)


def nodes_in(arguments: Sequence[object]) -> list[fx.Node]:
    return [value for value in arguments if isinstance(value, fx.Node)]


def _same(node: fx.Node, other: fx.Node) -> bool:
    """Whether two results hold the same values: one, or copies of it."""
    return _origin(node) is _origin(other)


def is_detached(node: fx.Node) -> bool:
    """Whether a result, or what it is a copy or a view of, is cut off from the gradient."""
    while facts(node)["kind"] in (Kind.IDENTITY, Kind.VIEW) and node.all_input_nodes:
        if function_of(node) == "detach":
            return True
        node = node.all_input_nodes[0]
    return False


def _origin(node: fx.Node) -> fx.Node:
    while facts(node)["kind"] is Kind.IDENTITY and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node

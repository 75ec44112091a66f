"""Run recorded operations again, on values of our choice, with gradients: what is suspected is measured."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
import tokenize
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from rewriter.edit.positions import positions
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.dataflow import WEIGHT_KINDS
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name, is_in_place
from rewriter.tracing.trace import Trace

Tensors = Mapping[fx.Node, torch.Tensor]
Instead = Mapping[fx.Node, Callable[..., Any]]


class NotReplayable(Exception):
    """An operation cannot be run again by itself."""


def name_of_function(node: fx.Node) -> str:
    """``pow`` for ``torch.pow``, ``x.pow(…)`` and ``x ** …``; empty for a module."""
    return function_name(node.target) if node.op == "call_function" else ""  # type: ignore[arg-type]


def operations_behind(goal: fx.Node, trace: Trace, most: int = 200) -> tuple[list[fx.Node], list[fx.Node]]:
    """The operations that lead to ``goal``, in order, and the nodes at which they begin, whose values are free.

    It goes back to inputs, and to operations with weights or norms, which can give anything.
    """
    inside: set[fx.Node] = set()
    leaves: dict[fx.Node, None] = {}
    pending = [goal]
    while pending:
        node = pending.pop()
        if node in inside or node in leaves:
            continue
        if node is not goal and (_begins(node, trace) or len(inside) >= most):
            leaves[node] = None
            continue
        inside.add(node)
        pending += node.all_input_nodes
    order = trace.flow.position
    return sorted(inside, key=order), sorted(leaves, key=order)


def _begins(node: fx.Node, trace: Trace) -> bool:
    kind = facts(node)["kind"]
    if node.op == "get_attr" or kind is Kind.FACTORY:
        return False
    of_weights = kind is Kind.MATMUL and len(trace.flow.sources(node)) < 2
    return (
        node.op == "placeholder"
        or _is_item_of_input(node)
        or of_weights
        or kind in WEIGHT_KINDS | {Kind.NORM, Kind.EMBEDDING, Kind.OPAQUE}
    )


def _is_item_of_input(node: fx.Node) -> bool:
    """Whether ``node`` is a tensor in a list, tuple or dict that the model is given."""
    held = node.args[0] if name_of_function(node) == "getitem" else None
    return isinstance(held, fx.Node) and held.op == "placeholder" and facts(held)["storage"] is None


def replay(
    nodes: Sequence[fx.Node], values: Tensors, trace: Trace, instead: Instead | None = None
) -> dict[fx.Node, Any]:
    """Run ``nodes``, which are in order, on ``values``; what they read of the model is its own.

    Args:
        nodes, values: the operations, and the values that they begin with.
        trace: their recording.
        instead: a function to run for some of the nodes in place of their own.

    Raises:
        NotReplayable: one writes in place, was not observed, or raises an error.
    """
    known: dict[fx.Node, Any] = dict(values)
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # of the very faults that are looked for
        for node in nodes:
            if node not in known:
                known[node] = _run(node, known, trace, (instead or {}).get(node))
    return known


_CASTS = frozenset({"float", "half", "bfloat16", "double", "to", "type", "type_as"})


def replay_exactly(nodes: Sequence[fx.Node], values: Tensors, trace: Trace) -> dict[fx.Node, Any]:
    """As :func:`replay`, in double precision throughout: what makes another floating-point type makes double."""
    given = dict(values)
    casts: dict[fx.Node, Callable[..., Any]] = {}
    for node in nodes:
        if node.op == "get_attr":
            given[node] = _run(node, {}, trace, None)
        elif name_of_function(node) in _CASTS and getattr(facts(node)["dtype"], "is_floating_point", False):
            casts[node] = _to_double
    doubles = {
        node: value.detach().double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for node, value in given.items()
    }
    return replay(nodes, doubles, trace, casts)


def _to_double(x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return x.double()


def expression_of(node: fx.Node) -> tuple[Any, ...]:
    """What tells apart the expressions that issue operations: a method that is called twice is one."""
    where = next(iter(positions(node)), None)
    return (node,) if where is None else (where.frame.code, where.frame.instruction)


def _run(node: fx.Node, known: Mapping[fx.Node, Any], trace: Trace, instead: Callable[..., Any] | None) -> Any:
    if node.op == "get_attr":
        found: Any = trace.model
        for name in str(node.target).split("."):
            found = getattr(found, name)
        if found.is_meta:
            raise NotReplayable(f"{node.target} has no values")
        return found.detach().to("cpu")
    written = bool(facts(node)["after"] or facts(node)["writes"])
    if written or facts(node)["kind"] is Kind.OPAQUE or (callable(node.target) and is_in_place(node.target)):
        raise NotReplayable(f"{node.name} writes in place, or was not observed")
    try:
        args, kwargs = (fx.map_arg(given, lambda n: known[n]) for given in (node.args, node.kwargs))
        args, kwargs = _on_cpu(args), _on_cpu(kwargs)
        if instead is not None:
            return instead(*args, **kwargs)
        if facts(node)["kind"] is Kind.DROPOUT:
            return args[0]
        called = trace.module_of(node)
        function: Any = node.target if called is None else type(called).forward.__get__(called)
        return function(*args, **kwargs)
    except Exception as error:
        raise NotReplayable(f"{node.name}: {type(error).__name__}: {error}") from error


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.device):
        return torch.device("cpu")
    if isinstance(value, tuple):
        return tuple(map(_on_cpu, value))
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return value


def differentiable(leaves: Sequence[fx.Node], trace: Trace) -> set[fx.Node]:
    """The leaves that a gradient can be needed for.

    Those are what a weight gave; and inputs, if the model has no weights of its own: a loss. Where the example inputs
    say which of them require a gradient, that decides.
    """
    given = dict(zip(trace.flow.inputs, _input_tensors(trace), strict=False))
    told = any(tensor.requires_grad for tensor in tensors_in(list(given.values())))
    trains = any(parameter.requires_grad for parameter in trace.model.parameters())
    found = set()
    for leaf in leaves:
        floating = facts(leaf)["dtype"] is not None and facts(leaf)["dtype"].is_floating_point
        item = _is_item_of_input(leaf)
        if (leaf.op == "placeholder" or item) and told:
            value = given.get(leaf.args[0])[leaf.args[1]] if item else given.get(leaf)  # type: ignore[index, arg-type]
            floating = isinstance(value, torch.Tensor) and value.requires_grad
        elif leaf.op == "placeholder" or item:
            floating = floating and not trains
        if floating:
            found.add(leaf)
    return found


def _input_tensors(trace: Trace) -> list[Any]:
    return [*trace.inputs.args, *trace.inputs.kwargs.values()]


_WITHOUT = ("no_grad", "inference_mode")


def without_gradient(node: fx.Node) -> bool:
    """Whether ``node`` is in a ``with torch.no_grad()``, or in a function that is decorated so, by the text."""
    return any(_is_without(position.frame.code, position.frame.line) for position in positions(node))


def _is_without(code: types.CodeType, line: int) -> bool:
    tree = _definition(code)
    if tree is None:
        return False
    texts = [ast.unparse(item) for item in tree.decorator_list]
    for inner in ast.walk(tree):
        first = getattr(inner, "lineno", 0) + code.co_firstlineno - 1
        if isinstance(inner, ast.With) and first <= line <= first + (inner.end_lineno or 0) - inner.lineno:
            texts += [ast.unparse(item.context_expr) for item in inner.items]
    return any(name in text for text in texts for name in _WITHOUT)


@functools.lru_cache(maxsize=1024)
def _definition(code: types.CodeType) -> ast.FunctionDef | None:
    lines = linecache.getlines(code.co_filename)[max(code.co_firstlineno - 1, 0) :]
    try:
        found = ast.parse(textwrap.dedent("".join(inspect.getblock(lines)))).body
    except (SyntaxError, ValueError, tokenize.TokenError, IndexError):
        return None
    return next((node for node in found if isinstance(node, ast.FunctionDef)), None)

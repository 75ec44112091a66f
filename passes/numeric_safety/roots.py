"""Roots of sums, means and variances that can be zero, where the gradient of a root is infinite.

Dataflow::

    … ─ mean, variance or sum ─ [no positive constant added, no clamp] ─ sqrt, power below 1 ─ …
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rewriter.analysis.arguments import argument
from rewriter.authoring import Change, Place, Refused
from rewriter.passes.numeric_safety.edges import SUMS, filled, has_difference, roundings, rounds_below_zero, zeros
from rewriter.passes.numeric_safety.layers import SafePower, SafeSqrt
from rewriter.passes.numeric_safety.refusals import coded
from rewriter.passes.numeric_safety.replay import (
    NotReplayable,
    differentiable,
    expression_of,
    name_of_function,
    operations_behind,
    replay,
    without_gradient,
)
from rewriter.passes.numeric_safety.variances import squared
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Trace

_REDUCTIONS = frozenset({"mean", "nanmean", "sum", "nansum", "var", "var_mean", "std_mean", "average", "trace", "dist"})
_DIVISIONS = frozenset({"div", "divide", "truediv", "true_divide", "itruediv"})


@dataclass(frozen=True)
class Root:
    """A root whose operand can be zero.

    Attributes:
        operand: what it is taken of.
        kind: ``"square root"``, ``"power"``, ``"inverse root"`` or ``"norm"``.
        nodes: the operations that lead to it, in order.
        edge: values of what they begin with, at which the operand is zero.
        how: what these values are, in words.
        clamp: whether rounding makes the operand negative somewhere, and nothing else does.
    """

    operand: fx.Node
    kind: str
    nodes: tuple[fx.Node, ...]
    edge: dict[fx.Node, torch.Tensor]
    how: str
    clamp: bool


def find_roots(trace: Trace) -> Iterator[Place[Root]]:
    """Every root that is not finite, in value or gradient, where what it is taken of is zero, perhaps by rounding."""
    by_expression: dict[tuple[Any, ...], list[tuple[fx.Node, fx.Node]]] = {}
    for node in trace.operations():
        operand = argument(node, "input", 0) if _kind_of_root(node) else None
        if isinstance(operand, fx.Node) and operand in trace.flow:
            by_expression.setdefault(expression_of(node), []).append((node, operand))
    for roots in by_expression.values():
        clamp: bool | None = None
        behind = {node: operations_behind(node, trace) for node, _ in roots}
        for node, operand in roots:
            nodes, leaves = behind[node]
            needed = differentiable(leaves, trace)
            sums = any(_is_sum(each, trace) for each in nodes if each is not node)
            if not needed or not sums or without_gradient(node) or _normalises(node, operand, trace):
                continue
            if clamp is None:
                clamp = _may_clamp(roots, behind, trace)
            settings = itertools.chain(zeros(leaves, needed), roundings(leaves, needed) if clamp else ())
            for how, edge in settings:
                if _fails(node, operand, nodes, edge, clamp, trace):
                    kind = _kind_of_root(node)
                    found = Root(operand, kind, tuple(nodes), edge, how, clamp)
                    yield Place(trace, node, f"{kind} of what can be zero", found)
                    break


def _may_clamp(
    roots: Sequence[tuple[fx.Node, fx.Node]],
    behind: Mapping[fx.Node, tuple[list[fx.Node], list[fx.Node]]],
    trace: Trace,
) -> bool:
    """Whether the operand of one of the runs of a root is negative by rounding, and none is negative as such.

    Args:
        roots: the runs, with the operand of each.
        behind: what leads to each run, and where that begins.
        trace: the recording.
    """
    if any(_kind_of_root(node) == "inverse root" for node, _ in roots):
        return False
    if not any(has_difference(nodes, trace) for nodes, _ in behind.values()):
        return False
    found = [
        rounds_below_zero(operand, *behind[node], differentiable(behind[node][1], trace), trace)
        for node, operand in roots
    ]
    return None not in found and any(found)


def mend_root(place: Place[Root]) -> Change:
    """Put a layer in its place whose gradient at zero is zero."""
    root, node = place.subject, place.node
    assert node is not None
    if root.kind == "inverse root":
        detail = f"it is inf where its operand is zero ({root.how}); add a small positive constant to the operand"
        raise Refused("numeric-safety/inverse-root", detail, code="RW0703")
    divides = _divided_by(node, root, place.trace)
    if divides is not None:
        detail = (
            f"what is divided by it is nan where it is zero ({root.how}); add a small positive constant to the operand"
        )
        raise Refused("numeric-safety/divisor", detail, code="RW0703")
    with coded("RW0703", "add a small positive constant to the operand"):
        options: dict[str, Any] = {"clamp": True} if root.clamp else {}
        layer = SafeSqrt if root.kind == "square root" else SafePower
        place.edit.redirect(node, layer, all_calls=True, **options)
    what = "value and gradient are 0 at zero and below" if root.clamp else "gradient is 0 at zero"
    below = ", and its value where rounding makes that a little less" if root.clamp else ""
    return Change(
        f"a {root.kind} whose {what}",
        f"its gradient is not finite where its operand is zero{below}: {root.how}",
        code="RW0703",
    )


def _kind_of_root(node: fx.Node) -> str:
    name = name_of_function(node)
    if name == "pow":
        exponent = argument(node, "exponent", 1)
        number = isinstance(exponent, (int, float)) and exponent < 1 and exponent != 0
        return ("power" if exponent > 0 else "inverse root") if number else ""
    return {"sqrt": "square root", "rsqrt": "inverse root"}.get(name, "")


def _is_sum(node: fx.Node, trace: Trace) -> bool:
    """Whether ``node`` sums: a reduction, a loss, a product of matrices, or the sum of two terms."""
    name = name_of_function(node)
    if name.endswith("_loss"):
        return True
    two = name in SUMS and len(trace.flow.sources(node)) > 1
    return name in _REDUCTIONS or two or facts(node)["kind"] in (Kind.MATMUL, Kind.MEAN)


def _normalises(node: fx.Node, operand: fx.Node, trace: Trace) -> bool:
    """Whether the root only divides the very tensor whose squares it sums, as ``x / x.norm()`` does."""
    total = _without_views(operand)
    square = argument(total, "input", 0) if name_of_function(total) == "sum" else None
    x = squared(square) if isinstance(square, fx.Node) else None
    pending = list(trace.flow.users(node))
    if x is None or not pending:
        return False
    while pending:
        user = pending.pop()
        name = name_of_function(user)
        given = [_without_views(each) for each in user.args if isinstance(each, fx.Node)]
        inverse = _kind_of_root(node) == "inverse root" and name in ("mul", "multiply") and set(given) == {node, x}
        if facts(user)["kind"] in (Kind.VIEW, Kind.IDENTITY) and given == [node]:
            pending += trace.flow.users(user)
        elif not inverse and not (name in _DIVISIONS and given == [x, node]):
            return False
    return True


def _without_views(node: fx.Node) -> fx.Node:
    while facts(node)["kind"] in (Kind.VIEW, Kind.IDENTITY) and node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _fails(
    node: fx.Node,
    operand: fx.Node,
    nodes: Sequence[fx.Node],
    edge: dict[fx.Node, torch.Tensor],
    clamp: bool,
    trace: Trace,
) -> bool:
    """Whether the root is not finite at ``edge``, in value or gradient, because its operand is zero there."""
    try:
        plain = replay(nodes, edge, trace)
        value = plain[operand].detach()
        zero = value <= 0 if clamp else value == 0
        if not zero.any() or _finite(plain[node], edge):
            return False
        if _kind_of_root(node) == "inverse root":
            return True
        return _finite(replay(nodes, edge, trace, {node: guard_of(node, clamp)})[node], edge)
    except NotReplayable:
        return False


def guard_of(node: fx.Node, clamp: bool) -> Callable[..., Any]:
    """What is put in the place of a root."""
    return SafeSqrt(clamp) if name_of_function(node) == "sqrt" else SafePower(clamp)


def _finite(value: torch.Tensor, edge: dict[fx.Node, torch.Tensor]) -> bool:
    """Whether a value and its gradients are finite."""
    if not value.isfinite().all():
        return False
    leaves = [leaf for leaf in edge.values() if leaf.requires_grad]
    if not value.requires_grad:
        return True
    gradients = torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return all(gradient is None or bool(gradient.isfinite().all()) for gradient in gradients)


def _divided_by(node: fx.Node, root: Root, trace: Trace) -> fx.Node | None:
    """A division by the root, perhaps scaled or in another shape, that is not finite where the root is zero."""
    pending = trace.flow.users(node)
    while pending:
        user = pending.pop()
        name, kind = name_of_function(user), facts(user)["kind"]
        if name in _DIVISIONS | {"rdiv", "rtruediv", "reciprocal"} and _is_nan_there(user, node, root, trace):
            return user
        if kind in (Kind.VIEW, Kind.IDENTITY, Kind.SELECT, Kind.MULTIPLY) and len(trace.flow.sources(user)) == 1:
            pending += trace.flow.users(user)
    return None


def _is_nan_there(user: fx.Node, node: fx.Node, root: Root, trace: Trace) -> bool:
    nodes, leaves = operations_behind(user, trace)
    given = {leaf: root.edge[leaf] if leaf in root.edge else filled(leaf, 0.5) for leaf in leaves}
    try:
        found = replay(nodes, given, trace, {node: guard_of(node, root.clamp)})[user]
    except NotReplayable:
        return False
    return not bool(found.isfinite().all())

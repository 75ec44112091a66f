"""Roots of sums, means and variances that can be zero, where the gradient of a root is infinite.

Dataflow::

    … ─ mean, variance or sum ─ [no positive constant added, no clamp] ─ sqrt, power below 1 ─ …
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from rewriter.analysis.arguments import argument
from rewriter.authoring import Change, Place, Refused
from rewriter.passes.numeric_safety.layers import SafePower, SafeSqrt
from rewriter.passes.numeric_safety.replay import (
    NotReplayable,
    differentiable,
    name_of_function,
    operations_behind,
    replay,
    without_gradient,
)
from rewriter.passes.numeric_safety.sigmoids import coded
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Trace

_REDUCTIONS = frozenset({"mean", "nanmean", "sum", "nansum", "var", "var_mean", "std_mean", "average", "trace", "dist"})
_SUMS = frozenset({"add", "radd", "iadd", "sub", "isub", "rsub"})
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
    """

    operand: fx.Node
    kind: str
    nodes: tuple[fx.Node, ...]
    edge: dict[fx.Node, torch.Tensor]
    how: str


def find_roots(trace: Trace) -> Iterator[Place[Root]]:
    """Every root that is not finite, in value or gradient, where what it is taken of is zero."""
    for node in trace.operations():
        kind = _kind_of_root(node)
        operand = node.args[0] if kind and node.args else None
        if not isinstance(operand, fx.Node) or operand not in trace.flow:
            continue
        nodes, leaves = operations_behind(node, trace)
        needed = differentiable(leaves, trace)
        if not needed or without_gradient(node) or not any(_is_sum(each, trace) for each in nodes if each is not node):
            continue
        for how, edge in _edges(leaves, needed):
            if _fails(node, operand, nodes, edge, trace):
                yield Place(trace, node, f"{kind} of what can be zero", Root(operand, kind, tuple(nodes), edge, how))
                break


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
        place.edit.redirect(node, SafeSqrt if root.kind == "square root" else SafePower, all_calls=True)
    return Change(
        f"a {root.kind} whose gradient is 0 at zero",
        f"its gradient is not finite where its operand is zero: {root.how}",
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
    two = name in _SUMS and len(trace.flow.sources(node)) > 1
    return name in _REDUCTIONS or two or facts(node)["kind"] in (Kind.MATMUL, Kind.MEAN)


def _edges(leaves: Sequence[fx.Node], needed: set[fx.Node]) -> Iterator[tuple[str, dict[fx.Node, torch.Tensor]]]:
    """Values for the leaves at which sums, means and variances vanish; those that take a gradient require one."""
    generator = torch.Generator().manual_seed(0)
    noise = {leaf: _noise(leaf, generator) for leaf in leaves}
    shapes = {leaf: facts(leaf)["shape"] for leaf in leaves}
    equal = {leaf: noise[next(o for o in leaves if shapes[o] == shapes[leaf])].to(noise[leaf].dtype) for leaf in leaves}
    settings: list[tuple[str, dict[fx.Node, torch.Tensor]]] = [
        ("all inputs are zero", {leaf: _filled(leaf, 0.0) for leaf in leaves}),
        ("the inputs are equal", equal),
        ("the inputs are equal, and 0 or 1", {leaf: (value > 0.5).to(value.dtype) for leaf, value in equal.items()}),
        ("the inputs are constant", {leaf: _filled(leaf, 0.5) for leaf in leaves}),
    ]
    settings += [("one input is zero", {**noise, leaf: _filled(leaf, 0.0)}) for leaf in leaves if leaf in needed]
    for how, values in settings:
        yield how, {n: v.clone().requires_grad_(n in needed and v.is_floating_point()) for n, v in values.items()}


def _noise(leaf: fx.Node, generator: torch.Generator) -> torch.Tensor:
    dtype = facts(leaf)["dtype"]
    value = torch.rand(facts(leaf)["shape"], generator=generator) * 0.8 + 0.1
    return value.to(dtype) if dtype.is_floating_point else (value > 0.5).to(dtype)


def _filled(leaf: fx.Node, number: float) -> torch.Tensor:
    shape, dtype = facts(leaf)["shape"], facts(leaf)["dtype"]
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    return torch.full(shape, number if dtype.is_floating_point else 0, dtype=dtype)


def _fails(
    node: fx.Node, operand: fx.Node, nodes: Sequence[fx.Node], edge: dict[fx.Node, torch.Tensor], trace: Trace
) -> bool:
    """Whether the root is not finite at ``edge``, in value or gradient, because its operand is zero there."""
    try:
        plain = replay(nodes, edge, trace)
        zero = plain[operand].detach() == 0
        if not zero.any() or _finite(plain[node], edge):
            return False
        if _kind_of_root(node) == "inverse root":
            return True
        return _finite(replay(nodes, edge, trace, {node: guard_of(node)})[node], edge)
    except NotReplayable:
        return False


def guard_of(node: fx.Node) -> Callable[..., Any]:
    """What is put in the place of a root."""
    return SafeSqrt() if name_of_function(node) == "sqrt" else SafePower()


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
    given = {leaf: root.edge[leaf] if leaf in root.edge else _filled(leaf, 0.5) for leaf in leaves}
    try:
        found = replay(nodes, given, trace, {node: guard_of(node)})[user]
    except NotReplayable:
        return False
    return not bool(found.isfinite().all())

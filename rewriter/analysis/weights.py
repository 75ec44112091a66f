"""Operations that multiply data by a weight, and those that pass values on unchanged."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

from rewriter.tracing.dataflow import WEIGHT_KINDS, Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind

PASS_THROUGH = frozenset({Kind.VIEW, Kind.IDENTITY, Kind.SELECT})
"""Operations that pass values on unchanged."""


def has_weight(node: fx.Node, flow: Dataflow) -> bool:
    """Whether ``node`` multiplies data by a weight (a convolution, a linear layer, a matmul with a parameter)."""
    kind = facts(node)["kind"]
    if kind is Kind.MATMUL:
        return len(flow.sources(node)) == 1 and any(
            True for n in node.all_input_nodes for _ in constants_behind(n, flow)
        )
    return kind in WEIGHT_KINDS


@once
def find_features(flow: Dataflow) -> set[fx.Node]:
    """What depends on a weight: not the image, even if it is scaled or pooled."""
    found: set[fx.Node] = set()
    for node in flow.nodes():
        if has_weight(node, flow) or not found.isdisjoint(flow.sources(node)):
            found.add(node)
    return found


def constants_behind(node: fx.Node, flow: Dataflow) -> Iterator[fx.Node]:
    """The parameters, buffers and other stored tensors that ``node`` is computed from; none if it depends on input."""
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current in seen or current in flow:
            continue
        seen.add(current)
        if current.op == "get_attr":
            yield current
        pending += current.all_input_nodes


def is_pointwise(node: fx.Node, model: nn.Module) -> bool:
    """Whether a weight acts position-wise: a linear layer, or a convolution with kernel size 1."""
    if facts(node)["kind"] in (Kind.ATTENTION, Kind.RECURRENT):
        return False
    if node.op == "call_module":
        kernel = getattr(model.get_submodule(str(node.target)), "kernel_size", (1,))
        return all(size == 1 for size in (kernel if isinstance(kernel, tuple) else (kernel,)))
    constants = [n for n in node.all_input_nodes if n.op == "get_attr"]
    return bool(constants) and all(size == 1 for size in (facts(constants[0])["shape"] or ())[2:])

"""Which inputs an operation carries on: what a gate weighs, not the gate; attention values, not attention weights."""

from __future__ import annotations

from torch import fx, nn

from rewriter.analysis.arguments import argument
from rewriter.analysis.layout import elements
from rewriter.analysis.weights import PASS_THROUGH, has_weight
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name


def carrying(flow: Dataflow, node: fx.Node, model: nn.Module) -> list[fx.Node]:
    """The inputs whose scale ``node`` carries on: no gates, queries, keys, attention weights or positions."""
    sources = flow.sources(node)
    kind = facts(node)["kind"]
    name = function_name(node.target) if callable(node.target) else ""
    if name == "scaled_dot_product_attention" or kind is Kind.ATTENTION:
        value = argument(node, "value", 2)
        return [source for source in sources if source is value]
    if name in ("grid_sample", "grid_sampler"):
        return [source for source in sources if source is node.args[0]]
    if len(sources) == 2 and kind is Kind.MATMUL:
        values = [source for source in sources if not holds_attention_weights(source, flow)]
        return values if len(values) == 1 else sources
    if len(sources) == 2 and kind is Kind.MULTIPLY:
        weighed = gated(flow, node, model)
        return sources if weighed is None else [weighed]
    return sources


def gated(flow: Dataflow, node: fx.Node, model: nn.Module) -> fx.Node | None:
    """The factor that a product of two tensors carries on, if the other one is its gate.

    A gate is computed from what it weighs (``x * f(x)``), or its values are between 0 and 1 and those of the other not.
    """
    sources = flow.sources(node)
    if facts(node)["kind"] is not Kind.MULTIPLY or len(sources) != 2:
        return None
    for weighed, gate in (sources, sources[::-1]):
        if flow.is_ancestor(weighed, gate):
            return weighed
    others = [source for source in sources if not _is_between_0_and_1(source, flow, model)]
    return others[0] if len(others) == 1 else None


def carried(flow: Dataflow, end: fx.Node, within: set[fx.Node], model: nn.Module) -> set[fx.Node]:
    """The nodes of ``within`` that reach ``end`` other than through a gate or as attention weights."""
    found: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node in within and node not in found:
            found.add(node)
            pending += handed_on(flow, node, carrying(flow, node, model))
    return found


def handed_on(flow: Dataflow, node: fx.Node, read: list[fx.Node]) -> list[fx.Node]:
    """The dependencies of ``node``: the inputs ``read``, and earlier writes to its memory."""
    sources = flow.sources(node)
    return [other for other in flow.graph.predecessors(node) if other in read or other not in sources]


def only_weighs(flow: Dataflow, node: fx.Node, model: nn.Module) -> bool:
    """Whether ``node`` serves only as weights or positions: a query, a key, sampling locations.

    The operations that turn it into these are linear; anything with an activation is a network, however it is used.
    """
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        users = flow.users(current)
        for user in users:
            if user in seen or current not in carrying(flow, user, model):
                continue
            if not _is_linear(user, flow):
                return False
            seen.add(user)
            pending.append(user)
        if not users:
            return False
    return True


def _is_linear(node: fx.Node, flow: Dataflow) -> bool:
    """Whether ``node`` is not a known nonlinearity: an activation, a product of two tensors or a softmax."""
    kind, name = facts(node)["kind"], function_name(node.target) if callable(node.target) else ""
    return kind in _MAKES_WEIGHTS or name in ("sub", "rsub", "stack") or has_weight(node, flow)


def holds_attention_weights(node: fx.Node, flow: Dataflow) -> bool:
    """Whether ``node`` holds attention weights: a softmax, possibly renormalised or mixed across heads."""
    while facts(node)["kind"] is not Kind.SOFTMAX:
        sources = flow.sources(node)
        if len(sources) != 1 or elements(sources[0]) != elements(node):
            return False
        if facts(node)["kind"] not in _ADJUSTS and not has_weight(node, flow):
            return False
        node = sources[0]
    return True


def _is_between_0_and_1(node: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    """Whether ``node`` is a softmax or sigmoid, possibly after operations that keep values between 0 and 1."""
    *_, node = flow.back_through(node, _KEEPS_RANGE)
    if facts(node)["kind"] is Kind.SOFTMAX:
        return True
    if node.op == "call_module":
        name = type(model.get_submodule(str(node.target))).__name__.lower()
    else:
        name = function_name(node.target) if callable(node.target) else ""
    return facts(node)["kind"] is Kind.ACTIVATION and name in ("sigmoid", "hardsigmoid")


_MAKES_WEIGHTS = frozenset(
    {*PASS_THROUGH, *(Kind.ADD, Kind.MULTIPLY, Kind.MATMUL, Kind.SOFTMAX, Kind.NORM, Kind.DROPOUT, Kind.CONCAT)}
)
_ONE_BY_ONE = frozenset({Kind.VIEW, Kind.IDENTITY, Kind.SELECT, Kind.DROPOUT})
_ADJUSTS = _ONE_BY_ONE | {Kind.NORM, Kind.ADD, Kind.MULTIPLY}
_KEEPS_RANGE = _ONE_BY_ONE - {Kind.DROPOUT} | {Kind.INTERPOLATE}

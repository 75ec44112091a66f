"""Which inputs an operation hands on: what a gate weighs, not the gate; the values of an attention, not its weights."""

from __future__ import annotations

from torch import fx, nn

from rewriter.analysis.arguments import argument
from rewriter.analysis.dataflow import Dataflow
from rewriter.analysis.layout import elements
from rewriter.analysis.weights import has_weight
from rewriter.tracing.kinds import Kind, function_name


def carrying(flow: Dataflow, node: fx.Node, model: nn.Module) -> list[fx.Node]:
    """The inputs whose scale ``node`` hands on: not the gate of a product, nor queries, keys and attention weights."""
    sources = flow.sources(node)
    kind = node.meta["kind"]
    fused = callable(node.target) and function_name(node.target) == "scaled_dot_product_attention"
    if fused or kind is Kind.ATTENTION:
        value = argument(node, "value", 2)
        return [source for source in sources if source is value]
    if len(sources) == 2 and kind is Kind.MATMUL:
        values = [source for source in sources if not holds_attention_weights(source, flow)]
        return values if len(values) == 1 else sources
    if len(sources) == 2 and kind is Kind.MULTIPLY:
        weighed = gated(flow, node, model)
        return sources if weighed is None else [weighed]
    return sources


def gated(flow: Dataflow, node: fx.Node, model: nn.Module) -> fx.Node | None:
    """What a product of two tensors hands on, if the other one is its gate.

    A gate is made of what it weighs (``x * f(x)``), or its values are between 0 and 1, and those of the other are not.
    """
    sources = flow.sources(node)
    if node.meta["kind"] is not Kind.MULTIPLY or len(sources) != 2:
        return None
    for weighed, gate in (sources, sources[::-1]):
        if flow.is_ancestor(weighed, gate):
            return weighed
    others = [source for source in sources if not _is_between_0_and_1(source, flow, model)]
    return others[0] if len(others) == 1 else None


def carried(flow: Dataflow, end: fx.Node, within: set[fx.Node], model: nn.Module) -> set[fx.Node]:
    """What of ``within`` reaches ``end`` otherwise than through a gate or as attention weights."""
    found: set[fx.Node] = set()
    pending = [end]
    while pending:
        node = pending.pop()
        if node in within and node not in found:
            found.add(node)
            pending += carrying(flow, node, model)
    return found


def holds_attention_weights(node: fx.Node, flow: Dataflow) -> bool:
    """Whether ``node`` holds attention weights: a softmax, perhaps normalised again or mixed over heads."""
    while node.meta["kind"] is not Kind.SOFTMAX:
        sources = flow.sources(node)
        if len(sources) != 1 or elements(sources[0]) != elements(node):
            return False
        if node.meta["kind"] not in _ADJUSTS and not has_weight(node, flow):
            return False
        node = sources[0]
    return True


def _is_between_0_and_1(node: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    """Whether ``node`` is a softmax or sigmoid, seen through what leaves every value between 0 and 1."""
    while node.meta["kind"] in _KEEPS_RANGE and len(flow.sources(node)) == 1:
        node = flow.sources(node)[0]
    if node.meta["kind"] is Kind.SOFTMAX:
        return True
    if node.op == "call_module":
        name = type(model.get_submodule(str(node.target))).__name__.lower()
    else:
        name = function_name(node.target) if callable(node.target) else ""
    return node.meta["kind"] is Kind.ACTIVATION and name in ("sigmoid", "hardsigmoid")


_ONE_BY_ONE = frozenset({Kind.VIEW, Kind.IDENTITY, Kind.SELECT, Kind.DROPOUT})
_ADJUSTS = _ONE_BY_ONE | {Kind.NORM, Kind.ADD, Kind.MULTIPLY}
_KEEPS_RANGE = _ONE_BY_ONE - {Kind.DROPOUT} | {Kind.INTERPOLATE}

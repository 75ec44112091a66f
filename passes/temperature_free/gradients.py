"""Which similarities train anything by a contrast: not weights that are cut off from the gradient, nor attention."""

from __future__ import annotations

from torch import fx

from rewriter.passes.temperature_free.cosines import Scale
from rewriter.passes.temperature_free.vectors import function_of, nodes_in, places, size
from rewriter.tracing.dataflow import WEIGHT_KINDS, Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind

_LOSSES = frozenset({"cross_entropy", "log_softmax", "logsumexp", "nll_loss", "kl_div", "log", "softmax"})


def passed_by_gradients(flow: Dataflow) -> set[fx.Node]:
    """The operations through which a gradient goes back from what the model returns."""
    return {flow.output} | _back(flow.sources(flow.output), flow)


def is_attention(scale: Scale, flow: Dataflow) -> bool:
    """Whether the scaled similarities weight features: a weight or another product reads them, or a softmax of them
    multiplies what has more dimensions, or is computed from the same data."""
    own = {cosine.node for cosine in scale.cosines}
    starts = own if scale.inside else {scale.node}
    after = set().union(*(flow.reachable(node) for node in starts)) - own
    kinds = WEIGHT_KINDS | {Kind.MATMUL, Kind.EMBEDDING}
    if any(facts(node)["kind"] in kinds for node in after):
        return True
    data = _back(own, flow) - own
    return any(_weights_features(node, data, flow) for node in after if facts(node)["kind"] is Kind.SOFTMAX)


def _weights_features(softmax: fx.Node, data: set[fx.Node], flow: Dataflow) -> bool:
    """Whether a softmax, moved at most, multiplies features that are computed from ``data``, or are broadcast to."""
    if function_of(softmax) == "log_softmax":
        return False
    pending, seen = [softmax], {softmax}
    while pending:
        node = pending.pop()
        for user in flow.users(node):
            if facts(user)["kind"] is Kind.MULTIPLY:
                others = [one for one in nodes_in(user.args[:2]) if one is not node and one in flow]
                before = _back(others, flow)
                wider = size(user) > size(node)
                if before and not _has_loss(before) and (wider or not data.isdisjoint(before)):
                    return True
            elif user not in seen and places(user) and function_of(user) != "detach":
                seen.add(user)
                pending.append(user)
    return False


def _has_loss(nodes: set[fx.Node]) -> bool:
    return any(function_of(node) in _LOSSES for node in nodes)


def _back(nodes: set[fx.Node] | list[fx.Node], flow: Dataflow) -> set[fx.Node]:
    """``nodes`` and all that they are computed from, as far as a gradient goes back from them."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        dtype = facts(node)["dtype"]
        if node in found or function_of(node) == "detach" or (dtype is not None and not dtype.is_floating_point):
            continue
        found.add(node)
        pending += flow.sources(node)
    return found

"""Heads: a global average pooling that everything on the way to an output passes through, and what follows it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from rewriter.analysis.dataflow import Dataflow
from rewriter.analysis.residual import has_weight
from rewriter.tracing.kinds import Kind


@dataclass(eq=False)
class Head:
    """A pooled head.

    Attributes:
        pool: the global average pooling; ``source`` what it pools.
        before: operations between the last weight or join before the pooling and the pooling.
        after: operations after it up to the first weight.
        later: operations after that weight.
        classifier: that first weight; None for a model without a classifier.
    """

    pool: fx.Node
    source: fx.Node
    before: list[fx.Node]
    after: list[fx.Node]
    later: list[fx.Node]
    classifier: fx.Node | None


def find_heads(flow: Dataflow) -> list[Head]:
    """Every head with global average pooling, in the order they ran.

    A squeeze-and-excitation pool is none: the feature map reaches the output around it.
    """
    outputs = flow.sources(flow.output)
    heads = []
    for pool in flow.nodes(Kind.AVG_POOL, Kind.MEAN):
        if is_global_average(pool, flow) and any(flow.dominates(pool, output) for output in outputs):
            heads.append(_head(flow, pool))
    return heads


def is_global_average(node: fx.Node, flow: Dataflow) -> bool:
    """Whether ``node`` averages each channel over all positions.

    ``(N, C, H, W)`` over H and W, ``(N, H, W, C)`` over H and W, or tokens ``(N, L, C)`` over L.
    """
    sources = flow.sources(node)
    if len(sources) != 1 or node.meta["kind"] not in (Kind.AVG_POOL, Kind.MEAN):
        return False
    before, after = sources[0].meta["shape"], node.meta["shape"]
    if before is None or after is None or len(before) < 3:
        return False
    if node.meta["kind"] is Kind.AVG_POOL:
        return len(after) == len(before) and all(size == 1 for size in after[2:])
    dims = _mean_dims(node, len(before))
    return dims is not None and dims in _SPATIAL_DIMS[len(before)]


_SPATIAL_DIMS: dict[int, tuple[frozenset[int], ...]] = {
    3: (frozenset({1}), frozenset({2})),
    4: (frozenset({2, 3}), frozenset({1, 2})),
    5: (frozenset({2, 3, 4}), frozenset({1, 2, 3})),
}


def _mean_dims(node: fx.Node, rank: int) -> frozenset[int] | None:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    if isinstance(dim, int):
        dim = (dim,)
    if not isinstance(dim, (list, tuple)) or rank not in _SPATIAL_DIMS:
        return None
    return frozenset(d % rank for d in dim if isinstance(d, int))


def _head(flow: Dataflow, pool: fx.Node) -> Head:
    source = flow.sources(pool)[0]
    before: list[fx.Node] = []
    node = source
    while not has_weight(node, flow) and len(flow.sources(node)) == 1:
        before.append(node)
        node = flow.sources(node)[0]
    after = flow.reachable(pool, stop=lambda n: has_weight(n, flow))
    weights = [n for n in flow.in_order(after) if has_weight(n, flow)]
    later = flow.reachable(pool) - after
    return Head(
        pool,
        source,
        before,
        [n for n in flow.in_order(after) if not has_weight(n, flow)],
        flow.in_order(later),
        weights[0] if weights else None,
    )

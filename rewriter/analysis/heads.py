"""Heads: a global average pooling on every path to an output, and what follows it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from rewriter.analysis.layout import channel_dimension
from rewriter.analysis.weights import has_weight
from rewriter.analysis.windows import covers_map
from rewriter.reasons import Reason
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind


@dataclass(eq=False)
class Head:
    """A pooled head.

    Attributes:
        pool: the global average pooling, or the first of its steps; ``source`` is its input.
        before: operations between the last weight or join and the pooling.
        after: operations after the pooling and before any weight; ``weights`` are the first weights that follow.
        later: operations after one of these weights.
        classifier: the first of the weights; None for a model without a classifier.
    """

    pool: fx.Node
    source: fx.Node
    before: list[fx.Node]
    after: list[fx.Node]
    later: list[fx.Node]
    weights: list[fx.Node]

    @property
    def classifier(self) -> fx.Node | None:
        return self.weights[0] if self.weights else None


@once
def find_heads(flow: Dataflow, model: nn.Module) -> list[Head]:
    """Every head with global average pooling, in execution order.

    A squeeze-and-excitation pooling is not a head: the feature map reaches the output around it.
    """
    pools = flow.nodes(Kind.AVG_POOL, Kind.MEAN)
    return [_head(flow, pool) for pool in pools if _is_global_average(pool, flow, model) and flow.leads_to_output(pool)]


def missing_heads(flow: Dataflow) -> Iterator[tuple[list[fx.Node], Reason, str]]:
    """For a model without a pooled head: the operations before each output, and why there is no pooling."""
    for output in flow.sources(flow.output):
        node, passed = output, []
        while len(flow.sources(node)) == 1:
            passed.append(node)
            node = flow.sources(node)[0]
            if facts(node)["kind"] in (Kind.CONCAT, Kind.ADD):
                break
        kinds = [facts(n)["kind"] for n in passed]
        if Kind.MAX_POOL in kinds:
            yield passed, Reason.MAX_POOLING, "the head pools by the maximum"
        elif not any(_takes_one_token(n, flow) for n in passed):
            yield passed, Reason.NO_GLOBAL_POOLING, "no global average pooling before the output"
        elif any(_is_pooled_token(flow, join) for join in flow.nodes(Kind.CONCAT)):
            yield passed, Reason.NO_GLOBAL_POOLING, "the head reads what an attention made of the mean token"
        else:
            yield passed, Reason.CLASS_TOKEN, "the head reads a class token; there is no pooling"


def selected_tokens(flow: Dataflow) -> list[fx.Node]:
    """The operations that select one token of a sequence ``(N, L, C)``, in execution order."""
    return [
        node
        for node in flow.nodes(Kind.SELECT)
        if flow.sources(node) and len(facts(flow.sources(node)[0])["shape"] or ()) == 3 and _takes_one_token(node, flow)
    ]


def _is_pooled_token(flow: Dataflow, join: fx.Node) -> bool:
    """Whether tokens are concatenated with their mean, as before CLIP's attention pooling."""
    sources = flow.sources(join)
    means = [source for source in sources if facts(source)["kind"] is Kind.MEAN]
    return len(sources) == 2 and any(flow.sources(mean)[0] is other for mean in means for other in sources)


def _takes_one_token(node: fx.Node, flow: Dataflow) -> bool:
    """Whether one token of several is selected, as by ``x[:, 0]``; ``x[:, 1:]`` is the rest of the map."""
    before, after = facts(flow.sources(node)[0])["shape"], facts(node)["shape"]
    if facts(node)["kind"] is not Kind.SELECT or before is None or after is None or len(before) < 3:
        return False
    if len(node.all_input_nodes) > 1:  # the best of several, by a computed index
        return False
    if len(before) > 3 and before[-2:] == after[-2:]:  # the last of several stacked stages
        return False
    return len(after) < len(before) or any(size == 1 < whole for size, whole in zip(after, before, strict=False))


def noise_claim(pool: fx.Node) -> str:
    """The claim of passes that add noise at a head's pooling, so that only one of them does.

    A helper function that an edit turned into a method is named by the method that calls it, as before the edit.
    """
    owner = facts(pool)["owner"]
    methods = (f.code for f in facts(pool)["frames"] if f.path == owner.path and "." in f.code.co_qualname)
    method = next((code.co_name for code in methods), owner.method)
    return f"noise at the pooling in {owner.path or '(root)'}.{method}"


def _is_global_average(node: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    """Whether ``node`` averages each channel over all positions.

    This is ``(N, C, H, W)`` over H and W, ``(N, H, W, C)`` over H and W, or tokens ``(N, L, C)`` over L.
    """
    sources = flow.sources(node)
    if len(sources) != 1 or facts(node)["kind"] not in (Kind.AVG_POOL, Kind.MEAN):
        return False
    before, after = facts(sources[0])["shape"], facts(node)["shape"]
    if before is None or after is None or len(before) < 3:
        return False
    if facts(node)["kind"] is Kind.AVG_POOL:
        return len(after) == len(before) and covers_map(node, before, after, model)
    return pooled_dims(node, flow, model) is not None


def first_step(node: fx.Node, flow: Dataflow) -> fx.Node:
    """The first of several means over one dimension each (``x.mean(3).mean(2)``); ``node`` itself if there is one."""
    source = flow.sources(node)[0]
    if facts(node)["kind"] is Kind.MEAN is facts(source)["kind"] and flow.users(source) == [node]:
        return first_step(source, flow)
    return node


def pooled_dims(node: fx.Node, flow: Dataflow, model: nn.Module) -> frozenset[int] | None:
    """The dimensions, of the input of its :func:`first_step`, that a mean over all positions or tokens reduces.

    None if it reduces others: channels, or only some of the positions.
    """
    source = flow.sources(first_step(node, flow))[0]
    found, rank = _reduced(node, flow), len(facts(source)["shape"])
    if found not in _SPATIAL_DIMS.get(rank, ()) or channel_dimension(flow, source, model) in found:
        return None
    return found


def _reduced(node: fx.Node, flow: Dataflow) -> frozenset[int]:
    """The dimensions that a mean reduces, numbered as in the input of its first step."""
    source = flow.sources(node)[0]
    named = node.kwargs.get("dim", node.kwargs.get("axis"))
    dim = node.args[1] if len(node.args) > 1 else named
    dims = dim if isinstance(dim, (list, tuple)) else (dim,)
    rank = len(facts(source)["shape"])
    found = frozenset(d % rank for d in dims if isinstance(d, int))
    if first_step(node, flow) is node:
        return found
    earlier, whole = _reduced(source, flow), len(flow.sources(first_step(node, flow))[0].meta["shape"])
    left = [d for d in range(whole) if rank == whole or d not in earlier]
    return earlier | {left[d] for d in found}


_SPATIAL_DIMS: dict[int, tuple[frozenset[int], ...]] = {
    3: (frozenset({1}), frozenset({2})),
    4: (frozenset({2, 3}), frozenset({1, 2})),
    5: (frozenset({2, 3, 4}), frozenset({1, 2, 3})),
}


def _head(flow: Dataflow, pool: fx.Node) -> Head:
    last, pool = pool, first_step(pool, flow)
    source = flow.sources(pool)[0]
    before: list[fx.Node] = []
    node = source
    while not has_weight(node, flow) and len(flow.sources(node)) == 1:
        before.append(node)
        node = flow.sources(node)[0]
    reached = flow.reachable(last, stop=lambda n: has_weight(n, flow))
    weights = [n for n in flow.in_order(reached) if has_weight(n, flow)]
    behind_weights = set[fx.Node]().union(*(flow.reachable(weight) for weight in weights))
    after = reached - behind_weights - set(weights)
    later = {node for node in flow.reachable(last) if flow.dominates(last, node)} - after - set(weights)
    return Head(pool, source, before, flow.in_order(after), flow.in_order(later), weights)

"""Assign each dropout to exactly one place, the innermost, before anything is decided."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from rewriter.analysis.heads import Head, find_heads, missing_heads
from rewriter.analysis.residual import Branch, find_branches
from rewriter.analysis.weights import has_weight
from rewriter.authoring import Outcome, Place, Reason, Refused, Trace
from rewriter.passes.dropout.branches import InBranch
from rewriter.passes.dropout.drops import KEPT_ON_ATTENTION, Drops
from rewriter.passes.dropout.heads import PATTERN, InHead, on_predictions
from rewriter.passes.dropout.trunk import find_on_trunk, left_on_trunk


@dataclass(frozen=True, eq=False)
class Left:
    """One or more dropouts that are left where they are.

    Attributes:
        reasons: one for each dropout.
    """

    reasons: tuple[Refused, ...]

    def decide(self, place: Place[Any], p: float | None) -> Iterator[Outcome]:
        """Yield the reasons."""
        yield from self.reasons


Subject = InHead | InBranch | Left


def find_places(trace: Trace) -> Iterator[Place[Subject]]:
    """Yield heads, then branches, each with its dropouts, then the dropouts that are in neither."""
    drops = Drops(trace)
    free = _Free(drops)
    branches = find_branches(drops.flow, drops.model)
    heads = [(head, _of_head(drops, head, branches, free)) for head in find_heads(drops.flow, drops.model)]
    unpooled = [] if heads else list(_without_average_pooling(trace, drops, _nodes(branches), free))
    with_weight = [b for b in branches if any(has_weight(node, drops.flow) for node in b.nodes)]
    on_trunk = find_on_trunk(drops, free.nodes, with_weight)
    of_branches = {}
    for branch in sorted(with_weight, key=lambda b: len(b.nodes)):
        inside = free.take(branch.nodes)
        beside = free.take(on_trunk.of(branch))
        of_branches[branch] = InBranch(drops, branch, drops.flow.in_order([*inside, *beside]), on_trunk.of(branch))
    between = free.take(on_trunk.between)
    for head, (before, after, later) in heads:
        found = InHead(drops, head, before, after, later, before_norm=free.take(head.before))
        yield Place(trace, head.pool, PATTERN, found, path=found.path)
    yield from unpooled
    for branch in with_weight:
        yield Place(trace, branch.join, of_branches[branch].pattern, of_branches[branch], path=of_branches[branch].path)
    if between:
        why = "it is not known which block it is meant for"
        yield Place(trace, "", "trunk", Left(tuple(left_on_trunk(drops, node, why) for node in between)))
    outside = {(r.path, r.detail): r for r in (_outside(drops, node) for node in free.nodes)}
    if outside:
        yield Place(trace, "", "dropout", Left(tuple(outside.values())))


class _Free:
    """The dropouts not yet assigned to a place."""

    def __init__(self, drops: Drops) -> None:
        self.nodes = list(drops.nodes)

    def take(self, nodes: Collection[fx.Node]) -> list[fx.Node]:
        """Take those among ``nodes``, in execution order; they are then no longer free."""
        taken = [node for node in self.nodes if node in nodes]
        self.nodes = [node for node in self.nodes if node not in nodes]
        return taken


def _of_head(
    drops: Drops, head: Head, branches: list[Branch], free: _Free
) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]]:
    """Take the dropouts before the pooling, after it, and after a weight that follows it.

    One before a batch norm that precedes the pooling may be on the trunk, and stays free; those in branches after the
    pooling stay with those branches.
    """
    behind = {head.pool, *head.after, *head.weights, *head.later}
    in_branches = _nodes([b for b in branches if b.fork in behind and not b.has_projection])
    later = free.take(set(head.later) - in_branches)
    before = free.take([node for node in head.before if drops.batch_norm_between(node, head.pool) is None])
    return before, free.take(set(head.after) - in_branches), later


def _nodes(branches: list[Branch]) -> set[fx.Node]:
    return {node for branch in branches for node in branch.nodes}


def _without_average_pooling(
    trace: Trace, drops: Drops, in_branches: set[fx.Node], free: _Free
) -> Iterator[Place[Subject]]:
    """Explain why a dropout before the outputs, and in no branch, has no pooling to be moved before."""
    for passed, reason, detail in missing_heads(drops.flow):
        for node in free.take(set(passed) - in_branches):
            why = on_predictions(drops, node) if drops.on_predictions(node) else drops.left(reason, detail, node)
            yield Place(trace, node, PATTERN, Left((why,)))


def _outside(drops: Drops, node: fx.Node) -> Refused:
    if drops.on_attention(node):
        return drops.left(Reason.ATTENTION_DROPOUT, KEPT_ON_ATTENTION, node)
    read = bool(drops.flow.users(node))
    detail = "in no residual branch and no pooled head" if read else "nothing reads what it returns"
    return drops.left(Reason.OUTSIDE, detail, node)

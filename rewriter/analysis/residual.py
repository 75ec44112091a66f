"""Residual blocks and dense layers: joins whose operands share a fork.

A *residual block* is a sum of two tensors that come from one fork. The operand that reaches the fork without a weight,
or else without an activation, is the shortcut; the other is the branch. A *dense layer* joins by concatenation: it
appends to its input what it computed from it (DenseNet).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import fx, nn

from rewriter.analysis.carrying import carried, gated, only_weighs
from rewriter.analysis.norms import find_norms
from rewriter.analysis.resolution import enlarges, spans_levels
from rewriter.analysis.sums import addends
from rewriter.analysis.ways import Way, way_between
from rewriter.analysis.weights import PASS_THROUGH, find_features, has_weight
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind


@dataclass(frozen=True)
class WalkBack:
    """The paths back from the end of a branch to its last weights.

    Attributes:
        weight: the last operation with a weight; None if there are several, or a path without one.
        passed: what lies after the last weights, going back from the join.
        stopped_at: ``weight``, or else the point where paths merge.
        norms: the last norms, if every path has one after the last weight; going back from the join.
    """

    weight: fx.Node | None
    passed: tuple[fx.Node, ...]
    stopped_at: fx.Node
    norms: tuple[fx.Node, ...]


@dataclass(eq=False)
class Branch:
    """The branch of a residual block or dense layer.

    Attributes:
        flow, model: the dataflow of a recording, and the recorded model.
        form: ``"residual"`` (joined by a sum), ``"dense"`` (joined by a concatenation), or ``"skip"``: a shortcut with
            weights around whole blocks, the first of which passes the fork on.
        fork: where branch and shortcut begin; ``join`` is where they meet.
        operand: the last operation of the branch.
        shortcut: the last operation of the shortcut.
    """

    flow: Dataflow
    model: nn.Module
    form: str
    fork: fx.Node
    join: fx.Node
    operand: fx.Node
    shortcut: fx.Node

    @cached_property
    def nodes(self) -> set[fx.Node]:
        """The operations on the branch."""
        return self.flow.region(self.fork, self.operand)

    @cached_property
    def end(self) -> WalkBack:
        """The last weights and what follows them."""
        return _walk_back(self)

    @property
    def has_projection(self) -> bool:
        """Whether the shortcut has a weight; the sum of two heads then looks the same."""
        nodes = self.flow.region(self.fork, self.shortcut) if self.shortcut is not self.fork else set()
        return any(has_weight(node, self.flow) for node in nodes)

    @property
    def readers(self) -> list[fx.Node]:
        """The operations that read the operands at the join."""
        flow, join = self.flow, self.join
        return [user for user in flow.users(self.operand) if user is join or join in flow.users(user)]

    @property
    def norms_before_last_weight(self) -> list[fx.Node]:
        """Without those that only feed queries, keys and gates, which are followed by no weight of the branch."""
        flow, before = self.flow, self.nodes - set(self.end.passed)
        weighs = before - carried(flow, self.operand, self.nodes, self.model)
        found = [norm.node for norm in find_norms(flow, self.model) if norm.node in before]
        return [
            norm
            for norm in found
            if norm not in weighs or any(has_weight(node, flow) for node in flow.reachable(norm) & weighs)
        ]


def find_branches(flow: Dataflow, model: nn.Module) -> list[Branch]:
    """Every residual branch and dense layer, in execution order of their joins.

    Other data may enter a branch (a mask, a timestep, a memory), so that its end depends on more than the fork: the
    fork is where the shortcut leaves the branch's dependencies. If neither operand of a sum has a weight, the one with
    a norm is the branch (``x + pool(norm(x))``).

    Args:
        flow: the dataflow of a recording.
        model: the recorded model.
    """
    return [branch for branch in _find(flow, model) if branch.form != "skip"]


def find_long_skips(flow: Dataflow, model: nn.Module) -> list[Branch]:
    """Shortcuts with weights around whole residual blocks; the contents of their branches belong to those blocks."""
    return [branch for branch in _find(flow, model) if branch.form == "skip"]


@once
def _find(flow: Dataflow, model: nn.Module) -> list[Branch]:
    branches: list[Branch] = []
    streams: dict[fx.Node, fx.Node] = {}
    for join in flow.nodes():
        if facts(join)["kind"] is Kind.CONCAT:
            found = _dense_layers(flow, model, join)
        else:
            residual = _residual(flow, model, join, streams)
            found = [] if residual is None else [residual]
        branches += found
        streams.update((join, branch.fork) for branch in found)
    return _without_single_layers(branches)


def _without_single_layers(branches: list[Branch]) -> list[Branch]:
    """Drop dense layers without a neighbouring one: these are ordinary concatenations (Ghost, context)."""
    layers = [branch for branch in branches if branch.form == "dense"]
    joins, forks = {layer.join for layer in layers}, {layer.fork for layer in layers}
    return [b for b in branches if b.form != "dense" or b.fork in joins or b.join in forks]


def _walk_back(branch: Branch) -> WalkBack:
    """Walk from the end of a branch back to its last weights.

    Norms written as arithmetic are passed as one step. At a gate, ``x * gate(x)``, the walk follows ``x``. Stochastic
    depth and layer scale multiply by something that does not depend on the input, so they have a single input. Data
    that enters from elsewhere is not followed.
    """
    flow, model, fork = branch.flow, branch.model, branch.fork
    norms = {norm.node: norm for norm in find_norms(flow, model)}
    passed: list[fx.Node] = []
    merge: fx.Node | None = None
    weights: set[fx.Node] = set()
    bare = False
    pending = {branch.operand: True}  # whether some path from here to the join has no norm
    while pending:
        node = max(pending, key=flow.position)
        no_norm = pending.pop(node)
        if node is fork or has_weight(node, flow):
            weights.add(node)
            bare |= no_norm
            continue
        passed.append(node)
        norm = norms.get(node)
        gate = gated(flow, node, model)
        if norm is not None and norm.normalised is not None:
            following = [norm.normalised]
        elif gate is not None:
            following = [gate]
        else:
            following = [source for source in flow.sources(node) if source is fork or source in branch.nodes]
        if len(following) > 1 and merge is None:
            merge = node
        for source in following:
            pending[source] = pending.get(source, False) or (no_norm and norm is None)
    last = tuple(node for node in passed if node in norms)
    weight = next(iter(weights)) if len(weights) == 1 and fork not in weights else None
    return WalkBack(weight, tuple(passed), weight or merge or fork, () if bare or fork in weights else last)


def _residual(flow: Dataflow, model: nn.Module, join: fx.Node, streams: dict[fx.Node, fx.Node]) -> Branch | None:
    sources = addends(flow, join)
    if len(sources) != 2:
        return None
    block = functools.partial(_block, flow, model, join=join, sources=sources, streams=streams)
    fork = flow.fork(join)
    found = None if fork is None else block(fork)
    if found is not None:
        return found
    for shortcut, operand in (sources, sources[::-1]):
        leaves_at = _leaves(flow, shortcut, operand)
        if leaves_at is not None and leaves_at is not fork:
            found = block(leaves_at)
            if found is not None and found.shortcut is shortcut:
                return found
    return None


def _leaves(flow: Dataflow, shortcut: fx.Node, operand: fx.Node) -> fx.Node | None:
    """The point at which ``shortcut``, followed back along single inputs, leaves the dependencies of ``operand``."""
    node = shortcut
    while not flow.is_ancestor(node, operand):
        sources = flow.sources(node)
        if len(sources) != 1:
            return None
        node = sources[0]
    return node


def _block(
    flow: Dataflow,
    model: nn.Module,
    fork: fx.Node,
    join: fx.Node,
    sources: list[fx.Node],
    streams: dict[fx.Node, fx.Node],
) -> Branch | None:
    ways = [way_between(flow, fork, source, streams) for source in sources]
    if not any(way.weights for way in ways):
        ways = [
            Way(int(source is not fork and _holds_norm(flow.region(fork, source))), linear=True) for source in sources
        ]
    pairs = ((0, 1), (1, 0))
    found = next((pair for pair in pairs if ways[pair[0]].is_shortcut_of(ways[pair[1]])), None)
    if found is None:
        return None
    shortcut, operand = (sources[index] for index in found)
    projects = ways[found[0]].weights > 0
    if facts(shortcut)["shape"] != facts(join)["shape"]:  # a timestep that is added to every position
        return None
    if projects and not _is_read_once(flow, fork, shortcut, join):
        return None
    if any(spans_levels(flow, fork, end, model) for end in (operand, shortcut)):
        return None
    if projects and not ways[found[0]].linear and not _may_have_activations(flow, fork, shortcut, model):
        return None
    if _only_gates(flow, fork, operand, model) or _become_weights(flow, join):
        return None
    if _is_passed_by(flow, fork, sources, join) and only_weighs(flow, join, model):
        return None
    around_blocks = projects and any(streams.get(node) is fork for node in flow.region(fork, operand))
    return Branch(flow, model, "skip" if around_blocks else "residual", fork, join, operand, shortcut)


def _only_gates(flow: Dataflow, fork: fx.Node, operand: fx.Node, model: nn.Module) -> bool:
    """Whether what comes from ``fork`` only weighs something else in ``operand``, and is not carried on itself."""
    region = flow.region(fork, operand)
    products = (gated(flow, node, model) for node in carried(flow, operand, region, model))
    return any(weighed is not None and weighed is not fork and weighed not in region for weighed in products)


def _is_read_once(flow: Dataflow, fork: fx.Node, end: fx.Node, join: fx.Node) -> bool:
    """Whether what weights compute from ``fork`` to ``end`` is meant for ``join``; sums and other parts may read it."""
    way = flow.region(fork, end)
    made: set[fx.Node] = set()
    for node in flow.in_order(way):
        if has_weight(node, flow) or not made.isdisjoint(flow.sources(node)):
            made.add(node)
    readers = {user for node in made for user in flow.users(node) if facts(user)["kind"] not in (Kind.SELECT, Kind.ADD)}
    return readers <= way | {join}


def _may_have_activations(flow: Dataflow, fork: fx.Node, end: fx.Node, model: nn.Module) -> bool:
    """Whether a path with weights and activations may be a shortcut: of features, and not up from a lower level."""
    return fork in find_features(flow) and not any(enlarges(node, flow, model) for node in flow.region(fork, end))


def _is_passed_by(flow: Dataflow, fork: fx.Node, sources: list[fx.Node], join: fx.Node) -> bool:
    """Whether an operand of the sum, or its fork, is also read elsewhere, so that the main path bypasses the sum."""
    inside = {fork, join}.union(*(flow.region(fork, source) for source in sources if source is not fork))
    return any(user not in inside for source in {fork, *sources} for user in flow.users(source))


def _become_weights(flow: Dataflow, join: fx.Node) -> bool:
    """Whether a sum is read by a softmax only: attention scores with a positional bias."""
    node = join
    while facts(node)["kind"] in (*PASS_THROUGH, Kind.ADD, Kind.MULTIPLY) and len(flow.users(node)) == 1:
        (node,) = flow.users(node)
    return facts(node)["kind"] is Kind.SOFTMAX


def _holds_norm(nodes: set[fx.Node]) -> bool:
    return any(facts(node)["kind"] is Kind.NORM for node in nodes)


def _dense_layers(flow: Dataflow, model: nn.Module, join: fx.Node) -> list[Branch]:
    """One for each new part of a concatenation that appends to its parts something computed from all of them."""
    sources = flow.sources(join)
    for fork, kept in _kept_parts(flow, sources):
        new = [source for source in sources if source not in kept]
        if not new or not all(flow.dominates(fork, operand) for operand in new):
            continue
        if any(flow.is_ancestor(one, other) for one in new for other in new if one is not other):
            continue
        branches = [Branch(flow, model, "dense", fork, join, operand, kept[0]) for operand in new]
        if all(branch.end.weight is not None for branch in branches):
            return [] if any(spans_levels(flow, fork, operand, model) for operand in new) else branches
    return []


def _kept_parts(flow: Dataflow, sources: list[fx.Node]) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """What a concatenation may append to: all parts of an earlier concatenation, or one of its own parts."""
    for source in reversed(sources):
        node: fx.Node | None = source
        while node is not None:
            if facts(node)["kind"] is Kind.CONCAT:
                earlier = flow.sources(node)
                if set(earlier) < set(sources):
                    yield node, earlier
                break
            node = flow.fork(node)
    yield from ((source, [source]) for source in sources)

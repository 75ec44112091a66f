"""The dataflow of a recording: which tensor reaches which operation, and through what every path must pass."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, TypeVar

import networkx as nx
from torch import fx

from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind

WEIGHT_KINDS = frozenset({Kind.CONV, Kind.LINEAR, Kind.ATTENTION, Kind.RECURRENT})
"""Operations that multiply by a weight."""


Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def once(
    find: Callable[Concatenate[Dataflow, Parameters], Result],
) -> Callable[Concatenate[Dataflow, Parameters], Result]:
    """Decorator of ``find(flow, …)``: what it found is kept with the flow, and shared by all passes."""

    @functools.wraps(find)
    def remembered(flow: Dataflow, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        key = (find, args, tuple(kwargs.items()))
        if key not in flow.found:
            flow.found[key] = find(flow, *args, **kwargs)
        result: Result = flow.found[key]
        return result

    return remembered


class Dataflow:
    """A directed acyclic graph over the nodes of one recording.

    Constants (weights, buffers) are left out: an edge means that data of the input can flow along it.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.found: dict[tuple[Any, ...], Any] = {}
        self.inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self.output = next(node for node in reversed(graph.nodes) if node.op == "output")
        self.graph = nx.DiGraph()
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        reached = set(self.inputs)
        self.graph.add_nodes_from(self.inputs)
        for node in graph.nodes:
            if facts(node)["kind"] is Kind.FACTORY:  # new_empty, zeros_like: they read a shape, no data
                continue
            for source in (*_read_for_data(node), *node.meta.get("after", ())):
                if source in reached:
                    self.graph.add_edge(source, node)
                    reached.add(node)

    def __contains__(self, node: fx.Node) -> bool:
        return node in self.graph

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """Data inputs of ``node``, in the order of its arguments; constants are not among them."""
        return [source for source in node.all_input_nodes if self.graph.has_edge(source, node)]

    def users(self, node: fx.Node) -> list[fx.Node]:
        """Operations that read ``node``, in the order they ran."""
        return sorted(self.graph.successors(node), key=self._order.__getitem__)

    def nodes(self, *kinds: Kind) -> Iterator[fx.Node]:
        """Nodes that depend on the input, of the given kinds, in the order they ran."""
        return (n for n in sorted(self.graph, key=self._order.__getitem__) if not kinds or facts(n)["kind"] in kinds)

    def back_through(self, node: fx.Node, kinds: Container[Kind]) -> Iterator[fx.Node]:
        """``node``, and one after the other what it is made of alone, as long as operations are of these ``kinds``."""
        yield node
        while facts(node)["kind"] in kinds and len(sources := self.sources(node)) == 1:
            (node,) = sources
            yield node

    @cached_property
    def _dominators(self) -> dict[fx.Node, fx.Node]:
        root = self.inputs[0]
        graph = self.graph
        if len(self.inputs) > 1:
            graph = self.graph.copy()
            root = _Root()
            graph.add_edges_from((root, node) for node in self.inputs)
        return dict(nx.immediate_dominators(graph, root))

    def fork(self, node: fx.Node) -> fx.Node | None:
        """The last node that every path from the input to ``node`` passes through; None if only the input itself."""
        found = self._dominators.get(node)
        return found if isinstance(found, fx.Node) and found is not node else None

    @cached_property
    def _intervals(self) -> dict[fx.Node, range]:
        """For each node a range of numbers; those of the nodes that it dominates lie in it."""
        nodes = self.in_order(node for node in self._dominators if isinstance(node, fx.Node))
        size: Counter[fx.Node | None] = Counter(nodes)
        for node in reversed(nodes):
            size[self.fork(node)] += size[node]
        intervals: dict[fx.Node, range] = {}
        free: Counter[fx.Node | None] = Counter()  # the next number of those that a node may give to what it dominates
        for node in nodes:
            fork = self.fork(node)
            start, free[fork] = free[fork], free[fork] + size[node]
            intervals[node], free[node] = range(start, start + size[node]), start + 1
        return intervals

    def dominates(self, node: fx.Node, later: fx.Node) -> bool:
        """Whether every path from the input to ``later`` passes through ``node``."""
        if node not in self._intervals or later not in self._intervals:
            return node is later
        return self._intervals[later].start in self._intervals[node]

    def leads_to_output(self, node: fx.Node) -> bool:
        """Whether everything on the way to some output passes through ``node``."""
        return any(self.dominates(node, output) for output in self.sources(self.output))

    def region(self, start: fx.Node, end: fx.Node) -> set[fx.Node]:
        """Nodes on some path from ``start`` to ``end``: ``end`` included, ``start`` not."""
        found = {start}
        for node in self.in_order(self.ancestors(end, since=start)):
            if not found.isdisjoint(self.graph.predecessors(node)):
                found.add(node)
        return found - {start}

    def ancestors(self, node: fx.Node, since: fx.Node) -> set[fx.Node]:
        """``node`` and everything that it depends on, except what ran before ``since``."""
        found: set[fx.Node] = set()
        pending = [node]
        while pending:
            current = pending.pop()
            if current not in found and self._order[current] >= self._order[since]:
                found.add(current)
                pending += self.graph.predecessors(current)
        return found

    def position(self, node: fx.Node) -> int:
        """The place of ``node`` in the order that operations ran in."""
        return self._order[node]

    def is_ancestor(self, node: fx.Node, later: fx.Node) -> bool:
        """Whether ``later`` depends on ``node``, or is it."""
        return node in self.ancestors(later, since=node)

    def reachable(self, node: fx.Node, stop: Callable[[fx.Node], bool] = lambda _: False) -> set[fx.Node]:
        """Everything that depends on ``node``; operations for which ``stop`` holds are included but not passed."""
        found: set[fx.Node] = set()
        pending = list(self.graph.successors(node))
        while pending:
            current = pending.pop()
            if current not in found:
                found.add(current)
                if not stop(current):
                    pending += self.graph.successors(current)
        return found

    def in_order(self, nodes: Iterable[fx.Node]) -> list[fx.Node]:
        """``nodes`` in the order they ran."""
        return sorted(nodes, key=self._order.__getitem__)


def _read_for_data(node: fx.Node) -> list[fx.Node]:
    """Inputs whose values flow on: not the shape or type that ``expand_as`` and ``to`` read, nor an index."""
    name = getattr(node.target, "__name__", "")
    if (name.endswith("_as") or name in _READ_ONE) and node.args and isinstance(node.args[0], fx.Node):
        return [node.args[0]]
    return node.all_input_nodes


_READ_ONE = frozenset(
    {"to", "type", "sum_to_size", "getitem", "__getitem__", "gather", "index_select", "take_along_dim"}
)


class _Root:
    """Stands before several inputs, so that there is one place where every path begins."""

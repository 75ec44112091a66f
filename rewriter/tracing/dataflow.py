"""The dataflow of a recording: which operations a tensor reaches, and which lie on every path."""

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
    """Decorator for ``find(flow, …)``: caches the result on the flow, where all passes share it."""

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

    Constants (weights, buffers) are left out: an edge means that input data can flow along it.
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
            if facts(node)["kind"] is Kind.FACTORY:  # new_empty, zeros_like: they read a shape, not data
                continue
            for source in (*_read_for_data(node), *node.meta.get("after", ())):
                if source in reached:
                    self.graph.add_edge(source, node)
                    reached.add(node)

    def __contains__(self, node: fx.Node) -> bool:
        return node in self.graph

    def sources(self, node: fx.Node) -> list[fx.Node]:
        """The data inputs of ``node``, in argument order; constants are left out."""
        return [source for source in node.all_input_nodes if self.graph.has_edge(source, node)]

    def users(self, node: fx.Node) -> list[fx.Node]:
        """The operations that read ``node``, in execution order."""
        return sorted(self.graph.successors(node), key=self._order.__getitem__)

    def nodes(self, *kinds: Kind) -> Iterator[fx.Node]:
        """The nodes of the given kinds that depend on the input, in execution order."""
        return (n for n in sorted(self.graph, key=self._order.__getitem__) if not kinds or facts(n)["kind"] in kinds)

    def back_through(self, node: fx.Node, kinds: Container[Kind]) -> Iterator[fx.Node]:
        """``node`` and the chain of its only inputs, going back as long as operations are of these ``kinds``."""
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
        """A range of numbers for each node, which contains the ranges of the nodes that it dominates."""
        nodes = self.in_order(node for node in self._dominators if isinstance(node, fx.Node))
        size: Counter[fx.Node | None] = Counter(nodes)
        for node in reversed(nodes):
            size[self.fork(node)] += size[node]
        intervals: dict[fx.Node, range] = {}
        free: Counter[fx.Node | None] = Counter()  # the next number that a node may give to one that it dominates
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
        """Whether every path to some output passes through ``node``."""
        return any(self.dominates(node, output) for output in self.sources(self.output))

    def region(self, start: fx.Node, end: fx.Node) -> set[fx.Node]:
        """The nodes on any path from ``start`` to ``end``, including ``end`` but not ``start``."""
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
        """The index of ``node`` in execution order."""
        return self._order[node]

    def is_ancestor(self, node: fx.Node, later: fx.Node) -> bool:
        """Whether ``later`` depends on ``node``, or is ``node``."""
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
        """``nodes`` in execution order."""
        return sorted(nodes, key=self._order.__getitem__)


def _read_for_data(node: fx.Node) -> list[fx.Node]:
    """Inputs whose values reach the result: not the shape or type that ``expand_as`` and ``to`` read, nor an index."""
    name = getattr(node.target, "__name__", "")
    if (name.endswith("_as") or name in _READ_ONE) and node.args and isinstance(node.args[0], fx.Node):
        return [node.args[0]]
    return node.all_input_nodes


_READ_ONE = frozenset(
    {"to", "type", "sum_to_size", "getitem", "__getitem__", "gather", "index_select", "take_along_dim"}
)


class _Root:
    """A common root for several inputs, so that all paths begin at one node."""

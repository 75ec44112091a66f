"""The two ways from a fork to a sum, and which of them is the shortcut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from rewriter.analysis.weights import PASS_THROUGH, has_weight
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind


@dataclass(frozen=True)
class Way:
    """What lies between the fork and an operand of a sum.

    Attributes:
        weights: how many weights in series; what only mixes positions (the values of an attention) counts as one.
        linear: whether it holds no activation, and nothing that mixes.
        mixes: whether it mixes positions by weights that are made of features.
    """

    weights: int
    linear: bool
    mixes: bool = False

    def is_shortcut_of(self, other: Way) -> bool:
        """Whether this is the shortcut, if the other is the other operand.

        The identity is one, and what is linear beside what is not; of two that are not, that of half as many layers,
        unless it is an attention. Two linear ways are one linear layer in parallel kernels (RepVGG), and no block.
        """
        if not self.weights or not other.weights:
            return self.weights < other.weights
        if self.linear != other.linear:
            return self.linear
        return not self.linear and not self.mixes and 2 * self.weights <= other.weights


_IDENTITY = Way(0, linear=True)


def way_between(flow: Dataflow, fork: fx.Node, operand: fx.Node, streams: dict[fx.Node, fx.Node]) -> Way:
    """The way from ``fork`` to ``operand``; ``streams`` are the sums before it that carry on what their fork held."""
    source: fx.Node | None = operand
    while source is not None and source is not fork:  # a sum over the same fork carries the shortcut: x + f(x) + g(x)
        if streams.get(source) is fork:
            return _IDENTITY
        passed = flow.sources(source) if facts(source)["kind"] in PASS_THROUGH else []
        source = next(iter(passed), None)  # none of memory that was filled after it was made
    nodes = flow.region(fork, operand) if operand is not fork else set()
    in_series: dict[fx.Node, int] = {}
    for node in flow.in_order(nodes):
        before = max((in_series.get(other, 0) for other in flow.sources(node)), default=0)
        in_series[node] = before + has_weight(node, flow)
    weights = in_series.get(operand, 0)
    kinds = {facts(node)["kind"] for node in nodes if not _multiplies(node, flow)}
    mixes = not kinds.isdisjoint(_MIXING)
    if not weights:
        return Way(int(mixes), linear=True)
    return Way(weights, kinds.isdisjoint(_NOT_LINEAR), mixes)


def _multiplies(node: fx.Node, flow: Dataflow) -> bool:
    """Whether a product of matrices is one with a weight."""
    return facts(node)["kind"] is Kind.MATMUL and has_weight(node, flow)


_MIXING = frozenset({Kind.SOFTMAX, Kind.MATMUL, Kind.ATTENTION})
"""What mixes positions by weights that are made of features."""

_NOT_LINEAR = _MIXING | {Kind.ACTIVATION, Kind.RECURRENT}

"""The two paths from a fork to a sum, and which of them is the shortcut."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from rewriter.analysis.weights import PASS_THROUGH, has_weight
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind


@dataclass(frozen=True)
class Way:
    """The path between the fork and an operand of a sum.

    Attributes:
        weights: number of weights in series; something that only mixes positions (attention values) counts as one.
        linear: whether it has no activation and does not mix.
        mixes: whether it mixes positions by weights computed from features.
    """

    weights: int
    linear: bool
    mixes: bool = False

    def is_shortcut_of(self, other: Way) -> bool:
        """Whether this path is the shortcut, if ``other`` is that of the other operand.

        The identity is, and a linear path beside a nonlinear one; of two nonlinear paths, one with half as many layers
        is, unless it is an attention. Two linear paths are one linear layer in parallel kernels (RepVGG), not a block.
        """
        if not self.weights or not other.weights:
            return self.weights < other.weights
        if self.linear != other.linear:
            return self.linear
        return not self.linear and not self.mixes and 2 * self.weights <= other.weights


_IDENTITY = Way(0, linear=True)


def way_between(flow: Dataflow, fork: fx.Node, operand: fx.Node, streams: dict[fx.Node, fx.Node]) -> Way:
    """The path from ``fork`` to ``operand``; ``streams`` are the earlier sums that carry their fork's value on."""
    source: fx.Node | None = operand
    while source is not None and source is not fork:  # a sum over the same fork carries the shortcut: x + f(x) + g(x)
        if streams.get(source) is fork:
            return _IDENTITY
        passed = flow.sources(source) if facts(source)["kind"] in PASS_THROUGH else []
        source = next(iter(passed), None)  # empty for memory that was filled after its creation
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
    """Whether a matrix product counts as one with a weight."""
    return facts(node)["kind"] is Kind.MATMUL and has_weight(node, flow)


_MIXING = frozenset({Kind.SOFTMAX, Kind.MATMUL, Kind.ATTENTION})
"""Operations that mix positions by weights computed from features."""

_NOT_LINEAR = _MIXING | {Kind.ACTIVATION, Kind.RECURRENT}

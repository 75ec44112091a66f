"""The terms of a loss: scaled similarities that stand outside the softmax, and meet its logarithm in a sum.

The positive logit of ``logsumexp(sim / t) - pos / t`` passes no softmax. It belongs to the loss all the same: the
log-odds take the place of the temperature in both, or in neither.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import fx

from rewriter.analysis.ancestors import computed_from
from rewriter.authoring import name_of
from rewriter.passes.temperature_free.cosines import Cosine, Scale, product
from rewriter.passes.temperature_free.vectors import function_of, places, size
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind

_LOGARITHMS = frozenset({"logsumexp", "log"})
_SUMS = frozenset({"add", "iadd", "radd", "sub", "isub", "rsub", "subtract"})
NEGATIONS = frozenset({"neg", "negative"})
_FLIP = NEGATIONS | {"rdiv", "rtruediv", "reciprocal"}
_KEEP_SIGN = frozenset({Kind.MULTIPLY, Kind.VIEW, Kind.IDENTITY})
_LINEAR = _SUMS | NEGATIONS | {"sum", "mean", "nansum", "nanmean", "trace"}


@dataclass(frozen=True)
class Temperature:
    """What a scale multiplies by.

    Attributes:
        behind: the parameters and inputs that it is computed from.
        factor: the number, if it is one.
        node: the operation that computes it, if it is no number.
    """

    behind: frozenset[fx.Node]
    factor: float | None
    node: fx.Node | None

    @property
    def is_negative(self) -> bool:
        """Whether it is written with a minus sign."""
        negative, node = (self.factor or 0) < 0, self.node
        while node is not None and (function_of(node) in _FLIP or facts(node)["kind"] in _KEEP_SIGN):
            below = any(isinstance(value, (int, float)) and value < 0 for value in node.args)
            turns = below and (function_of(node) in _FLIP or facts(node)["kind"] is Kind.MULTIPLY)
            negative ^= function_of(node) in NEGATIONS or turns
            node = next(iter(node.all_input_nodes), None)
        return negative

    def is_same(self, other: Temperature) -> bool:
        """Whether both are one temperature, or equal numbers."""
        if self.behind or other.behind:
            return bool(self.behind & other.behind)
        if self.factor is None or other.factor is None:
            return self.node is not None and self.node is other.node
        return math.isclose(abs(self.factor), abs(other.factor), rel_tol=1e-6)


def temperature_of(node: fx.Node, kept: fx.Node) -> Temperature:
    """The number by which ``node`` multiplies, or divides, its operand ``kept``."""
    operands = [operand for operand in node.all_input_nodes if operand is not kept]
    number = operands[0] if operands else None
    values = [value for value in node.args[:2] if isinstance(value, (int, float)) and value]
    factor = float(values[0]) if values and number is None else None
    divides = factor is not None and "div" in function_of(node)
    behind = frozenset(one for one in computed_from(operands) if one.op in ("get_attr", "placeholder"))
    return Temperature(behind, 1 / factor if divides and factor else factor, number)


class Terms:
    """Which sums the scaled similarities of a training run enter, and whether behind a logarithm."""

    def __init__(self, scales: Iterable[Scale], reached: Mapping[Scale, set[fx.Node]], flow: Dataflow) -> None:
        self._flow = flow
        self.temperatures = {scale: temperature_of(scale.node, scale.kept) for scale in scales}
        self._linear, self._behind_logarithm = {}, {}
        for scale in self.temperatures:
            logits = [cosine.node for cosine in scale.cosines] if scale.inside else [scale.node]
            logarithms = {node for node in reached[scale] if function_of(node) in _LOGARITHMS}
            self._linear[scale] = self._sums_of(logits)
            self._behind_logarithm[scale] = self._sums_of(logarithms)

    def meet(self, one: Scale, other: Scale) -> bool:
        """Whether two scales by the same temperature are terms of one loss, the logarithm of at least one a term."""
        if not self.temperatures[one].is_same(self.temperatures[other]):
            return False
        first, second = self._behind_logarithm[one], self._behind_logarithm[other]
        return not (first.isdisjoint(second | self._linear[other]) and second.isdisjoint(self._linear[one]))

    def why_not_whole(self, group: list[Scale], cosines: Mapping[fx.Node, Cosine]) -> str:
        """Which other similarity is a term of the loss of a group, so that it cannot be edited; empty if none is."""
        for one in (one for one in group if self.temperatures[one].is_negative):
            return f"{name_of(one.node)} multiplies by a negative number, whose sign would be lost"
        loss = set().union(*(self._behind_logarithm[one] for one in group))
        edited = {one.node for one in group} | {c.node for one in group if one.inside for c in one.cosines}
        balanced = any(not loss.isdisjoint(self._linear[one]) for one in group)
        for node in self._flow.in_order(loss):
            if function_of(node) not in _SUMS and not (places(node) and len(self._flow.sources(node)) > 1):
                continue
            apart = balanced and size(node) == 1  # a term of its own, such as a mean distance of positive pairs
            for source in self._flow.sources(node):
                for leaf, scales in self._leaves(source, loss | edited, cosines):
                    shared = [name_of(at) for at, kept in scales if self._is_of(group, at, kept)]
                    if detail := self._detail(leaf, shared, apart, cosines):
                        return detail
        return ""

    def _is_of(self, group: list[Scale], node: fx.Node, kept: fx.Node) -> bool:
        return any(temperature_of(node, kept).is_same(self.temperatures[one]) for one in group)

    def _detail(self, leaf: fx.Node, shared: list[str], apart: bool, cosines: Mapping[fx.Node, Cosine]) -> str:
        """Why the loss is left alone for a term that is made of ``leaf``, and ``shared`` scales of the temperature."""
        name = name_of(leaf)
        if shared and (leaf in cosines or product(leaf) is not None):
            return f"{name}, a term of the loss, is scaled at {shared[0]} by the same temperature, and cannot be edited"
        if apart or shared:
            return ""
        if leaf in cosines:
            return f"{name} is added to the logarithm of the loss, and another temperature or none scales it"
        if any(leaf in reached and function_of(leaf) in _LOGARITHMS for reached in self._behind_logarithm.values()):
            return f"{name} of similarities that another temperature scales is added to the loss"
        return ""

    def _leaves(
        self, node: fx.Node, done: set[fx.Node], cosines: Mapping[fx.Node, Cosine]
    ) -> Iterator[tuple[fx.Node, list[tuple[fx.Node, fx.Node]]]]:
        """What ``node`` is a sum of, apart from what is ``done``, and the multiplications by one number on the way."""
        pending: list[tuple[fx.Node, list[tuple[fx.Node, fx.Node]]]] = [(node, [])]
        seen = set()
        while pending:
            current, scales = pending.pop()
            if current in done or current in seen or function_of(current) == "detach":
                continue
            seen.add(current)
            if current in cosines or product(current) is not None or not is_linear(current):
                yield current, scales
                continue
            if facts(current)["kind"] is not Kind.MULTIPLY:
                pending += [(source, scales) for source in self._flow.sources(current)]
                continue
            for kept, by in _factors(current):
                by_number = not isinstance(by, fx.Node) or size(by) == 1
                if isinstance(kept, fx.Node) and kept in self._flow:
                    pending.append((kept, [*scales, (current, kept)] if by_number else scales))

    def _sums_of(self, nodes: Iterable[fx.Node]) -> set[fx.Node]:
        """``nodes`` and what is linear in them."""
        found = set(nodes)
        pending = list(found)
        while pending:
            node = pending.pop()
            for user in self._flow.users(node) if node in self._flow else ():
                divides = "div" in function_of(user) and user.args[0] is not node
                if user not in found and is_linear(user) and not divides and function_of(user) != "detach":
                    found.add(user)
                    pending.append(user)
        return found


def is_linear(node: fx.Node) -> bool:
    """Whether an operation moves, adds, averages or multiplies values."""
    if node.op != "call_function":
        return False
    return places(node) or facts(node)["kind"] is Kind.MULTIPLY or function_of(node) in _LINEAR


def _factors(node: fx.Node) -> list[tuple[object, object]]:
    """Each factor of a product with the other one; of a division, the numerator with the denominator."""
    first, second = [*node.args, *node.kwargs.values()][:2]
    return [(first, second)] if "div" in function_of(node) else [(first, second), (second, first)]

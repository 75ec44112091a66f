"""The values at which a root is tried, and whether what it is taken of is negative there by rounding alone.

``mean(d²) - mean(d)²`` is never negative, and zero where ``d`` is constant; computed in single precision it is then
zero, a little more or a little less. What is less is nan under a root.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import fx

from rewriter.passes.numeric_safety.replay import NotReplayable, name_of_function, replay, replay_exactly
from rewriter.tracing.facts import facts
from rewriter.tracing.trace import Trace

Setting = tuple[str, dict[fx.Node, torch.Tensor]]

SUMS = frozenset({"add", "radd", "iadd", "sub", "subtract", "isub", "rsub"})
_SEEDS = range(3)
_MULTIPLES = (1.0, 1.3, 5.0, 0.7, 3.0)
_CONSTANTS = (0.1, 0.3, 0.7)  # binary fractions have none of them
_ROUNDING = 1e-12
"""How far below zero double precision may be, beside what is added and subtracted."""


def zeros(leaves: Sequence[fx.Node], needed: set[fx.Node]) -> Iterator[Setting]:
    """Values for the leaves at which sums, means and variances vanish; those that take a gradient require one."""
    noise, equal = _noise(leaves, 0), _equal(leaves, 0)
    settings: list[Setting] = [
        ("all inputs are zero", {leaf: filled(leaf, 0.0) for leaf in leaves}),
        ("the inputs are equal", equal),
        ("the inputs are equal, and 0 or 1", {leaf: (value > 0.5).to(value.dtype) for leaf, value in equal.items()}),
        ("the inputs are constant", {leaf: filled(leaf, 0.5) for leaf in leaves}),
    ]
    settings += [("one input is zero", {**noise, leaf: filled(leaf, 0.0)}) for leaf in leaves if leaf in needed]
    yield from _requiring(settings, needed)


def roundings(leaves: Sequence[fx.Node], needed: set[fx.Node]) -> Iterator[Setting]:
    """Values at which a difference that vanishes in exact arithmetic may be a little below zero."""
    settings: list[Setting] = []
    for leaf in [leaf for leaf in leaves if leaf in needed][:2]:
        for seed in _SEEDS:
            equal = _equal(leaves, seed)
            settings += [
                ("one input is a multiple of another", {**equal, leaf: factor * equal[leaf]}) for factor in _MULTIPLES
            ]
    settings += [("the inputs are constant", {leaf: filled(leaf, number) for leaf in leaves}) for number in _CONSTANTS]
    yield from _requiring(settings, needed)


def rounds_below_zero(
    operand: fx.Node, nodes: Sequence[fx.Node], leaves: Sequence[fx.Node], needed: set[fx.Node], trace: Trace
) -> bool | None:
    """Whether ``operand`` is negative by rounding alone (True), is negative as such (None), or neither was seen.

    Each value is compared with that of the same inputs in double precision: what is negative there, by more than 1e-12
    of what is added and subtracted, is negative.
    """
    until = nodes[: nodes.index(operand) + 1]
    found = False
    for _, values in (*roundings(leaves, needed), *_anything(leaves)):
        try:
            computed, exact = replay(until, values, trace), replay_exactly(until, values, trace)
        except NotReplayable:
            return False
        least = -_ROUNDING * _scale(operand, exact, trace)
        if (exact[operand] < least).any():
            return None
        found = found or bool(((computed[operand] < 0) & (exact[operand] >= least)).any())
    return found


def has_difference(nodes: Sequence[fx.Node], trace: Trace) -> bool:
    """Whether something is added to, or subtracted from, something else that is computed."""
    return any(name_of_function(node) in SUMS and len(trace.flow.sources(node)) > 1 for node in nodes)


def filled(leaf: fx.Node, number: float) -> torch.Tensor:
    """A value of ``leaf`` that is ``number`` everywhere; masks are true, and indices 0."""
    shape, dtype = facts(leaf)["shape"], facts(leaf)["dtype"]
    if dtype is torch.bool:
        return torch.ones(shape, dtype=dtype)
    return torch.full(shape, number if dtype.is_floating_point else 0, dtype=dtype)


def _requiring(settings: Sequence[Setting], needed: set[fx.Node]) -> Iterator[Setting]:
    for how, values in settings:
        yield how, {n: v.clone().requires_grad_(n in needed and v.is_floating_point()) for n, v in values.items()}


def _anything(leaves: Sequence[fx.Node]) -> Iterator[Setting]:
    """Values at which nothing vanishes, positive ones and others."""
    for seed in _SEEDS:
        noise = _noise(leaves, seed)
        yield "", noise
        yield "", {leaf: 4 * value - 2 if value.is_floating_point() else value for leaf, value in noise.items()}


def _noise(leaves: Sequence[fx.Node], seed: int) -> dict[fx.Node, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for leaf in leaves:
        dtype = facts(leaf)["dtype"]
        value = torch.rand(facts(leaf)["shape"], generator=generator) * 0.8 + 0.1
        found[leaf] = value.to(dtype) if dtype.is_floating_point else (value > 0.5).to(dtype)
    return found


def _equal(leaves: Sequence[fx.Node], seed: int) -> dict[fx.Node, torch.Tensor]:
    """One value for all leaves of one shape."""
    noise = _noise(leaves, seed)
    shapes = {leaf: facts(leaf)["shape"] for leaf in leaves}
    return {leaf: noise[next(o for o in leaves if shapes[o] == shapes[leaf])].to(noise[leaf].dtype) for leaf in leaves}


def _scale(operand: fx.Node, exact: dict[fx.Node, torch.Tensor], trace: Trace) -> float:
    """The largest of the terms of the sums that ``operand`` is computed from, without the sums before those."""
    pending, seen, largest = [operand], set(), 0.0
    while pending:
        node = pending.pop()
        sources = [source for source in trace.flow.sources(node) if source in exact]
        if node in seen or not sources:
            continue
        seen.add(node)
        if name_of_function(node) in SUMS and len(sources) > 1:
            terms = [exact[source].detach().abs().nan_to_num(posinf=0.0) for source in sources]
            largest = max(largest, *(float(term.max()) for term in terms if term.numel()))
        else:
            pending += sources
    return largest

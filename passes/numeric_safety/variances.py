"""Variances of what can be one element, and variances as the difference of two means.

Dataflow::

    … ─ selection by a mask ─ … ─ var(unbiased)          x ─┬─ square ─ mean ─── subtract ─ …
                                                            └─ mean ─ square ──────┘
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from rewriter.analysis.arguments import argument
from rewriter.authoring import Change, Kind, Place, Reason, Recommendation, Refused
from rewriter.passes.numeric_safety.layers import VARIANCES, PopulationVariance, TwoPassVariance, variance_arguments
from rewriter.passes.numeric_safety.refusals import coded
from rewriter.passes.numeric_safety.replay import NotReplayable, name_of_function, replay
from rewriter.tracing.facts import facts
from rewriter.tracing.trace import Trace

_SELECTIONS = frozenset({"masked_select", "nonzero", "argwhere", "unique", "unique_consecutive", "where"})
_REDUCTIONS = frozenset({"mean", "sum", "amax", "amin", "max", "min", "norm", "item", "logsumexp", "prod"})


@dataclass(frozen=True)
class FewElements:
    """A variance with Bessel's correction that can be of one element; ``why`` says so in words."""

    why: str


@dataclass(frozen=True)
class DifferenceOfMeans:
    """``mean(square(x)) - square(mean(x))``.

    Attributes:
        x: what the variance is of.
        mean: the mean of the squares; ``square`` is what it is the mean of.
    """

    x: fx.Node
    mean: fx.Node
    square: fx.Node


def find_corrections(trace: Trace) -> Iterator[Place[FewElements]]:
    """Every variance or standard deviation with Bessel's correction of data that can be one element."""
    for node in trace.operations():
        if name_of_function(node) not in VARIANCES or not _is_corrected(node):
            continue
        operand = node.args[0] if node.args else None
        if not isinstance(operand, fx.Node) or _is_finite(node, facts(operand)["dtype"]):
            continue
        dim, _ = variance_arguments(node.args[1:], node.kwargs)
        shape = facts(operand)["shape"]
        dims = range(len(shape)) if dim is None else [dim] if isinstance(dim, int) else dim
        if torch.Size(shape[d] for d in dims).numel() == 1:
            yield Place(trace, node, "variance of what can be one element", FewElements("it is of one element here"))
        elif (selection := _selection(operand, dims, trace)) is not None:
            name = name_of_function(selection)
            what = "an index that is a mask" if name == "getitem" else f"{name}()"
            why = f"how many elements {what} selects depends on the data"
            yield Place(trace, node, "variance of what can be one element", FewElements(why))


def mend_correction(place: Place[FewElements], correction: int | None) -> Change | Recommendation:
    """Compute it with ``correction=0``, if that is asked for."""
    node, why = place.node, place.subject.why
    assert node is not None
    function = name_of_function(node)
    reason = f"of one element it is nan, and {why}"
    if correction is None:
        advice = f"torch.{function}(…, correction=0), by NumericSafety(correction=0): it changes values"
        return Recommendation(advice, reason, "RW0704")
    with coded("RW0704", "correction=0"):
        place.edit.redirect(node, PopulationVariance, all_calls=True, function=function)
    return Change(f"{function} with correction=0", reason, code="RW0704")


def _is_corrected(node: fx.Node) -> bool:
    """Whether it divides by the number of elements less one, as torch does by default."""
    if node.kwargs.get("correction", 1) in (0, 0.0):
        return False
    _, *given = node.args
    unbiased = given[0] if given and isinstance(given[0], bool) else given[1] if len(given) > 1 else True
    return bool(node.kwargs.get("unbiased", unbiased))


def _is_finite(node: fx.Node, dtype: torch.dtype) -> bool:
    """Whether the operation, run on one element, is finite."""
    rest = {name: value for name, value in node.kwargs.items() if name in ("unbiased", "correction")}
    function = getattr(torch, name_of_function(node))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of the division by zero
        found = function(torch.ones(1, dtype=dtype), **rest)
    return all(bool(each.isfinite().all()) for each in (found if isinstance(found, tuple) else (found,)))


def _selection(node: fx.Node, dims: object, trace: Trace) -> fx.Node | None:
    """The operation before ``node``, element by element, whose number of results depends on the data."""
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current in seen or current.op in ("placeholder", "get_attr"):
            continue
        seen.add(current)
        name = name_of_function(current)
        if name in _SELECTIONS and not (name == "where" and len(current.args) > 1):
            return current
        if name == "getitem" and len(current.args) > 1 and _has_mask(current.args[1]):
            return current
        if name not in _REDUCTIONS and facts(current)["kind"] is not Kind.MEAN:
            pending += trace.flow.sources(current)
    return None


def _has_mask(index: object) -> bool:
    parts = index if isinstance(index, (tuple, list)) else (index,)
    return any(isinstance(part, fx.Node) and facts(part)["dtype"] in (torch.bool, torch.uint8) for part in parts)


def find_differences(trace: Trace) -> Iterator[Place[DifferenceOfMeans]]:
    """Every ``mean(square(x)) - square(mean(x))`` that cancels."""
    for node in trace.operations():
        if name_of_function(node) not in ("sub", "subtract") or len(node.args) != 2 or node.kwargs.get("alpha", 1) != 1:
            continue
        mean, other = node.args
        if not isinstance(mean, fx.Node) or not isinstance(other, fx.Node) or name_of_function(mean) != "mean":
            continue
        square, mean_of_x = _first(mean), squared(other)
        x = None if square is None else squared(square)
        over = x is not None and mean_of_x is not None and _is_mean_of(mean_of_x, x, mean)
        if x is not None and square is not None and over and _cancels(node, x, trace):
            yield Place(trace, node, "variance as a difference of means", DifferenceOfMeans(x, mean, square))


def mend_difference(place: Place[DifferenceOfMeans]) -> Change:
    """Subtract the mean before squaring."""
    found, node = place.subject, place.node
    assert node is not None
    if place.flow.users(found.mean) != [node]:
        raise Refused(Reason.OTHER_READERS, "the mean of the squares is also read elsewhere", code="RW0705")
    with coded("RW0705", "x.var(correction=0), over the same dimensions"):
        place.edit.compute_instead(found.mean, TwoPassVariance, found.x, operand=found.square)
        place.edit.remove(node, keep=found.mean)
    return Change(
        "the mean of (x - mean)² instead of the mean of x² less the mean²",
        "the two cancel where the mean is large beside the deviation: the difference may be negative",
        code="RW0705",
    )


def _first(node: fx.Node) -> fx.Node | None:
    return node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None


def squared(node: fx.Node) -> fx.Node | None:
    """What ``node`` is the square of."""
    name = name_of_function(node)
    if name == "square" or (name == "pow" and argument(node, "exponent", 1) in (2, 2.0)):
        return _first(node)
    return _first(node) if name == "mul" and len(node.args) == 2 and node.args[0] is node.args[1] else None


def _is_mean_of(node: fx.Node, x: fx.Node, other: fx.Node) -> bool:
    """Whether ``node`` is the mean of ``x`` over the same dimensions as ``other`` is of its input."""
    same = node.args[1:] == other.args[1:] and node.kwargs == other.kwargs
    return name_of_function(node) == "mean" and _first(node) is x and same


def _cancels(node: fx.Node, x: fx.Node, trace: Trace) -> bool:
    """Whether the difference of the means is far from the variance, for values around 1000."""
    shape = facts(x)["shape"]
    nodes = [each for each in trace.flow.in_order(trace.flow.region(x, node))]
    values = torch.linspace(1000.1, 1000.3, torch.Size(shape).numel()).reshape(shape)
    try:
        found = replay(nodes, {x: values.to(facts(x)["dtype"])}, trace)[node]
        exact = replay(nodes, {x: values.double()}, trace)[node]
    except NotReplayable:
        return False
    return bool(((found - exact).abs() > 0.01 * exact.abs()).any())

"""Sums, however they are written: ``x + y``, ``x - y``, ``torch.lerp``, ``torch.stack([x, y]).sum(0)``."""

from __future__ import annotations

from torch import fx

from rewriter.analysis.layout import elements
from rewriter.analysis.weights import has_weight
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name


def addends(flow: Dataflow, node: fx.Node) -> list[fx.Node]:
    """The operands that ``node`` sums up, without constants; empty if it is not a sum."""
    if facts(node)["kind"] is Kind.ADD:
        return flow.sources(node)
    if (stack := summed_stack(flow, node)) is not None:
        return flow.sources(stack)
    name = function_name(node.target) if callable(node.target) else ""
    sources = flow.sources(node)
    if name not in _SUMS and name not in _DIFFERENCES:
        return []
    if any(facts(source)["shape"] != facts(node)["shape"] for source in sources):
        return []
    return [] if name in _DIFFERENCES and _ends_in_a_loss(flow, node) else sources


def summed_stack(flow: Dataflow, total: fx.Node) -> fx.Node | None:
    """What ``total`` sums over: the stack in ``torch.stack(maps).sum(0)``; None if it is not such a sum."""
    if total.op != "call_function" or function_name(total.target) not in ("sum", "mean"):  # type: ignore[arg-type]
        return None
    sources = flow.sources(total)
    if len(sources) != 1 or sources[0].op != "call_function" or function_name(sources[0].target) != "stack":  # type: ignore[arg-type]
        return None
    (stack,) = sources
    same = all(facts(item)["shape"] == facts(total)["shape"] for item in flow.sources(stack))
    return stack if same and flow.users(stack) == [total] else None


def _ends_in_a_loss(flow: Dataflow, node: fx.Node) -> bool:
    """Whether a difference is only reduced, and read by no weight: the distance to a target."""
    behind = flow.reachable(node)
    reduced = any(elements(user) < elements(node) for user in behind)
    return reduced and not any(has_weight(user, flow) for user in behind)


_SUMS = ("lerp", "addcmul")
_DIFFERENCES = ("sub", "isub", "rsub", "subtract")

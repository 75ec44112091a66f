"""The channel dimension of maps and tokens: ``(N, C, H, W)``, ``(N, H, W, C)`` or ``(N, L, C)``."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import fx, nn

from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name

_SECOND = frozenset({Kind.CONV, Kind.AVG_POOL, Kind.MAX_POOL, Kind.INTERPOLATE})
_LAST = frozenset({Kind.LINEAR, Kind.ATTENTION, Kind.EMBEDDING})
"""Operations that determine by themselves where channels are."""

_REDUCTIONS = ("amax", "mean")


def elements(node: fx.Node) -> int:
    """Number of elements of the result of ``node``."""
    return math.prod(facts(node)["shape"] or ())


def channel_dimension(flow: Dataflow, node: fx.Node, model: nn.Module) -> int | None:
    """The channel dimension of ``node``; None if nothing before it determines it."""
    pending: list[tuple[fx.Node, tuple[fx.Node, ...]]] = [(node, ())]
    seen: set[fx.Node] = set()
    while pending:
        current, views = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        known = _told_by(current, model)
        if known is not None:
            known = followed(known, views, model)
            if known is not None:
                return known
            continue
        sources = flow.sources(current)
        if facts(current)["kind"] is Kind.VIEW:
            pending += [(source, (current, *views)) for source in sources[:1]]
        else:  # element-wise operations, and those that select or join parts
            same = [source for source in sources if _has_same_dimensions(source, current)]
            pending += [(source, views) for source in reversed(same)]
    return None


def _has_same_dimensions(source: fx.Node, node: fx.Node) -> bool:
    before, after = facts(source)["shape"], facts(node)["shape"]
    if facts(node)["kind"] in (Kind.SELECT, Kind.CONCAT) and before is not None and after is not None:
        return len(before) == len(after)
    return bool(before == after)


def followed(dimension: int | None, operations: Iterable[fx.Node], model: nn.Module) -> int | None:
    """The position of a dimension after ``operations``, in execution order; None if it is merged with others."""
    for node in operations:
        if facts(node)["kind"] is Kind.LINEAR:
            dimension = len(facts(node)["shape"]) - 1
        elif facts(node)["kind"] is Kind.VIEW and dimension is not None:
            dimension = _viewed(node, dimension, model)
    return dimension


def _told_by(node: fx.Node, model: nn.Module) -> int | None:
    kind, shape = facts(node)["kind"], facts(node)["shape"]
    if shape is None or len(shape) < 3:
        return None
    if kind in _SECOND:
        return None if callable(node.target) and function_name(node.target) in _REDUCTIONS else 1
    if kind in _LAST:
        return len(shape) - 1
    if kind is Kind.NORM:
        if node.op == "call_module":
            last = isinstance(model.get_submodule(str(node.target)), (nn.LayerNorm, nn.RMSNorm))
        else:
            last = function_name(node.target) in ("layer_norm", "rms_norm")  # type: ignore[arg-type]
        return len(shape) - 1 if last else 1
    return None


def _viewed(view: fx.Node, dimension: int, model: nn.Module) -> int | None:
    """The position of an input dimension after a change of layout: a view of a contiguous tensor keeps its stride."""
    empty = {node: torch.empty(facts(node)["shape"], device="meta") for node in view.all_input_nodes}
    before = empty[view.all_input_nodes[0]]
    kept = before.shape[dimension], before.stride(dimension)  # read before an in-place view changes them
    args, kwargs = fx.map_arg((view.args, view.kwargs), empty.__getitem__)
    if view.op == "call_module":
        module = model.get_submodule(str(view.target))
        after = type(module).forward(module, *args, **kwargs)
    else:
        after = view.target(*args, **kwargs)  # type: ignore[operator]
    return next((d for d in range(after.dim()) if (after.shape[d], after.stride(d)) == kept), None)

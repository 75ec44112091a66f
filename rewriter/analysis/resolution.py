"""Where a map gets larger or smaller."""

from __future__ import annotations

import math

from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from rewriter.analysis.carrying import carried
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name


def spans_levels(flow: Dataflow, start: fx.Node, end: fx.Node, model: nn.Module) -> bool:
    """Whether the way from ``start`` to ``end`` leaves for a lower level and comes back, as a decoder's does.

    A level has an activation; without one it is a cheaper way to compute one linear step (attention of fewer tokens).
    What is resized within a gate or for attention weights is on no such way.
    """
    for up in (node for node in _way(flow, start, end, model) if enlarges(node, flow, model)):
        below = _way(flow, start, up, model) - {up}
        downs = [node for node in below if _shrinks(node, flow, model)]
        activations = [node for node in below if facts(node)["kind"] is Kind.ACTIVATION]
        if any(flow.is_ancestor(down, activation) for down in downs for activation in activations):
            return True
    return False


def _way(flow: Dataflow, start: fx.Node, end: fx.Node, model: nn.Module) -> set[fx.Node]:
    """What lies on the way, but for what only makes gates and attention weights; nothing if it is no way."""
    return carried(flow, end, flow.region(start, end), model) if start is not end else set()


def enlarges(node: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    """Whether ``node`` gives a map more positions: interpolation, transposed convolution, pixel shuffle, unpooling."""
    return _resizes(node, model) and _growth(node, flow) > 1


def _shrinks(node: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    return (facts(node)["kind"] in _SHRINKING or _resizes(node, model)) and _growth(node, flow) < _FEWER


def _resizes(node: fx.Node, model: nn.Module) -> bool:
    if facts(node)["kind"] is Kind.INTERPOLATE:
        return True
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return isinstance(module, (_ConvTransposeNd, nn.PixelShuffle, nn.PixelUnshuffle))
    return callable(node.target) and function_name(node.target) in _RESIZING


def _growth(node: fx.Node, flow: Dataflow) -> float:
    """How many times as many positions a map ``(N, C, …)`` has after ``node``; 1 where that is not known."""
    sources = flow.sources(node)
    shapes = [facts(sources[0])["shape"] if sources else (), facts(node)["shape"]]
    if any(shape is None or len(shape) < 3 for shape in shapes) or len(shapes[0]) != len(shapes[1]):
        return 1.0
    before, after = (math.prod(shape[2:]) for shape in shapes)
    return float(after / before) if before else 1.0


_RESIZING = frozenset(f"{name}{dims}d" for name in ("conv_transpose", "max_unpool") for dims in (1, 2, 3)) | {
    "pixel_shuffle",
    "pixel_unshuffle",
}
_SHRINKING = frozenset({Kind.CONV, Kind.AVG_POOL, Kind.MAX_POOL, Kind.MEAN})
_FEWER = 0.6
"""Without padding a convolution leaves somewhat fewer positions; with a stride of two along one axis, half of them."""

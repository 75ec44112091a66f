"""Where a map becomes larger or smaller."""

from __future__ import annotations

import math

from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from rewriter.analysis.carrying import carried
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name


def spans_levels(flow: Dataflow, start: fx.Node, end: fx.Node, model: nn.Module) -> bool:
    """Whether the path from ``start`` to ``end`` goes to a lower level and back, as in a decoder.

    A level has an activation; without one it is a cheaper way to compute one linear step (attention over fewer tokens).
    Resizing inside a gate or for attention weights does not count.
    """
    for up in (node for node in _way(flow, start, end, model) if enlarges(node, flow, model)):
        below = _way(flow, start, up, model) - {up}
        downs = [node for node in below if _shrinks(node, flow, model)]
        activations = [node for node in below if facts(node)["kind"] is Kind.ACTIVATION]
        if any(flow.is_ancestor(down, activation) for down in downs for activation in activations):
            return True
    return False


def _way(flow: Dataflow, start: fx.Node, end: fx.Node, model: nn.Module) -> set[fx.Node]:
    """The nodes on the path, except those that only form gates and attention weights; empty if there is no path."""
    return carried(flow, end, flow.region(start, end), model) if start is not end else set()


def enlarges(node: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    """Whether ``node`` adds positions to a map: interpolation, transposed convolution, pixel shuffle, unpooling."""
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
    """The factor by which ``node`` changes the number of positions of a map ``(N, C, …)``; 1 if unknown."""
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
"""A convolution without padding leaves slightly fewer positions; a stride of two along one axis leaves half."""

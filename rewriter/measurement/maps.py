"""The feature map that is measured, found by dataflow: what the head pools, or the tokens that it takes one of."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import fx, nn

from rewriter.analysis.heads import find_heads, selected_tokens
from rewriter.analysis.layout import channel_dimension
from rewriter.analysis.naming import name_of, path_of
from rewriter.analysis.weights import PASS_THROUGH
from rewriter.errors import MeasurementError, listed
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name
from rewriter.tracing.trace import Trace


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """A map ``(1, C, h, w)`` or ``(1, h, w, C)``, or tokens ``(1, L, C)`` or ``(1, C, L)``.

    Attributes:
        node: the operation that gives it.
        channels: which dimension counts channels.
        height, width: the number of positions.
        before, behind: the number of tokens that stand before and behind those of the positions.
    """

    node: fx.Node
    channels: int
    height: int
    width: int
    before: int = 0
    behind: int = 0

    @property
    def name(self) -> str:
        """Where the user finds it."""
        path = path_of(self.node)
        function = getattr(self.node.target, "__name__", self.node.name)
        return path if self.node.op == "call_module" else f"{function}() in {path or 'the model'}"

    def positions(self, value: torch.Tensor) -> torch.Tensor:
        """Return ``value`` of the node as ``(C, h, w)``."""
        found = value.movedim(self.channels, 1)[0]
        if found.dim() == 2:
            found = found[:, self.before : self.before + self.height * self.width]
        return found.reshape(len(found), self.height, self.width)


def find_map(trace: Trace, layer: str | None) -> FeatureMap:
    """Return the map that the head pools, or the result of the module at ``layer``.

    Raises:
        MeasurementError: there is none, or it is no map over positions.
    """
    node = _head_reads(trace) if layer is None else _result_of(trace, layer)
    return as_map(trace, node)


def as_map(trace: Trace, node: fx.Node) -> FeatureMap:
    """Return the result of ``node`` as a map.

    Raises:
        MeasurementError: it is none.
    """
    flow, shape = trace.eval.dataflow, facts(node)["shape"] or ()
    found = channel_dimension(flow, node, trace.model)
    if len(shape) == 4:
        channels = 1 if found is None else found
        height, width = (size for dim, size in enumerate(shape) if dim not in (0, channels))
        return FeatureMap(node, channels, height, width)
    if len(shape) == 3:
        channels = 2 if found is None else found
        return FeatureMap(node, channels, *_grid(trace, node, shape[3 - channels]))
    raise MeasurementError(
        f"{name_of(node)} gives {tuple(shape) or 'no tensor'}, no map over positions: expected (N, C, H, W), "
        "(N, H, W, C) or tokens (N, L, C); name another module with layer="
    )


def _head_reads(trace: Trace) -> fx.Node:
    flow, model = trace.eval.dataflow, trace.model
    heads, tokens = find_heads(flow, model), selected_tokens(flow)
    if heads:
        source = heads[-1].source
    elif tokens:
        source = flow.sources(tokens[-1])[0]
    else:
        modules = dict.fromkeys(call.path for call in trace.eval.calls if call.path and _is_map(call.outputs))
        raise MeasurementError(
            f"{type(model).__name__} has no head that pools a map or takes a token of it; name the module whose result "
            f"is measured: layer={next(reversed(modules), 'PATH')!r}"
        )
    return _before_norm(flow, source, model)


def _is_map(outputs: list[fx.Node]) -> bool:
    return len(outputs) == 1 and len(shape := facts(outputs[0])["shape"] or ()) == 4 and min(shape[2:]) > 1


def _before_norm(flow: Dataflow, node: fx.Node, model: nn.Module) -> fx.Node:
    """What a layer norm before the head reads: it takes out the mean over channels, which is measured."""
    *_, last = flow.back_through(node, PASS_THROUGH)
    if facts(last)["kind"] is not Kind.NORM:
        return node
    if last.op == "call_module":
        over_channels = isinstance(model.get_submodule(str(last.target)), nn.LayerNorm)
    else:
        over_channels = function_name(last.target) == "layer_norm"  # type: ignore[arg-type]
    return flow.sources(last)[0] if over_channels else node


def _result_of(trace: Trace, layer: str) -> fx.Node:
    if not isinstance(layer, str):
        raise MeasurementError(f"layer: expected the path of a module, found {type(layer).__name__}")
    modules = dict(trace.model.named_modules(remove_duplicate=False))
    if layer not in modules:
        raise MeasurementError(f"layer: there is no module {layer!r}; its parts are {listed(filter(None, modules))}")
    leaves = [node for node in trace.eval.graph.nodes if node.op == "call_module" and node.target == layer]
    found = leaves or [node for call in trace.eval.calls if call.path == layer for node in call.outputs]
    if not found:
        raise MeasurementError(f"layer: the module {layer!r} gives no tensor in evaluation mode; name another one")
    last: fx.Node = found[-1]
    return last


def _grid(trace: Trace, node: fx.Node, length: int) -> tuple[int, int, int, int]:
    """Height and width of ``length`` tokens, and how many others stand before and behind them.

    The tokens of positions come from a map; others are concatenated with them. Without such a map, all tokens are
    positions, in the proportions of the image.
    """
    flow = trace.eval.dataflow
    before = behind = 0
    rest = length
    for earlier in reversed(flow.in_order(flow.ancestors(node, since=flow.inputs[0]))):
        shape, sources = facts(earlier)["shape"] or (), flow.sources(earlier)
        if facts(earlier)["kind"] is Kind.CONCAT and len(shape) == 3 and shape[1] == rest:
            more = _beside(earlier, sources[-1]) if len(sources) == 1 else (0, 0)
            before, behind, rest = before + more[0], behind + more[1], rest - sum(more)
        elif (
            facts(earlier)["kind"] is Kind.CONV and len(shape) == 4 and math.prod(shape[2:]) == length - before - behind
        ):
            return shape[2], shape[3], before, behind
    height, width = (facts(flow.inputs[0])["shape"] or (1, 1, 1, 1))[-2:]
    rows = round(math.sqrt(length * height / width))
    if rows and length % rows == 0 and abs(rows * width - length // rows * height) < max(height, width):
        return rows, length // rows, 0, 0
    raise MeasurementError(f"the {length} tokens of {name_of(node)} are no grid of positions; name a map with layer=")


def _beside(concat: fx.Node, data: fx.Node) -> tuple[int, int]:
    """How many tokens a concatenation puts before and behind ``data``."""
    operands = concat.all_input_nodes
    place = operands.index(data)
    before, behind = operands[:place], operands[place + 1 :]
    return sum(facts(n)["shape"][1] for n in before), sum(facts(n)["shape"][1] for n in behind)

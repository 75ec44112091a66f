"""A recording as a runnable, flat ``fx.GraphModule``."""

from __future__ import annotations

import types

import torch
from torch import fx, nn

from rewriter.errors import TraceError
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Trace


def graph_module(trace: Trace) -> fx.GraphModule:
    """The recording of the model's current mode, over the model's own parameters.

    Raises:
        TraceError: part of the model ran where torch could not observe it.
    """
    refuse_unseen(trace.graph, trace.model)
    graph = fx.Graph()
    graph.output(graph.graph_copy(trace.graph, {}))
    for node in graph.nodes:
        if isinstance(node.target, types.FunctionType) and node.target in _METHODS:
            node.op, node.target = "call_method", _METHODS[node.target]
    result = fx.GraphModule(trace.model, graph, type(trace.model).__name__)
    result.training = trace.model.training  # train() would set the mode of the model's own modules
    return result


_METHODS = {method: name for name, method in vars(torch.Tensor).items() if isinstance(method, types.FunctionType)}
"""Names of methods written in Python: ``x ** 2`` calls one that torch.fx would look up as ``torch._tensor.pow``."""


def refuse_unseen(graph: fx.Graph, model: nn.Module) -> None:
    """Refuse a recording that does not hold all that is computed.

    Raises:
        TraceError: part of the model ran where torch could not observe it.
    """
    for node in graph.nodes:
        if facts(node)["kind"] is Kind.OPAQUE:
            path = facts(node)["module_path"] or type(model).__name__
            raise TraceError(
                f"module {path!r} makes a tensor outside torch's sight (numpy, a scripted function, an "
                "autograd.Function); a flat graph cannot hold it. Use the model itself, or torch.export."
            )

"""A recording as a runnable, flat ``fx.GraphModule``."""

from __future__ import annotations

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
    result = fx.GraphModule(trace.model, trace.graph, type(trace.model).__name__)
    result.training = trace.model.training  # train() would set the mode of the model's own modules
    return result


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

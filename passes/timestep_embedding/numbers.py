"""What is computed from a timestep that is given as a Python number, which a recording holds as a constant.

Such a model is traced again with another number, once for each number that it is given: the operations whose constant
arguments differ then are those that read it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from rewriter.errors import TraceError
from rewriter.passes.timestep_embedding.timesteps import is_number, with_changed
from rewriter.tracing.trace import Recording, Trace, trace_model

Made = Mapping[fx.Node, frozenset[fx.Node]]
"""For each input that is a number, the operations that depend on it and on no tensor that is given."""


def made_of_numbers(trace: Trace, recording: Recording) -> Made:
    """Return what is computed from numbers in a recording of ``trace``, remembered for the planning."""
    made: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in recording.dataflow.inputs:
        if is_number(trace.inputs, str(node.target)):
            other = _with_another(trace, str(node.target))
            found = None if other is None else _differing(recording, other.train if recording.training else other.eval)
            if found:
                made[node] = frozenset(found)
    return made


def _with_another(trace: Trace, name: str) -> Trace | None:
    """The trace with another number for an input; None if the model does not run with it, as with a size."""
    cached: dict[str, Trace | None] = trace.measured.setdefault(("timestep-embedding/numbers", trace.train), {})
    if name not in cached:
        try:
            cached[name] = trace_model(trace.model, with_changed(trace.inputs, [name]), (trace.backend,))
        except TraceError:
            cached[name] = None
    return cached[name]


def _differing(recording: Recording, other: Recording) -> set[fx.Node]:
    """The operations that depend on constants that differ; none if other operations ran."""
    nodes, others = list(recording.graph.nodes), list(other.graph.nodes)
    if [(node.op, node.target) for node in nodes] != [(node.op, node.target) for node in others]:
        return set()
    found: set[fx.Node] = set()
    for node, twin in zip(nodes, others, strict=True):
        differs = _constants(node) != _constants(twin) or not found.isdisjoint(node.all_input_nodes)
        if differs and node not in recording.dataflow:
            found.add(node)
    return found


def _constants(node: fx.Node) -> str:
    """The arguments of a call without tensors."""
    return repr(fx.map_arg((node.args, node.kwargs), lambda _: None))

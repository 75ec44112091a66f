"""The value of what no input reaches, with parameters that are drawn: its structure, and nothing that was trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from rewriter.authoring import Dataflow, Kind, Trace
from rewriter.tracing.facts import facts
from rewriter.tracing.skeleton import skeleton


def value_of(node: fx.Node, trace: Trace) -> torch.Tensor | None:
    """Compute ``node``, which no input reaches, on the CPU.

    Every parameter is drawn from a normal distribution, the same in every process; buffers have their values. Dropouts
    are the identity.

    Returns:
        The value; None if it cannot be computed: a buffer has no values (a model on the meta device), or code that
        torch could not observe takes part.
    """
    flow = trace.train.dataflow
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        plain = tensor.detach()
        if isinstance(tensor, nn.Parameter):
            std = max(tensor.shape[-1] if tensor.dim() else 1, 1) ** -0.5
            return nn.Parameter(torch.randn(tensor.shape, generator=generator) * std, requires_grad=False)
        if plain.is_meta:
            raise RuntimeError("no values")
        return plain.to("cpu", torch.float32 if plain.is_floating_point() else plain.dtype, copy=True)

    values: dict[fx.Node, Any] = {}
    try:
        with torch.no_grad(), torch.device("cpu"), torch.inference_mode(False):
            for current in flow.in_order(_all_behind(node, flow)):
                values[current] = _computed(current, values, drawn, trace)
    except Exception:  # whatever the model's functions raise on these values: then nothing is known
        return None
    found = values[node]
    return found if isinstance(found, torch.Tensor) else None


def _computed(
    node: fx.Node, values: dict[fx.Node, Any], drawn: Callable[[torch.Tensor], torch.Tensor], trace: Trace
) -> Any:
    if node in trace.train.dataflow:
        return torch.zeros(()).expand(facts(node)["shape"])
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        return drawn(getattr(trace.model.get_submodule(path), name))
    args = tuple(_given(value, values) for value in node.args)
    kwargs = {name: _given(value, values) for name, value in node.kwargs.items()}
    if facts(node)["kind"] is Kind.DROPOUT:
        return args[0]
    if node.op == "call_module":
        return skeleton(trace.model.get_submodule(str(node.target)), drawn).eval()(*args, **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _given(value: Any, values: dict[fx.Node, Any]) -> Any:
    """An argument with values instead of nodes, on the CPU and in single precision."""
    if isinstance(value, fx.Node):
        return values[value]
    if isinstance(value, (tuple, list)):
        return type(value)(_given(item, values) for item in value)
    if isinstance(value, slice):
        return slice(*(_given(item, values) for item in (value.start, value.stop, value.step)))
    if isinstance(value, torch.device):
        return torch.device("cpu")
    return torch.float32 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _all_behind(node: fx.Node, flow: Dataflow) -> set[fx.Node]:
    """``node`` and all that it depends on, writes to its memory included, back to what depends on the input."""
    found: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current not in found:
            found.add(current)
            if current not in flow:  # else only its shape or type is read
                pending += (*current.all_input_nodes, *facts(current)["after"])
    return found

"""Dropouts of a recording: their rates, what they drop, and whether they stay on in evaluation mode."""

from __future__ import annotations

import enum
import math
from typing import Any

from torch import fx, nn

from rewriter.analysis.arguments import argument
from rewriter.layers.registry import is_layer
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, forward_owner, function_name, has_own_forward
from rewriter.tracing.trace import Trace


class Mask(enum.StrEnum):
    """What a dropout drops; dropouts with different masks are not interchangeable."""

    ELEMENTS = "drops single elements"
    CHANNELS = "drops whole channels"
    ALPHA = "sets elements to a negative constant and rescales (alpha dropout)"
    OWN = "has a forward of its own"


def drop_rate(node: fx.Node, model: nn.Module) -> float:
    """The rate that a dropout had during the trace; torch's default of 0.5 if the call does not give it."""
    if node.op == "call_module":
        return float(model.get_submodule(str(node.target)).p)  # type: ignore[arg-type]
    rate = argument(node, "p", 1, 0.5)
    return float(rate) if isinstance(rate, (int, float)) else 0.5


def mask_of(node: fx.Node, model: nn.Module) -> Mask:
    """What a dropout drops of its input tensor.

    Channel dropout drops single elements if a channel has only one, as after a global pooling ``(N, C, 1, 1)``.
    """
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if has_own_forward(module) and ("forward" in module.__dict__ or not is_layer(forward_owner(module))):
            return Mask.OWN
        name = next(name for cls, name in _FUNCTION_OF.items() if isinstance(module, cls))
    else:
        name = function_name(node.target)  # type: ignore[arg-type]
    if name == "dropout":
        return Mask.ELEMENTS
    if "alpha" in name:
        return Mask.ALPHA
    return Mask.ELEMENTS if _one_element_a_channel(name, facts(node.all_input_nodes[0])["shape"]) else Mask.CHANNELS


@once
def always_on(flow: Dataflow, trace: Trace) -> set[fx.Node]:
    """Dropouts of the training run ``flow`` that drop in evaluation mode too, such as for Monte Carlo dropout."""
    if trace.eval is trace.train:  # recorded only once, since no dropout is active in evaluation mode
        return set()
    acting = {
        _place(node) for node in trace.eval.graph.nodes if facts(node)["kind"] is Kind.DROPOUT and facts(node)["active"]
    }
    return {node for node in flow.nodes(Kind.DROPOUT) if _place(node) in acting}


def is_stochastic_depth(node: fx.Node, flow: Dataflow) -> bool:
    """Whether ``node`` multiplies by random numbers, possibly scaled, and so drops whole samples."""
    if facts(node)["kind"] is not Kind.MULTIPLY or len(flow.sources(node)) != 1:
        return False
    factors = [factor for factor in node.all_input_nodes if factor not in flow]
    if not factors:  # x.div(keep_prob) * mask
        users = flow.users(node)
        return len(users) == 1 and len(users[0].all_input_nodes) > 1 and is_stochastic_depth(users[0], flow)
    pending, seen = list(factors), set[fx.Node]()
    while pending:
        factor = pending.pop()
        name = function_name(factor.target) if callable(factor.target) else ""
        if name.startswith(("bernoulli", "rand")):
            return True
        if factor not in seen:
            seen.add(factor)
            pending += [*factor.all_input_nodes, *factor.meta.get("after", ())]
    return False


_FUNCTION_OF: dict[type[nn.Module], str] = {
    nn.FeatureAlphaDropout: "feature_alpha_dropout",
    nn.AlphaDropout: "alpha_dropout",
    nn.Dropout1d: "dropout1d",
    nn.Dropout2d: "dropout2d",
    nn.Dropout3d: "dropout3d",
    nn.Module: "dropout",
}


def _one_element_a_channel(name: str, shape: tuple[int, ...]) -> bool:
    """Whether each channel of a tensor of this shape has one element, in the view of the dropout ``name``.

    1d and 3d dropout take one dimension less than expected for a missing batch; 2d dropout does not.
    """
    batched = {"dropout1d": 3, "dropout3d": 5}.get(name)
    channel = 0 if batched is not None and len(shape) < batched else 1
    return math.prod(shape[channel + 1 :]) == 1


def _place(node: fx.Node) -> Any:
    """A key that is equal for one dropout in two recordings."""
    if node.op == "call_module":
        return node.target
    return facts(node)["call"].path, tuple((frame.code, frame.instruction) for frame in facts(node)["frames"])

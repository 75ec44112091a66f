"""What autograd saves: an operation whose gradient needs its result or an input forbids in-place writes to it."""

from __future__ import annotations

from torch import fx, nn

from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name

_RESULT_NOT_NEEDED = frozenset(
    {
        Kind.CONV, Kind.LINEAR, Kind.MATMUL, Kind.NORM, Kind.EMBEDDING, Kind.ADD, Kind.MULTIPLY, Kind.MEAN, Kind.CONCAT,
        Kind.AVG_POOL, Kind.INTERPOLATE, Kind.DROPOUT, Kind.VIEW, Kind.IDENTITY, Kind.SELECT, Kind.FACTORY,
    }
)  # fmt: skip

_ACTIVATIONS_OF_THE_INPUT = frozenset(
    {
        "gelu",
        "silu",
        "mish",
        "hardswish",
        "leaky_relu",
        "leakyrelu",
        "relu6",
        "hardtanh",
        "hardsigmoid",
        "softplus",
        "elu",
    }
)
"""Activations whose gradient is computed from the input; for others (relu, sigmoid, tanh) it is from the result."""

_INPUTS_NOT_NEEDED = frozenset(
    {
        Kind.ADD, Kind.MEAN, Kind.CONCAT, Kind.INTERPOLATE, Kind.DROPOUT, Kind.VIEW, Kind.IDENTITY, Kind.SELECT,
        Kind.FACTORY, Kind.OUTPUT,
    }
)  # fmt: skip

_NEVER_WRITTEN = frozenset({"expand", "expand_as", "chunk", "split", "split_with_sizes", "tensor_split", "unbind"})
"""Autograd refuses writes to several views made at once, and expanded memory cannot be written to at all."""


def forbids_writes(node: fx.Node, model: nn.Module) -> bool:
    """Whether the gradient of ``node``, or the kind of view it is, forbids in-place writes to its result."""
    name, kind = _name(node, model), facts(node)["kind"]
    if name in _NEVER_WRITTEN:
        return True
    if kind is Kind.SELECT and _name(node.all_input_nodes[0], model) in _NEVER_WRITTEN:  # an element of a split
        return True
    if kind is Kind.ACTIVATION:
        return name not in _ACTIVATIONS_OF_THE_INPUT
    return kind not in _RESULT_NOT_NEEDED or name == "scaled_dot_product_attention"


def keeps_its_inputs(node: fx.Node) -> bool:
    """Whether the gradient of ``node`` may need its inputs."""
    return facts(node)["kind"] not in _INPUTS_NOT_NEEDED


def _name(node: fx.Node, model: nn.Module) -> str:
    """The name of the function, or of the module's class, in lower case."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__.lower()
    return function_name(node.target).lower() if callable(node.target) else ""

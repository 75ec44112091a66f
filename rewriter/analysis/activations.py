"""The moments of an activation and of its derivative for a standard normal input, by quadrature."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import fx, nn

from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind
from rewriter.tracing.skeleton import skeleton

_POINTS, _REACH = 4096, 8.0
INITIAL_SLOPE = 0.25
"""Initial weight of ``nn.PReLU``, the only activation with weights."""


@dataclass(frozen=True)
class ActivationMoments:
    """Expectations over ``z`` from the standard normal distribution, of ``f`` and its derivative ``f'``.

    Attributes:
        mean: ``E[f(z)]``.
        square: ``E[f(z) ** 2]``.
        slope: ``E[f'(z) ** 2]``.
        radial_slope: ``E[f'(z) ** 2 * z ** 2]``.
    """

    mean: float = 0.0
    square: float = 1.0
    slope: float = 1.0
    radial_slope: float = 1.0


Twin: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

IDENTITY = ActivationMoments()
"""The moments without an activation."""


def activation_after(flow: Dataflow, node: fx.Node) -> tuple[fx.Node, ...]:
    """The operations that form the element-wise activation that is the only reader of ``node``; empty if there is none.

    This is a single activation, or a gate computed from the tensor itself: ``x * sigmoid(x)``.
    """
    users = flow.users(node)
    first = users[0] if users else node
    if facts(first)["kind"] is not Kind.ACTIVATION or facts(first)["shape"] != facts(node)["shape"]:
        return ()
    if len(users) == 1:
        return (first,)
    gate = users[1]
    gates_itself = facts(gate)["kind"] is Kind.MULTIPLY and flow.users(first) == [gate] and len(users) == 2
    return (first, gate) if gates_itself and set(flow.sources(gate)) == {node, first} else ()


def activation_before(flow: Dataflow, node: fx.Node) -> tuple[fx.Node, ...]:
    """The operations that form the activation whose result is ``node``; empty if there is none."""
    sources = flow.sources(node)
    if (
        facts(node)["kind"] is Kind.ACTIVATION
        and len(sources) == 1
        and facts(sources[0])["shape"] == facts(node)["shape"]
    ):
        return (node,)
    if facts(node)["kind"] is Kind.MULTIPLY and len(sources) == 2:
        for gate, gated in (sources, reversed(sources)):
            if facts(gate)["kind"] is Kind.ACTIVATION and flow.sources(gate) == [gated]:
                return (gate, node)
    return ()


def activation_moments(operations: tuple[fx.Node, ...], model: nn.Module, *, values: bool = True) -> ActivationMoments:
    """The moments of the activation that ``operations`` form; those of the identity if there are none.

    Neither the model nor its hooks run. An activation that cannot be run by itself on numbers is ignored.

    Args:
        operations: see :func:`activation_after`.
        model: the model that they belong to.
        values: whether to use the weights that the activation has in ``model``, if they have values; otherwise
            :data:`INITIAL_SLOPE`.
    """
    try:
        return _moments(operations, model, _with_values if values else _initial) if operations else IDENTITY
    except Exception:  # it reads more than its input, or takes another type
        return IDENTITY


def _moments(operations: tuple[fx.Node, ...], model: nn.Module, twin: Twin) -> ActivationMoments:
    step = 2 * _REACH / _POINTS
    z = torch.linspace(-_REACH + step / 2, _REACH - step / 2, _POINTS, dtype=torch.float64, device="cpu")
    weights = torch.exp(-z.square() / 2)
    weights /= weights.sum()
    with torch.inference_mode(False), torch.enable_grad():
        points = z[:, None].expand(-1, _channels(operations[0], model)).clone().requires_grad_()
        values = {operations[0].all_input_nodes[0]: points.clone()}  # some activations write in place
        for operation in operations:
            values[operation] = _evaluate(operation, values, model, twin)
        result = values[operations[-1]]
        (slope,) = torch.autograd.grad(result.sum(), points)
    columns = (result.detach(), result.detach().square(), slope.square(), slope.square() * z.square()[:, None])
    return ActivationMoments(*(float((weights @ column).mean()) for column in columns))


def _channels(operation: fx.Node, model: nn.Module) -> int:
    """The number of channels to evaluate: 1, unless the activation has a weight per channel."""
    module = model.get_submodule(str(operation.target)) if operation.op == "call_module" else None
    tensors = (
        list(module.parameters())
        if module is not None
        else [
            attribute for attribute in (_constant(n, model) for n in operation.all_input_nodes) if attribute is not None
        ]
    )
    return max((tensor.numel() for tensor in tensors), default=1)


def _evaluate(operation: fx.Node, values: dict[fx.Node, torch.Tensor], model: nn.Module, twin: Twin) -> torch.Tensor:
    def value_of(node: fx.Node) -> Any:
        if node in values:
            return values[node].clone()
        constant = _constant(node, model)
        return node if constant is None else twin(constant)

    args = fx.map_arg(operation.args, value_of)
    kwargs = fx.map_arg(operation.kwargs, value_of)
    if operation.op == "call_module":
        module = skeleton(model.get_submodule(str(operation.target)), twin).eval()
        result: torch.Tensor = module(*args, **kwargs)
    else:
        result = operation.target(*args, **kwargs)  # type: ignore[operator]
    return result


def _constant(node: fx.Node, model: nn.Module) -> torch.Tensor | None:
    return operator.attrgetter(str(node.target))(model) if node.op == "get_attr" else None


def _with_values(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.device.type == "meta":
        return _initial(tensor)
    found = tensor.detach().to("cpu", torch.float64)
    return nn.Parameter(found) if isinstance(tensor, nn.Parameter) else found


def _initial(tensor: torch.Tensor) -> torch.Tensor:
    found = torch.full(tensor.shape, INITIAL_SLOPE, dtype=torch.float64, device="cpu")
    return nn.Parameter(found) if isinstance(tensor, nn.Parameter) else found

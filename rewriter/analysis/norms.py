"""Norms, however they are written: which operation applies the gamma, and which parameters it reads.

A norm is a module (``nn.BatchNorm2d``), a function that is passed its parameters (``F.layer_norm(x, shape, weight)``,
also as called inside a module), or arithmetic: ``weight * (x / sqrt(mean(x ** 2) + eps))``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from rewriter.analysis.arguments import argument
from rewriter.analysis.weights import PASS_THROUGH, constants_behind, has_weight
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name


@dataclass(frozen=True, eq=False)
class Norm:
    """One application of a norm.

    Attributes:
        node: the operation that applies gamma.
        gammas: names of the parameters that scale the normalised value; empty if there is none.
        betas: names of the parameters that shift it.
        normalised: for a norm written as arithmetic, what it normalises.
    """

    node: fx.Node
    gammas: tuple[str, ...]
    betas: tuple[str, ...]
    normalised: fx.Node | None = None


@once
def find_norms(flow: Dataflow, model: nn.Module) -> list[Norm]:
    """Every application of a norm in the recording, in execution order."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = []
    for node in flow.output.graph.nodes:
        if facts(node)["kind"] is Kind.NORM:
            given = _of_module(node, model) if node.op == "call_module" else _of_function(node, flow, parameters)
            found.append(Norm(node, *given))
        elif facts(node)["kind"] is Kind.MULTIPLY and (gammas := _of_arithmetic(node, flow, parameters)):
            found.append(Norm(node, gammas, (), _read(_normalised(flow.sources(node)[0], flow), flow)))
    return found


def parameter_role(name: str) -> str:
    """The name that torch modules use for the parameter: ``weight`` for ``parametrizations.weight.original0``."""
    parts = name.split(".")
    return parts[parts.index("parametrizations") + 1] if "parametrizations" in parts else parts[-1]


def _of_module(node: fx.Node, model: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    names = [
        f"{node.target}.{name}".lstrip(".") for name, _ in model.get_submodule(str(node.target)).named_parameters()
    ]
    return (
        tuple(name for name in names if parameter_role(name).startswith("weight")),
        tuple(name for name in names if not parameter_role(name).startswith("weight")),
    )


_PLACES = {
    "batch_norm": (3, 4),
    "instance_norm": (3, 4),
    "layer_norm": (2, 3),
    "group_norm": (2, 3),
    "rms_norm": (2, None),
}
"""The positions of gamma and beta in torch's functions."""


def _of_function(
    node: fx.Node, flow: Dataflow, parameters: dict[str, nn.Parameter]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    places = _PLACES.get(function_name(node.target), (None, None))  # type: ignore[arg-type]
    names = []
    for place, keyword in zip(places, ("weight", "bias"), strict=True):
        given = argument(node, keyword, place)
        found = constants_behind(given, flow) if isinstance(given, fx.Node) else ()
        names.append(tuple(str(constant.target) for constant in found if constant.target in parameters))
    return names[0], names[1]


def _of_arithmetic(node: fx.Node, flow: Dataflow, parameters: dict[str, nn.Parameter]) -> tuple[str, ...]:
    """The parameters by which ``node`` multiplies a normalised value; empty if it does something else."""
    sources = flow.sources(node)
    if len(sources) != 1 or _normalised(sources[0], flow) is None:
        return ()
    factors = [operand for operand in node.all_input_nodes if operand not in flow]
    constants = [constant for factor in factors for constant in constants_behind(factor, flow)]
    return tuple(
        str(constant.target)
        for constant in constants
        if constant.target in parameters and parameters[str(constant.target)].numel() > 1
    )


_REDUCTIONS = frozenset({"mean", "var", "std", "sum", "norm", "vector_norm", "linalg_vector_norm", "var_mean"})
_ROOTS = frozenset({"sqrt", "rsqrt", "std", "norm", "vector_norm", "linalg_vector_norm", "pow"})


def _normalised(node: fx.Node, flow: Dataflow) -> fx.Node | None:
    """The ``x`` that ``node`` divides by the root of a statistic of ``x``; None if it does something else."""
    while len(flow.sources(node)) == 1 and (facts(node)["kind"] in PASS_THROUGH or _is_scaled_by_a_number(node)):
        node = flow.sources(node)[0]
    if node.op != "call_function":
        return None
    sources = flow.sources(node)
    if node.target is torch.nn.functional.normalize:
        return sources[0]
    if facts(node)["kind"] is not Kind.MULTIPLY or len(sources) != 2:
        return None
    for x, statistic in (sources, sources[::-1]):
        origin = x if flow.is_ancestor(x, statistic) else flow.fork(node)
        if x is statistic or origin is None or not flow.is_ancestor(origin, statistic):
            continue
        way = flow.region(origin, statistic)
        names = {function_name(step.target) for step in way if callable(step.target)}
        if names & _REDUCTIONS and names & _ROOTS and not any(has_weight(step, flow) for step in way):
            return origin if _degree(node, origin, flow) == 0 else None
    return None


def _is_scaled_by_a_number(node: fx.Node) -> bool:
    return facts(node)["kind"] is Kind.MULTIPLY and len(node.all_input_nodes) == 1


def _read(normalised: fx.Node | None, flow: Dataflow) -> fx.Node | None:
    """The input of a norm written as arithmetic: ``x`` in ``x - mean(x)``."""
    if normalised is None or function_name(normalised.target) not in ("sub", "isub"):  # type: ignore[arg-type]
        return normalised
    fork = flow.fork(normalised)
    return fork if fork in flow.sources(normalised) else normalised


def _degree(end: fx.Node, origin: fx.Node, flow: Dataflow) -> float | None:
    """The exponent with which ``end`` scales with ``origin``; None if it is not known to be a power.

    It is 0 for a normalised value, but 1 for ``x * (norm(x) / mean(norm(x)))``, a response of ``x``.
    """
    degrees: dict[fx.Node, Any] = {origin: 1.0}
    for node in flow.in_order(flow.region(origin, end)):
        degrees[node] = _degree_of_operation(node, degrees)
    found = degrees[end]
    return found if isinstance(found, float) else None


def _degree_of_operation(node: fx.Node, degrees: Mapping[fx.Node, Any]) -> Any:
    """The degree of the result of ``node``, a tuple if that is one; constant terms and bounds are ignored."""
    name = function_name(node.target) if node.op == "call_function" else ""  # type: ignore[arg-type]
    given = [degrees.get(operand) if isinstance(operand, fx.Node) else None for operand in node.args]
    read = [degrees[operand] for operand in node.all_input_nodes if operand in degrees]
    first, *others = read
    if name == "getitem" and isinstance(first, tuple):
        return first[node.args[1]] if isinstance(node.args[1], int) else None
    if any(not isinstance(degree, float) for degree in read):
        return None
    if facts(node)["kind"] is Kind.MULTIPLY and len(given) == 2:
        one, other = (degree or 0.0 for degree in given)
        return one - other if "div" in name else one + other
    if name in ("rdiv", "rtruediv"):
        return -first
    if name == "pow":
        exponent = argument(node, "exponent", 1)
        return first * exponent if isinstance(exponent, int | float) and given[:1] == [first] else None
    if name in _POWERS:
        power = _POWERS[name]
        return tuple(first * each for each in power) if isinstance(power, tuple) else first * power
    linear = facts(node)["kind"] in PASS_THROUGH or name in _LINEAR
    return first if linear and all(degree == first for degree in others) else None


_POWERS: dict[str, Any] = {
    "square": 2.0,
    "var": 2.0,
    "sqrt": 0.5,
    "rsqrt": -0.5,
    "reciprocal": -1.0,
    "var_mean": (2.0, 1.0),
    "std_mean": (1.0, 1.0),
}
_LINEAR = _REDUCTIONS - {"var", "var_mean"} | {
    *("add", "iadd", "radd", "sub", "isub", "rsub", "abs", "clamp", "clamp_min", "maximum"),
}

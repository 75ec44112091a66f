"""The role of each parameter in the model: a weight that multiplies features, or something else.

The operations that read it decide, never its name: a ``pos_embed`` is something added to features, a class token
something concatenated with them. If uses differ (an embedding that is also the weight of the output layer), it counts
as a weight only if every operation that reads it uses it as one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator

from torch import fx, nn

from rewriter.analysis.arguments import argument
from rewriter.analysis.gammas import canonical_names
from rewriter.analysis.norms import find_norms, parameter_role
from rewriter.renamed import forward_names
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name, module_kind
from rewriter.tracing.trace import Trace


class ParameterRole(enum.StrEnum):
    """The roles, in order of precedence."""

    GAMMA = "gamma of a norm"
    BETA = "beta of a norm"
    EMBEDDING = "embedding"
    TOKEN = "token, or the input of a layer"
    ADDED = "bias, or an embedding of positions"
    SCALE = "scale of features or logits"
    OTHER = "read by another operation"
    UNSEEN = "not seen to be read"
    WEIGHT = "weight"


def find_roles(trace: Trace) -> dict[str, ParameterRole]:
    """The role of every parameter of the model, by its (first) name, in the model's order."""
    names = canonical_names(trace.model)
    roles: dict[str, set[ParameterRole]] = {name: set() for name, _ in trace.model.named_parameters()}
    for recording in (trace.train, trace.eval):
        for name, role, _ in _uses(recording.dataflow, trace.model):
            roles[names[name]].add(role)
    for name, role in _by_module(trace.model):
        roles[names[name]] = roles[names[name]] or {role}
    order = list(ParameterRole)
    return {name: min(found, key=order.index, default=ParameterRole.UNSEEN) for name, found in roles.items()}


def find_unknown_readers(trace: Trace) -> dict[str, str]:
    """For parameters of two or more axes, an unknown operation that reads them: they may be weights."""
    names = canonical_names(trace.model)
    sizes = {name: parameter.dim() for name, parameter in trace.model.named_parameters()}
    return {
        names[name]: function_name(reader.target)  # type: ignore[arg-type]
        for recording in (trace.eval, trace.train)
        for name, role, reader in _uses(recording.dataflow, trace.model)
        if role is ParameterRole.OTHER and sizes[names[name]] > 1
    }


@once
def _uses(flow: Dataflow, model: nn.Module) -> list[tuple[str, ParameterRole, fx.Node]]:
    """Parameter names, with the role that each has in an operation, and that operation."""
    return list(_each_use(flow, model))


def _each_use(flow: Dataflow, model: nn.Module) -> Iterator[tuple[str, ParameterRole, fx.Node]]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    of_norms: set[str] = set()
    for norm in find_norms(flow, model):
        yield from ((name, ParameterRole.GAMMA, norm.node) for name in norm.gammas)
        yield from ((name, ParameterRole.BETA, norm.node) for name in norm.betas)
        of_norms |= {*norm.gammas, *norm.betas}
    called = set()
    for node in flow.output.graph.nodes:
        if node.op == "get_attr" and node.target in parameters and node.target not in of_norms:
            yield from ((node.target, *use) for use in _readers(node, flow))
        elif node.op == "call_module" and node.target not in called:
            called.add(node.target)
            module = model.get_submodule(node.target)
            yield from ((*use, node) for use in _of_leaf(str(node.target), module, facts(node)["kind"]))


def _by_module(model: nn.Module) -> Iterator[tuple[str, ParameterRole]]:
    """Roles according to the holding module, for parameters that no recorded operation reads."""
    for path, module in model.named_modules():
        kind = module_kind(module)
        if kind is not None:
            yield from _of_leaf(path, module, kind)


def _of_leaf(path: str, module: nn.Module, kind: Kind) -> Iterator[tuple[str, ParameterRole]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        called = parameter_role(name)
        if kind is Kind.NORM:
            role = ParameterRole.GAMMA if called.startswith("weight") else ParameterRole.BETA
        elif kind is Kind.EMBEDDING:
            role = ParameterRole.EMBEDDING
        elif kind is Kind.ACTIVATION:
            role = ParameterRole.SCALE
        elif "bias" in called or parameter.dim() < 2:
            role = ParameterRole.ADDED
        elif "weight" in called or sum(size > 1 for size in parameter.shape) > 1:
            role = ParameterRole.WEIGHT
        else:
            role = ParameterRole.SCALE  # the gain of a standardised convolution
        yield f"{path}.{name}".lstrip("."), role


def _readers(constant: fx.Node, flow: Dataflow) -> Iterator[tuple[ParameterRole, fx.Node]]:
    """Each operation that reads ``constant``, also through operations on constants, and its role there."""
    pending: list[fx.Node] = [constant]
    seen: set[fx.Node] = set()
    while pending:
        operand = pending.pop()
        if operand in seen:
            continue
        seen.add(operand)
        for reader in operand.users:
            role = _role_in(reader, operand, flow)
            if role is None:
                pending.append(reader)
            else:
                yield role, reader


def _role_in(reader: fx.Node, operand: fx.Node, flow: Dataflow) -> ParameterRole | None:
    """The role of ``operand`` in ``reader``; None if it is only transformed, so that the result's role decides."""
    kind = facts(reader)["kind"]
    if reader.op == "output" or reader.op == "call_module":
        return ParameterRole.TOKEN
    name = function_name(reader.target)  # type: ignore[arg-type]
    if kind is Kind.EMBEDDING:
        return ParameterRole.EMBEDDING
    if name == "scaled_dot_product_attention":
        return ParameterRole.TOKEN if operand in reader.args[:3] else ParameterRole.ADDED
    if name in ("addmm", "baddbmm", "addbmm", "addmv") and reader.args and reader.args[0] is operand:
        return ParameterRole.ADDED
    if kind is Kind.RECURRENT:
        if operand in _nodes(reader.args[:2]):
            return ParameterRole.TOKEN  # the initial hidden state
        return ParameterRole.WEIGHT if len(facts(operand)["shape"] or ()) > 1 else ParameterRole.ADDED
    if kind in (Kind.CONV, Kind.LINEAR, Kind.ATTENTION) and name != "addmm":
        weight = _WEIGHT.get(name, 1)
        if operand in reader.args[:weight]:
            return ParameterRole.TOKEN
        is_bias = reader.kwargs.get("bias") is operand or operand in reader.args[weight + 1 :]
        return (
            ParameterRole.ADDED
            if is_bias and operand is not argument(reader, "weight", weight)
            else ParameterRole.WEIGHT
        )
    if reader not in flow:
        return None
    if kind is Kind.SELECT and any(index in flow for index in _nodes(reader.args[1:])):
        return ParameterRole.EMBEDDING  # rows selected by the input
    return _BY_KIND.get(kind) or _BY_NAME.get(name, ParameterRole.OTHER)


_WEIGHT = {"bilinear": 2}
"""The position of the weight in torch's functions, if not second; the bias follows it."""

_BY_KIND = {
    Kind.LINEAR: ParameterRole.WEIGHT,
    Kind.MATMUL: ParameterRole.WEIGHT,
    Kind.ADD: ParameterRole.ADDED,
    Kind.CONCAT: ParameterRole.TOKEN,
    Kind.MULTIPLY: ParameterRole.SCALE,
    Kind.ACTIVATION: ParameterRole.SCALE,
}

_BY_NAME = {
    "sub": ParameterRole.ADDED,
    "rsub": ParameterRole.ADDED,
    "addcmul": ParameterRole.SCALE,
    "where": ParameterRole.TOKEN,
    "stack": ParameterRole.TOKEN,
}


def _nodes(values: Iterable[object]) -> Iterator[fx.Node]:
    for value in values:
        if isinstance(value, fx.Node):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _nodes(value)


__getattr__ = forward_names(__name__, {"Role": "ParameterRole"})

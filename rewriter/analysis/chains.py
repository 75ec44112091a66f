"""Chains of a weight, a group normalisation and an activation.

A *chain* is a convolution or linear layer whose output only a group normalisation over its channels reads, perhaps
after adding terms that are constant over space (a time embedding), and the activation that reads the norm.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from rewriter.analysis.activations import activation_after
from rewriter.analysis.arguments import argument
from rewriter.analysis.naming import name_of
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name


@dataclass(frozen=True, eq=False)
class Chain:
    """A weight, the group norm that is the only reader of its output, and the activation that follows.

    Attributes:
        weight: the convolution or linear layer; ``source`` is its input.
        n_in: number of inputs that one of its output channels reads at one position.
        activation: the operations that form the activation; empty if there is none.
    """

    weight: fx.Node
    source: fx.Node
    n_in: int
    activation: tuple[fx.Node, ...]


@dataclass(frozen=True, eq=False)
class GroupNormCall:
    """One call of a group normalisation.

    Attributes:
        norm: the operation.
        holder: path of the module whose ``num_groups`` it reads; None if the number is a literal in the code.
        place: equal for calls that can only be changed together, also across recordings of the model.
        num_groups: number of groups of the ``channels`` channels, which have ``positions`` positions each.
        chain: the chain that it belongs to, if any.
        why_not: in words, why it belongs to none.
    """

    norm: fx.Node
    holder: str | None
    place: Any
    num_groups: int
    channels: int
    positions: int
    chain: Chain | None
    why_not: str = ""


@once
def find_group_norms(flow: Dataflow, model: nn.Module) -> list[GroupNormCall]:
    """Every call of a group normalisation, in execution order."""
    found = []
    for node in flow.nodes(Kind.NORM):
        read = _holder_and_number(node, model)
        shape = facts(node)["shape"]
        if read is None or shape is None or len(shape) < 2:
            continue
        holder, number = read
        try:
            chain, why_not = _chain(flow, model, node), ""
        except _NoChain as reason:
            chain, why_not = None, str(reason)
        place: Any = holder
        if holder is None:
            frame = facts(node)["frames"][0] if facts(node)["frames"] else None
            place = (facts(node)["owner"].path, frame and frame.code, frame and frame.instruction)
        found.append(GroupNormCall(node, holder, place, number, shape[1], math.prod(shape[2:]), chain, why_not))
    return found


def _holder_and_number(node: fx.Node, model: nn.Module) -> tuple[str | None, int] | None:
    """The module that holds the number of groups, if one does, and the number; None if it is not a group norm."""
    if node.op == "call_module":
        number = getattr(model.get_submodule(str(node.target)), "num_groups", None)
        return (str(node.target), number) if type(number) is int else None
    if function_name(node.target) != "group_norm":  # type: ignore[arg-type]
        return None
    number = argument(node, "num_groups", 1)
    if not isinstance(number, int):
        return None
    path = facts(node)["owner"].path
    owner = model.get_submodule(path)
    return (path if isinstance(owner, nn.GroupNorm) and owner.num_groups == number else None), int(number)


_WEIGHTS = (Kind.CONV, Kind.LINEAR)


class _NoChain(Exception):
    """Why a norm does not belong to a chain."""


def _chain(flow: Dataflow, model: nn.Module, norm: fx.Node) -> Chain:
    node, reader = flow.sources(norm)[0], norm
    while True:
        kind = facts(node)["kind"]
        carried = None if kind in _WEIGHTS else _carried(flow, node)
        if kind not in _WEIGHTS and carried is None:
            raise _NoChain(f"{_described(node)} comes directly before the norm, not a weight")
        if flow.users(node) != [reader]:
            raise _NoChain(f"the output of {name_of(node)} is not read by the norm alone")
        if carried is None:
            break
        node, reader = carried, node
    shape, channels = facts(node)["shape"], facts(norm)["shape"][1]
    n_in, n_out = _features(node, model)
    over_channels = shape == facts(norm)["shape"] and (kind is Kind.CONV or len(shape) == 2)
    if not over_channels or n_out != channels or len(flow.sources(node)) != 1:
        raise _NoChain(f"the {channels} channels of the norm are not known to be the outputs of {name_of(node)}")
    return Chain(node, flow.sources(node)[0], n_in, activation_after(flow, _modulated(flow, norm)))


def _carried(flow: Dataflow, node: fx.Node) -> fx.Node | None:
    """The map that ``node`` passes on, changed at most by a term constant over space; None if it does more."""
    sources = flow.sources(node)
    if facts(node)["kind"] is Kind.IDENTITY and len(sources) == 1:
        return sources[0]
    if facts(node)["kind"] is not Kind.ADD:
        return None
    maps = [source for source in node.all_input_nodes if not _constant_over_space(source, node)]
    return maps[0] if len(maps) == 1 and maps[0] in sources else None


def _modulated(flow: Dataflow, norm: fx.Node) -> fx.Node:
    """The norm, or the last of the operations that act on it alone as a gamma, beta or dropout."""
    node = norm
    while len(users := flow.users(node)) == 1:
        user = users[0]
        kind, others = facts(user)["kind"], [n for n in user.all_input_nodes if n is not node]
        modulates = kind in (Kind.MULTIPLY, Kind.ADD) and all(_constant_over_space(n, user) for n in others)
        if not (modulates or kind in (Kind.IDENTITY, Kind.DROPOUT)) or facts(user)["shape"] != facts(node)["shape"]:
            break
        node = user
    return node


def _constant_over_space(operand: fx.Node, result: fx.Node) -> bool:
    """Whether ``operand`` has one value per sample and channel, while ``result`` is a map."""
    small, full = facts(operand)["shape"], facts(result)["shape"]
    if small is None or full is None or len(full) < 3:
        return False
    aligned = (1,) * (len(full) - len(small)) + tuple(small)
    return all(size == 1 for size in aligned[2:]) and any(size > 1 for size in full[2:])


def _features(weight: fx.Node, model: nn.Module) -> tuple[int, int]:
    """Fan-in and number of outputs of a layer; zeros if unknown."""
    if weight.op == "call_module":
        module = model.get_submodule(str(weight.target))
        if isinstance(module, nn.Linear):
            return module.in_features, module.out_features
        return (module.in_channels // module.groups, module.out_channels) if isinstance(module, _ConvNd) else (0, 0)
    name, tensor = function_name(weight.target), argument(weight, "weight", 1)  # type: ignore[arg-type]
    shape = facts(tensor)["shape"] if isinstance(tensor, fx.Node) else None
    if not shape or not name.startswith(("conv", "linear")):
        return 0, 0
    if "transpose" not in name:
        return int(shape[1]), int(shape[0])
    groups = argument(weight, "groups", 6) or 1
    return int(shape[0]) // groups, int(shape[1]) * groups


_DESCRIBED = {
    Kind.ADD: "a sum",
    Kind.CONCAT: "a concatenation",
    Kind.INPUT: "the input",
    Kind.ACTIVATION: "an activation",
}


def _described(node: fx.Node) -> str:
    name = function_name(node.target) if callable(node.target) else node.target
    return _DESCRIBED.get(facts(node)["kind"], f"an operation ({name})")

"""What reads a map that an embedding has joined: norms that take it out again, or a weight or activation before that.

Sums, poolings, dropouts and scales leave a constant over space constant, so they are looked through; after a
concatenation the first convolution only gives each channel its constant, so one is looked through too::

    x + embedding ─ [sum, pooling, scale] ─ norm                     taken out
    cat(x, plane) ─ convolution ─ [sum, pooling, scale] ─ norm       taken out, but for the border of a padded map
    x + embedding ─ convolution, or activation                       kept
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from rewriter.analysis.arguments import argument
from rewriter.analysis.chains import GroupNormCall, find_group_norms
from rewriter.passes.timestep_embedding.embeddings import Joining, find_joinings
from rewriter.passes.timestep_embedding.numbers import made_of_numbers
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name
from rewriter.tracing.trace import Recording, Trace


@dataclass(frozen=True, eq=False)
class Taker:
    """A norm that takes out what is constant over space.

    Attributes:
        norm: the operation.
        group: for a group norm, how it is called; None for a batch or instance norm.
        by_batch: whether it normalises over the batch too: a batch norm.
        factor: what the joined map was multiplied by before it; None if that is no known number.
        convolution: for a concatenation, the convolution before it.
    """

    norm: fx.Node
    group: GroupNormCall | None
    by_batch: bool
    factor: float | None
    convolution: fx.Node | None

    @property
    def identity(self) -> Hashable:
        """Equal for calls of one norm, which can only be changed together."""
        return self.norm if self.group is None else self.group.place

    @property
    def described(self) -> str:
        if self.group is None:
            return "batch norm" if self.by_batch else "instance norm"
        return "group norm"


@dataclass(frozen=True, eq=False)
class Read:
    """What reads a map that an embedding has joined.

    Attributes:
        joining: the place.
        takers: the norms that take the embedding out.
        keepers: what reads it before any of those: weights, activations, the output.
    """

    joining: Joining
    takers: tuple[Taker, ...]
    keepers: tuple[fx.Node, ...]


def find_reads(trace: Trace, recording: Recording) -> list[Read]:
    """The readers of every map that an embedding joins in a recording of ``trace``, in execution order."""
    flow = recording.dataflow
    joinings = find_joinings(flow, made_of_numbers(trace, recording))
    return [_read(flow, trace.model, joining) for joining in joinings]


def key(node: fx.Node) -> Hashable:
    """Equal for the same operation of the code in two recordings."""
    if node.op == "call_module":
        return str(node.target)
    frame = facts(node)["frames"][0] if facts(node)["frames"] else None
    return facts(node)["owner"].path, frame and frame.code, frame and frame.instruction


def _read(flow: Dataflow, model: nn.Module, joining: Joining) -> Read:
    groups = {call.norm: call for call in find_group_norms(flow, model)}
    takers: list[Taker] = []
    keepers: list[fx.Node] = []
    pending: list[tuple[fx.Node, float | None, fx.Node | None]] = [(joining.node, 1.0, None)]
    seen = {joining.node}
    while pending:
        node, factor, convolution = pending.pop()
        for user in flow.users(node):
            if user in seen:
                continue
            seen.add(user)
            if facts(user)["kind"] is Kind.NORM and (normalised := _normalises(user, model, groups)) is not None:
                one_group = user in groups and groups[user].num_groups == 1
                if normalised and joining.in_space and not (one_group and joining.differs_between_channels):
                    takers.append(Taker(user, groups.get(user), normalised == "batch", factor, convolution))
                else:
                    keepers.append(user)
            elif joining.concatenates and convolution is None and facts(user)["kind"] is Kind.CONV:
                pending.append((user, factor, user))
            elif (by := _factor(user, node, flow)) is not None:
                known = factor is not None and by > 0
                pending.append((user, factor * by if known and factor is not None else None, convolution))
            else:
                keepers.append(user)
    takers.sort(key=lambda taker: flow.position(taker.norm))
    return Read(joining, tuple(takers), tuple(flow.in_order(keepers)))


def _normalises(node: fx.Node, model: nn.Module, groups: dict[fx.Node, GroupNormCall]) -> str | None:
    """``"batch"`` or ``"space"`` for a norm that takes out constants over space, ``""`` for others; None for none.

    A batch norm that is frozen normalises nothing: it only scales and shifts.
    """
    if node in groups:
        return "space"
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if isinstance(module, _InstanceNorm):
            return "space"
        if isinstance(module, _BatchNorm):
            return "batch"
        return None if {"running_mean", "running_var"} <= module._buffers.keys() else ""
    name = function_name(node.target)  # type: ignore[arg-type]
    if name == "batch_norm":
        return "batch" if argument(node, "training", 5, False) else None
    if name == "instance_norm":
        return "space" if argument(node, "use_input_stats", 5, True) else None
    return ""


def _factor(user: fx.Node, node: fx.Node, flow: Dataflow) -> float | None:
    """By what ``user`` multiplies ``node``, if a constant over space stays one; 0 for no known number; None if not."""
    kind = facts(user)["kind"]
    name = function_name(user.target) if callable(user.target) else ""
    before, after = facts(node)["shape"], facts(user)["shape"]
    if kind in _KEEP_CONSTANTS or name in ("sub", "isub"):
        return 1.0
    if kind is Kind.VIEW:
        return 1.0 if len(after) > 2 and len(before) > 2 and before[1] == after[1] else None
    if kind in (Kind.CONCAT, Kind.NORM):  # other channels come along; a norm that is frozen
        return 0.0
    if kind is not Kind.MULTIPLY or flow.sources(user) != [node]:
        return None
    numbers = [value for value in user.args[1:] if isinstance(value, (int, float))]
    if len(user.all_input_nodes) > 1 or len(numbers) != 1 or not numbers[0]:
        return 0.0
    return abs(1 / numbers[0] if "div" in name else float(numbers[0]))


_KEEP_CONSTANTS = frozenset({Kind.ADD, Kind.IDENTITY, Kind.DROPOUT, Kind.AVG_POOL, Kind.MAX_POOL, Kind.INTERPOLATE})

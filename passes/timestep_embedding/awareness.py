"""Time-awareness: the relative change of a block's output between two timesteps, at the same map.

The output of the block is that of the norm and of the activation behind it. The model runs at two timesteps, which the
whole batch shares. In the second run the embedding of the first is put beside that of the second at each map, so that
only what joins the map differs::

    time-awareness = |f(norm(map + e1)) - f(norm(map + e2))| / |f(norm(map + e1))|
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from rewriter.analysis.activations import activation_after
from rewriter.errors import TraceError
from rewriter.passes.timestep_embedding.layers import PositionalSum
from rewriter.passes.timestep_embedding.readers import Read, Taker, find_reads, key
from rewriter.passes.timestep_embedding.timesteps import two_timesteps
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name
from rewriter.tracing.trace import Trace
from rewriter.tracing.values import has_values, run_on_values


@dataclass(frozen=True)
class Awareness:
    """The time-awareness of one block.

    Attributes:
        now: as it is.
        placed: with the embedding varying over space.
        by_groups: of a group norm, for each number of groups up to the present one that divides the channels.
    """

    now: float
    placed: float
    by_groups: Mapping[int, float]


@dataclass(frozen=True)
class Measured:
    """What was measured: by the keys of a joining and a norm behind it; between which timesteps; and else why not."""

    blocks: Mapping[tuple[Hashable, Hashable], Awareness]
    between: str = ""
    why_not: str = ""


def measured(trace: Trace) -> Measured:
    """The time-awareness of every block in which a norm takes out an embedding, measured once in a planning.

    On the model's own weights, in evaluation mode; but the norm that is measured normalises by the batch, as in
    training.
    """
    if _CACHE not in trace.measured:
        trace.measured[_CACHE] = _measured(trace)
    found: Measured = trace.measured[_CACHE]
    return found


_CACHE = "timestep-embedding/awareness"
_KINDS = frozenset({Kind.ADD, Kind.CONCAT, Kind.CONV, Kind.NORM})


def _measured(trace: Trace) -> Measured:
    if not has_values(trace):
        return Measured({}, why_not="the model has no values")
    if not trace.may_measure:
        return Measured({}, why_not="the model cannot be run as it was traced")
    measuring = _Measuring(trace)
    inputs = dict.fromkeys(node for read in measuring.reads for node in read.joining.inputs)
    timesteps = two_timesteps(trace.inputs, [str(node.target) for node in inputs])
    try:
        run_on_values(trace, _KINDS, measuring.remember, timesteps.other)
        run_on_values(trace, _KINDS, measuring.compare, timesteps.one)
    except TraceError as error:
        return Measured({}, why_not=f"the model does not run at {timesteps.described}: {error}")
    return Measured(measuring.found, timesteps.described)


_Changes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""What is added to a map if the embedding is the other one; if it varies over space; if both."""


class _Measuring:
    """Watches two runs of a model."""

    def __init__(self, trace: Trace) -> None:
        self.reads = [read for read in find_reads(trace, trace.eval) if read.takers]
        self.found: dict[tuple[Hashable, Hashable], Awareness] = {}
        self._trace = trace
        self._other: dict[Read, torch.Tensor] = {}
        self._changes: dict[tuple[Read, fx.Node | None], _Changes] = {}
        self._at: dict[fx.Node, dict[Read, None]] = {}
        for read in self.reads:
            ways = [node for taker in read.takers for node in (taker.norm, taker.convolution) if node is not None]
            for node in (read.joining.node, *ways):
                self._at.setdefault(node, {})[read] = None

    def remember(self, node: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Watch the run at the other timestep."""
        for read in self._at.get(node, ()):
            if read.joining.node is node:
                self._other[read] = _embedding(read, args).clone()
        return function(*args, **kwargs)

    def compare(self, node: fx.Node, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Watch the run at the one timestep."""
        name = function_name(function)
        for read in self._at.get(node, ()):
            if read.joining.node is node:
                by = kwargs.get("alpha", 1) if args[0] is not _embedding(read, args) else 1
                one, two, three = _changes(read, args, self._other[read])
                self._changes[read, None] = by * one, by * two, by * three
            elif name.startswith("conv"):
                self._changes[read, node] = _through(self._changes[read, None], function, args, kwargs)
            elif name in _ARGUMENTS:
                given = dict(zip(_ARGUMENTS[name], args, strict=False)) | kwargs
                for taker in read.takers:
                    if taker.norm is node and taker.factor is not None:
                        self._compare(read, taker, name, given)
        return function(*args, **kwargs)

    def _compare(self, read: Read, taker: Taker, name: str, given: dict[str, Any]) -> None:
        y, factor = given["input"].float(), taker.factor or 1.0
        changed = [y + factor * change.float() for change in self._changes[read, taker.convolution]]
        if any(value.shape != y.shape for value in changed):  # it looked through a change of resolution
            return
        activation = _activation(self._trace, taker)

        def awareness(one: torch.Tensor, other: torch.Tensor, groups: int | None = None) -> float:
            outputs = [activation(_normalised(name, given, value, groups)) for value in (one, other)]
            return float((outputs[0] - outputs[1]).norm() / outputs[0].norm())

        other, placed, placed_other = changed
        numbers = range(1, taker.group.num_groups + 1) if taker.group is not None else ()
        by_groups = {groups: awareness(y, other, groups) for groups in numbers if y.shape[1] % groups == 0}
        found = Awareness(awareness(y, other), awareness(placed, placed_other), by_groups)
        where = key(read.joining.node), key(taker.norm)
        if where not in self.found or found.now < self.found[where].now:  # a block may be called several times
            self.found[where] = found


def _embedding(read: Read, args: Any) -> torch.Tensor:
    given, nodes = (args[0], read.joining.node.args[0]) if read.joining.concatenates else (args, read.joining.node.args)
    found: torch.Tensor = given[list(nodes).index(read.joining.embedding)]  # type: ignore[arg-type]
    return found


def _changes(read: Read, args: Any, other: torch.Tensor) -> _Changes:
    embedding = _embedding(read, args).clone()
    shape = facts(read.joining.node)["shape"]
    channels = embedding.shape[1] if read.joining.concatenates else shape[1]
    positions = PositionalSum(channels, len(shape) - 2).to(embedding.device, embedding.dtype)
    size = tuple(embedding.shape[2:]) if read.joining.concatenates else tuple(shape[2:])
    one, two = (positions.placed(value, size) for value in (embedding, other))
    found = other - embedding, one - embedding, two - embedding
    if not read.joining.concatenates:
        return found
    maps = [torch.zeros_like(given) for given in args[0]]
    index = list(read.joining.node.args[0]).index(read.joining.embedding)  # type: ignore[arg-type]
    first, second, third = (torch.cat([*maps[:index], change, *maps[index + 1 :]], 1) for change in found)
    return first, second, third


def _through(changes: _Changes, function: Callable[..., Any], args: Any, kwargs: Any) -> _Changes:
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    rest = {name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}
    first, second, third = (function(change, given["weight"], None, *args[3:], **rest) for change in changes)
    return first, second, third


_STATISTICS = ("input", "running_mean", "running_var", "weight", "bias", "by_input", "momentum", "eps")
_ARGUMENTS = {
    "batch_norm": _STATISTICS,
    "instance_norm": _STATISTICS,
    "group_norm": ("input", "num_groups", "weight", "bias", "eps"),
}


def _normalised(name: str, given: dict[str, Any], y: torch.Tensor, groups: int | None) -> torch.Tensor:
    """``y`` as the norm gives it, with other groups, and by the statistics of ``y``."""
    weight, bias = (None if given.get(part) is None else given[part].float() for part in ("weight", "bias"))
    eps = given.get("eps", 1e-5)
    if name == "group_norm":
        return F.group_norm(y, groups or given["num_groups"], weight, bias, eps)
    function = F.batch_norm if name == "batch_norm" else F.instance_norm
    return function(y, None, None, weight, bias, True, 0.0, eps)


def _activation(trace: Trace, taker: Taker) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation behind a norm, as a function of what the norm gives."""
    operations = activation_after(trace.eval.dataflow, taker.norm)
    if len(operations) != 1:
        return lambda value: value
    (activation,) = operations
    if activation.op == "call_module":
        module = trace.model.get_submodule(str(activation.target))
        return lambda value: module.forward(value.clone())
    function, others = activation.target, activation.args[1:]
    return lambda value: function(value.clone(), *others, **activation.kwargs)  # type: ignore[operator]

"""Which average poolings are sampled, which are not and why, and the edits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from rewriter.analysis.dropouts import drop_rate
from rewriter.analysis.heads import find_heads, missing_heads, noise_claim
from rewriter.analysis.layout import channel_dimension
from rewriter.analysis.naming import name_of, path_of
from rewriter.analysis.pooling import Pooling, PoolingRole, find_poolings
from rewriter.analysis.weights import PASS_THROUGH
from rewriter.authoring import Change, Place, Rate
from rewriter.edit.edits import AddBehaviour, Edit
from rewriter.edit.held_methods import follows_its_module
from rewriter.passes.stochastic_pooling.layers import SampledPositions, Sampling, StochasticFunction
from rewriter.passes.stochastic_pooling.sampling import kept_count
from rewriter.reasons import Reason, Refused
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, has_own_forward
from rewriter.tracing.trace import Trace

FEWEST_ELEMENTS = 4
"""A subset of fewer elements is hardly random."""

_WHY = {
    PoolingRole.HEAD: "everything on the way to the output is averaged here",
    PoolingRole.PYRAMID: "its output is spread over the map again and fused",
    PoolingRole.LOCAL: "it down-samples the main path",
    PoolingRole.SQUEEZE: "gates are taken too, as asked for",
}

_WHY_NOT = {
    PoolingRole.SQUEEZE: (Reason.SQUEEZE, "its output becomes a gate; squeeze=True takes it"),
    PoolingRole.SHORTCUT: (Reason.SHORTCUT, "it lies on the shortcut of a residual block"),
    PoolingRole.ANTI_ALIASING: (Reason.ANTI_ALIASING, "it makes the stride of what is before it"),
    PoolingRole.INSIDE_BRANCH: (Reason.INSIDE_BRANCH, "it lies inside a residual branch"),
    PoolingRole.OTHER: (Reason.OUTSIDE, "no output passes only through it, and it is no pyramid level"),
}


Subject = list[Pooling] | Refused
"""Calls of one pooling, or why a head has none that can be changed."""

_NAME = "stochastic_pooling"


def find_places(trace: Trace) -> Iterator[Place[Subject]]:
    """Yield every average pooling that runs in training, and why a head without one is left alone."""
    poolings = find_poolings(trace.train.dataflow, trace.model)
    if not any(pooling.role is PoolingRole.HEAD for pooling in poolings):
        missing = dict.fromkeys((reason, detail) for _, reason, detail in missing_heads(trace.train.dataflow))
        for reason, detail in missing:
            if not poolings or reason is not Reason.NO_GLOBAL_POOLING:
                yield Place(trace, "", PoolingRole.HEAD.value, Refused(reason, detail))
    for same in _by_place(poolings, trace.model):
        yield Place(trace, same[0].node, same[0].role.value, same)


def _by_place(poolings: list[Pooling], model: nn.Module) -> list[list[Pooling]]:
    """Group calls of one pooling module, or of one expression: they can only be changed together."""
    groups: dict[object, list[Pooling]] = {}
    for pooling in poolings:
        node = pooling.node
        written = path_of(node), *((frame.code, frame.instruction) for frame in facts(node)["frames"])
        key = model.get_submodule(str(node.target)) if node.op == "call_module" else written
        groups.setdefault(key, []).append(pooling)
    return list(groups.values())


def sample(place: Place[Subject], keep_prob: float, scale: str, squeeze: bool) -> Change:
    """Make the pooling at ``place`` average a random subset of its elements in training.

    Raises:
        Refused: it is outside the guideline's scope, or cannot be edited.
    """
    if isinstance(place.subject, Refused):
        raise place.subject
    return _Rule(place, place.subject, {"keep_prob": keep_prob, "scale": scale}, squeeze).change()


class _Rule:
    def __init__(self, place: Place[Subject], calls: list[Pooling], options: dict[str, Any], squeeze: bool) -> None:
        self.place, self.calls, self.options = place, calls, options
        self.model, self.flow = place.model, place.flow
        self.wanted = {PoolingRole.HEAD, PoolingRole.PYRAMID, PoolingRole.LOCAL} | (
            {PoolingRole.SQUEEZE} if squeeze else set()
        )
        heads = find_heads(self.flow, self.model)
        self.weights = {head.pool: head.weights for head in heads}
        self.dropouts = {
            head.pool: node
            for head in heads
            for node in (*head.before, *head.after)
            if facts(node)["kind"] is Kind.DROPOUT and drop_rate(node, self.model) > 0
        }

    def change(self) -> Change:
        """Return the edits and their description.

        Raises:
            Refused: there is nothing to change.
        """
        for pooling in self.calls:
            self._refuse(pooling)
        first = self.calls[0]
        for pooling in self.calls:
            if weights := self.weights.get(pooling.node):  # without one, its result is the model's output
                self.place.interference.refuse_other_readers([pooling.node], weights, "become random in training")
        changed = self._edit(first)[0]
        holder = changed.path if isinstance(changed, AddBehaviour) else f"{changed.path}.{changed.name}".lstrip(".")  # type: ignore[attr-defined]
        keep_prob = self.options["keep_prob"]
        kept = kept_count(first.elements, keep_prob)
        return Change(
            f"let {name_of(first.node)} average {kept} of {first.elements} elements in training",
            self._why(first),
            f"keep_prob {keep_prob:g} ({holder}.keep_prob)",
            noise_claim(first.node) if first.role is PoolingRole.HEAD else "",
            (Rate(holder, "keep_prob", keep_prob, off=1.0),),
            "RW0301",
        )

    def _refuse(self, pooling: Pooling) -> None:
        """Refuse what is outside the guideline's scope.

        Raises:
            Refused: naming this call of the pooling.
        """
        why_not = self._why_not(pooling)
        if why_not is not None and len(self.calls) > 1 and why_not == _WHY_NOT[PoolingRole.OTHER]:
            detail = f"no output passes only through one of its {len(self.calls)} calls, and it is no pyramid level"
            why_not = Reason.OUTSIDE, detail
        if why_not is not None:
            raise Refused(*why_not, path=path_of(pooling.node), pattern=pooling.role.value)

    def _why_not(self, pooling: Pooling) -> tuple[Reason, str] | None:
        module, node = self._sampling_before(pooling) or self._module(pooling.node), pooling.node
        if isinstance(module, Sampling):
            return (
                Reason.ALREADY_DONE,
                f"it is stochastic already; set its keep_prob ({module.keep_prob:g}) to change it",
            )
        wanted = pooling.role in self.wanted
        if not wanted and pooling.role not in (PoolingRole.INSIDE_BRANCH, PoolingRole.OTHER):
            return _WHY_NOT[pooling.role]
        if not pooling.side_by_side:
            return Reason.OVERLAPPING_WINDOWS, "its windows overlap or reach over the border"
        if not wanted:
            return _WHY_NOT[pooling.role]
        if pooling.in_steps:
            return Reason.IN_STEPS, "it averages over one dimension after the other; write it as one: x.mean((2, 3))"
        if pooling.elements < FEWEST_ELEMENTS:
            return Reason.FEW_ELEMENTS, f"an output averages {pooling.elements}, fewer than {FEWEST_ELEMENTS}"
        if node in self.dropouts:
            return (
                Reason.HEAD_DROPOUT,
                f"{name_of(self.dropouts[node])} is active here; one kind of noise at one pooling",
            )
        return None

    def _sampling_before(self, pooling: Pooling) -> nn.Module | None:
        """Return the layer that samples positions before a pooling in code that is not edited."""
        source = pooling.source
        while (
            facts(source)["kind"] in PASS_THROUGH and source.op != "call_module" and len(self.flow.sources(source)) == 1
        ):
            source = self.flow.sources(source)[0]
        module = self.model.get_submodule(str(source.target)) if source.op == "call_module" else None
        return module if isinstance(module, SampledPositions) else None

    def _why(self, pooling: Pooling) -> str:
        *_, source = self.flow.back_through(pooling.source, PASS_THROUGH | {Kind.DROPOUT})
        if (
            facts(source)["kind"] is not Kind.ACTIVATION
            or self.options["scale"] != "sqrt"
            or self.options["keep_prob"] == 1
        ):
            return _WHY[pooling.role]
        return (
            f"{_WHY[pooling.role]}; sqrt makes activations smaller in training than at test time, scale='none' does not"
        )

    def _edit(self, pooling: Pooling) -> list[Edit]:
        node, edit = pooling.node, self.place.edit
        if node.op == "call_function":
            function = str(getattr(node.target, "__name__", ""))
            try:
                return edit.redirect(node, StochasticFunction, name=_NAME, function=function, **self.options)
            except Refused as refused:
                if refused.reason is not Reason.HELPER_FUNCTION or pooling.role is not PoolingRole.HEAD:
                    raise

            def options(given: fx.Node) -> dict[str, Any] | None:
                dims = self._dims_of_positions(given, pooling)
                return None if dims is None else {"dims": dims, **self.options}

            return edit.insert_before_helper(node, pooling.source, SampledPositions, options, name=_NAME)
        path, module = str(node.target), self._module(node)
        if edit.calls_of(path) > len(self.calls):
            raise Refused(Reason.SHARED_MODULE, f"module {path!r} is called in places that are not to be sampled too")
        if taken := sorted(self.options.keys() & module.__dict__.keys()):
            raise Refused(
                Reason.NOT_MOVABLE, f"{type(module).__name__} has attributes of the same name: {', '.join(taken)}"
            )
        if has_own_forward(module) and not follows_its_module(module.__dict__.get("forward"), module):
            raise Refused(Reason.OWN_FORWARD, f"{type(module).__name__} has a forward of its own")
        kind = "adaptive" if hasattr(module, "output_size") else "local"
        return edit.behave(path, f"stochastic-pooling/{kind}", all_calls=True, **self.options)

    def _dims_of_positions(self, given: fx.Node, pooling: Pooling) -> list[int] | None:
        """Return the dimensions of ``given`` averaged over by a global pooling that reads it or a view of it."""
        shape, channels = facts(given)["shape"], channel_dimension(self.flow, given, self.model)
        dims = [dim for dim in range(1, len(shape)) if dim != channels]
        same = (
            math.prod(shape[dim] for dim in dims) == pooling.elements
            and shape[:1] == facts(pooling.source)["shape"][:1]
        )
        return dims if channels is not None and same else None

    def _module(self, node: fx.Node) -> nn.Module:
        """Return the pooling module; for a function, the module that calls it."""
        return self.model.get_submodule(path_of(node))

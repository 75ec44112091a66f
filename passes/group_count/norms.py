"""Which group norms are set, which are not and why, and the edits."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from torch import fx

from rewriter.analysis.activations import activation_before, activation_moments
from rewriter.analysis.chains import Chain, GroupNormCall, find_group_norms
from rewriter.analysis.naming import path_of
from rewriter.analysis.weights import PASS_THROUGH
from rewriter.edit.edits import AddModule, Edit, SetAttribute
from rewriter.edit.placement import placement
from rewriter.errors import SelectorError, TraceError
from rewriter.guideline.base import Site, Skipped
from rewriter.passes.group_count import gains
from rewriter.passes.group_count.measuring import draws_of, expected_gains, measured_gains
from rewriter.passes.group_count.rules import Choosing, GroupChoice
from rewriter.reasons import Reason, Refused
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Trace
from rewriter.tracing.values import has_values

PATTERN = "weight → group norm"


@dataclass(frozen=True, eq=False)
class _Norm:
    """A group norm in a chain, and the edits that set its number of groups, which is not known yet."""

    call: GroupNormCall
    chains: tuple[Chain, ...]
    slope: float
    edits: tuple[Edit, ...]

    def edits_to(self, groups: int) -> tuple[Edit, ...]:
        return tuple(_with_number(edit, groups) for edit in self.edits)


def find_in_norms(trace: Trace, name: str, choosing: Choosing) -> Iterator[Site | Skipped]:
    """A site or a reason for every group norm that runs in training."""
    places: dict[Hashable, list[GroupNormCall]] = {}
    for call in find_group_norms(trace.train.dataflow, trace.model):
        places.setdefault(call.place, []).append(call)
    considered = {place: _considered(trace, name, calls, choosing) for place, calls in places.items()}
    norms = {place: norm for place, norm in considered.items() if isinstance(norm, _Norm)}
    chosen = _Chosen(trace, name, choosing, norms)
    for place, norm in considered.items():
        yield norm if isinstance(norm, Skipped) else chosen.finding(place)


def _considered(trace: Trace, name: str, calls: list[GroupNormCall], choosing: Choosing) -> _Norm | Skipped:
    def skipped(reason: Reason, detail: str) -> Skipped:
        return Skipped(name, _path(calls[0]), PATTERN, reason, detail)

    chains = []
    for call in calls:
        if call.chain is None:
            return skipped(Reason.NO_WEIGHT_BEFORE, call.why_not)
        chains.append(call.chain)
    first = calls[0]
    if not choosing.band(first.channels):
        band = f"at least {choosing.min_groups} groups of at least {choosing.min_channels_per_group} channels"
        return skipped(Reason.OUTSIDE_BAND, f"{first.channels} channels cannot be divided into {band}")
    edits: list[Edit]
    if first.holder is not None:
        edits = [SetAttribute(first.holder, "num_groups", first.num_groups)]
    else:
        place = placement(trace.train.dataflow, trace)
        try:
            edits = place.redirect(first.norm, "group_norm", "group-count/function", num_groups=first.num_groups)
        except Refused as refused:
            return skipped(refused.reason, refused.detail)
    slope = activation_moments(chains[0].activation, trace.model, values=choosing.on_values).slope
    return _Norm(first, tuple(chains), slope, tuple(edits))


class _Chosen:
    """The gains of all norms in chains, and what is chosen by them."""

    def __init__(self, trace: Trace, name: str, choosing: Choosing, norms: dict[Hashable, _Norm]) -> None:
        self._trace, self._name, self._choosing, self._norms = trace, name, choosing, norms
        self._gains: dict[Hashable, dict[int, float]] = {}
        self._how, self._why_not = "", "nothing could be measured here"
        if not norms:
            return
        try:
            if choosing.on_values:
                self._measure()
            else:
                self._expect()
        except TraceError as error:
            values = "its own" if choosing.on_values else "drawn"
            self._why_not = f"the model does not run on {values} values as it was traced, {error}"

    def _expect(self) -> None:
        self._how = f"expected over {draws_of(self._trace)} draws of the weights"
        self._gains = expected_gains(self._trace)

    def _measure(self) -> None:
        given = self._trace.inputs.origin == "example_inputs"
        self._how = f"measured on {'the given' if given else 'Gaussian'} input"
        if not has_values(self._trace):
            self._why_not = "the model has no values"
        elif self._trace.may_measure:
            self._gains = measured_gains(self._trace, self._decide)

    def finding(self, place: Hashable) -> Site | Skipped:
        norm, known = self._norms[place], self._gains.get(place, {})
        choice, how = self._choice(norm, known)
        groups, now = self._number(choice), norm.call.num_groups
        band = self._what_the_band_did(choice, groups)
        path = _path(norm.call)
        pattern = f"{PATTERN} → activation" if norm.chains[0].activation else PATTERN
        if groups == now:
            detail = f"num_groups {now}, gradient gain {choice.gains[now]:.2f}{band}; {how}"
            return Skipped(self._name, path, pattern, Reason.ALREADY_DONE, detail)
        gain = f"gradient gain {choice.gains[now]:.2f} -> {choice.gains[groups]:.2f}"
        action = f"set num_groups {now} -> {groups}, {gain}{band}"
        return Site(self._name, path, pattern, action, f"{self._choosing.why}; {how}", norm.edits_to(groups))

    def _decide(self, place: Hashable, measured: dict[int, float]) -> int | None:
        norm = self._norms.get(place)
        return None if norm is None else self._number(self._choice(norm, measured)[0])

    def _choice(self, norm: _Norm, measured: dict[int, float]) -> tuple[GroupChoice, str]:
        """What the rule is given, and where its gains come from."""
        channels = norm.call.channels
        band, known, how = self._choosing.band(channels), measured, self._how
        if not any(0 < measured.get(groups, 0) < math.inf for groups in band):
            known, how = self._closed_form(norm), f"closed form: {self._why_not}"
        return GroupChoice(norm.chains[0].n_in, channels, norm.call.num_groups, norm.slope, known, band), how

    def _closed_form(self, norm: _Norm) -> dict[int, float]:
        flow, model = self._trace.train.dataflow, self._trace.model
        calls = []
        for chain in norm.chains:
            before = activation_before(flow, _values_of(flow, chain.source))
            source = activation_moments(before, model, values=self._choosing.on_values)
            after = activation_moments(chain.activation, model, values=self._choosing.on_values)
            calls.append(gains.closed_form(norm.call.channels, norm.call.positions, source, after))
        return gains.pooled(calls)

    def _number(self, choice: GroupChoice) -> int:
        try:
            groups = self._choosing.rule(choice)
        except Exception as error:
            raise SelectorError(f"{self._name}: the rule raised {type(error).__name__}: {error}") from error
        if groups not in choice.candidates:
            expected = ", ".join(map(str, choice.candidates))
            raise SelectorError(
                f"{self._name}: the rule returned {groups!r} groups for {choice.n_out} channels; expected one of the "
                f"candidates it was given: {expected}"
            )
        return int(groups)

    def _what_the_band_did(self, choice: GroupChoice, groups: int) -> str:
        distance = self._choosing.distance
        if distance is None:
            return ""
        free = self._choosing.rule(replace(choice, candidates=tuple(choice.gains)))
        nearer = distance(choice, free) + self._choosing.slack < distance(choice, groups)
        decided = nearer or (free == choice.num_groups and free != groups)
        return f", the band decided ({free} would have {choice.gains[free]:.2f})" if decided else ""


def _path(call: GroupNormCall) -> str:
    return call.holder if call.holder is not None else path_of(call.norm)


def _values_of(flow: Dataflow, node: fx.Node) -> fx.Node:
    """Where the values of ``node`` were computed."""
    while node.meta["kind"] in (*PASS_THROUGH, Kind.DROPOUT) and len(sources := flow.sources(node)) == 1:
        node = sources[0]
    return node


def _with_number(edit: Edit, groups: int) -> Edit:
    if isinstance(edit, SetAttribute):
        return replace(edit, value=groups)
    return replace(edit, options={"num_groups": groups}) if isinstance(edit, AddModule) else edit

"""Which group norms are changed, which are not and why, and the edits."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, replace

from torch import fx

from rewriter.analysis.activations import activation_before, activation_moments
from rewriter.analysis.chains import Chain, GroupNormCall, find_group_norms
from rewriter.analysis.naming import path_of
from rewriter.analysis.weights import PASS_THROUGH
from rewriter.authoring import Change, Place, Reason, Refused
from rewriter.edit.editor import Editor
from rewriter.errors import SelectorError, TraceError
from rewriter.passes.group_count import gains
from rewriter.passes.group_count.layers import GroupNormFunction
from rewriter.passes.group_count.measuring import draws_of, expected_gains, measured_gains
from rewriter.passes.group_count.rules import Choosing, GroupChoice
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.inputs import Origin
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Trace
from rewriter.tracing.values import has_values

PATTERN = "weight → group norm"


@dataclass(frozen=True, eq=False)
class _Norm:
    """A group norm in a chain whose number of groups can be set."""

    call: GroupNormCall
    chains: tuple[Chain, ...]
    slope: float


@dataclass(frozen=True, eq=False)
class Subject:
    """One group norm; its calls are decided together.

    Attributes:
        place: its identity.
        norm: the norm, or why it is not changed.
        chosen: what is chosen for all norms.
    """

    place: Hashable
    norm: _Norm | Refused
    chosen: _Chosen


def find_places(trace: Trace, choosing: Choosing) -> Iterator[Place[Subject]]:
    """Yield every group norm that runs in training."""
    calls: dict[Hashable, list[GroupNormCall]] = {}
    for call in find_group_norms(trace.train.dataflow, trace.model):
        calls.setdefault(call.place, []).append(call)
    considered = {place: _considered(trace, of_place, choosing) for place, of_place in calls.items()}
    norms = {place: norm for place, norm in considered.items() if isinstance(norm, _Norm)}
    chosen = _Chosen(trace, choosing, norms)
    for place, norm in considered.items():
        first = calls[place][0]
        activated = isinstance(norm, _Norm) and norm.chains[0].activation
        pattern = f"{PATTERN} → activation" if activated else PATTERN
        yield Place(trace, first.norm, pattern, Subject(place, norm, chosen), path=_path(first))


def set_groups(place: Place[Subject]) -> Change:
    """Set the chosen number of groups.

    Raises:
        Refused: it has that number already, is outside the guideline's scope, or cannot be edited.
    """
    norm = place.subject.norm
    if isinstance(norm, Refused):
        raise norm
    groups, change = place.subject.chosen.change(place.subject.place)
    _edit(place.edit, norm.call, groups)
    return change


def _edit(edit: Editor, call: GroupNormCall, groups: int) -> None:
    if call.holder is not None:
        edit.set(call.holder, "num_groups", groups, all_calls=True)
    else:
        edit.redirect(call.norm, GroupNormFunction, name="group_norm", num_groups=groups)


def _considered(trace: Trace, calls: list[GroupNormCall], choosing: Choosing) -> _Norm | Refused:
    chains = []
    for call in calls:
        if call.chain is None:
            return Refused(Reason.NO_WEIGHT_BEFORE, call.why_not)
        chains.append(call.chain)
    first = calls[0]
    if not choosing.band(first.channels):
        band = f"at least {choosing.min_groups} groups of at least {choosing.min_channels_per_group} channels"
        return Refused(Reason.OUTSIDE_BAND, f"{first.channels} channels cannot be divided into {band}")
    try:  # a norm that cannot be edited keeps its number, and later norms are measured with that
        _edit(Place(trace, first.norm, PATTERN).edit, first, first.num_groups)
    except Refused as refused:
        return refused
    slope = activation_moments(chains[0].activation, trace.model, values=choosing.on_values).slope
    return _Norm(first, tuple(chains), slope)


class _Chosen:
    """The gains of all norms in chains, and the numbers chosen from them."""

    def __init__(self, trace: Trace, choosing: Choosing, norms: dict[Hashable, _Norm]) -> None:
        self._trace, self._choosing, self._norms = trace, choosing, norms
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
        given = self._trace.inputs.origin is Origin.EXAMPLE_INPUTS
        self._how = f"measured on {'the given' if given else 'Gaussian'} input"
        if not has_values(self._trace):
            self._why_not = "the model has no values"
        elif self._trace.may_measure:
            self._gains = measured_gains(self._trace, self._decide)

    def change(self, place: Hashable) -> tuple[int, Change]:
        """Return the number for the norm at ``place``, and the change as reported.

        Raises:
            Refused: it has that number already.
        """
        norm, known = self._norms[place], self._gains.get(place, {})
        choice, how = self._choice(norm, known)
        groups, now = self._number(choice), norm.call.num_groups
        band = self._what_the_band_did(choice, groups)
        if groups == now:
            detail = f"num_groups {now}, gradient gain {choice.gains[now]:.2f}{band}; {how}"
            raise Refused(Reason.ALREADY_DONE, detail)
        gain = f"gradient gain {choice.gains[now]:.2f} -> {choice.gains[groups]:.2f}"
        action = f"set num_groups {now} -> {groups}, {gain}{band}"
        return groups, Change(action, f"{self._choosing.why}; {how}", code="RW0501")

    def _decide(self, place: Hashable, measured: dict[int, float]) -> int | None:
        norm = self._norms.get(place)
        return None if norm is None else self._number(self._choice(norm, measured)[0])

    def _choice(self, norm: _Norm, measured: dict[int, float]) -> tuple[GroupChoice, str]:
        """Return the input of the rule, and where its gains come from."""
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
            raise SelectorError(f"group-count: the rule raised {type(error).__name__}: {error}") from error
        if groups not in choice.candidates:
            expected = ", ".join(map(str, choice.candidates))
            raise SelectorError(
                f"group-count: the rule returned {groups!r} groups for {choice.n_out} channels; expected one of the "
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
    """Return the node that computed the values of ``node``."""
    while facts(node)["kind"] in (*PASS_THROUGH, Kind.DROPOUT) and len(sources := flow.sources(node)) == 1:
        node = sources[0]
    return node

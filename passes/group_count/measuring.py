"""The gradient gain of every chain: expected over draws of the weights, or measured on the actual weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import fx

from rewriter.analysis.activations import activation_moments
from rewriter.analysis.chains import Chain, GroupNormCall, find_group_norms
from rewriter.analysis.parameter_roles import find_roles
from rewriter.errors import TraceError
from rewriter.passes.group_count import gains
from rewriter.passes.group_count.draws import drawn_inputs, drawn_values, single_precision_on_cpu
from rewriter.passes.group_count.rules import divisors
from rewriter.tracing.kinds import Kind, function_name
from rewriter.tracing.trace import Trace
from rewriter.tracing.values import run_on_values, run_with

Decide = Callable[[Hashable, dict[int, float]], int | None]
"""Takes a place and the gains there; returns the number of groups to use, None to keep the present one."""

ROUNDS = 8
"""Maximum number of forward passes, if one norm is called on several maps that would choose differently."""

MOST_DRAWS, LEAST_DRAWS, NUMBERS = 8, 2, 200_000_000
"""How many draws of all weights an expectation averages over: fewer, the more numbers one draw contains."""

CHANNELS_PER_GROUP = 16
"""Channels per group of the norms before a chain while its gain is taken, whatever they have or will be given."""

_KINDS = frozenset({Kind.CONV, Kind.LINEAR, Kind.NORM})


def expected_gains(trace: Trace) -> dict[Hashable, dict[int, float]]:
    """Return the gradient gain by number of groups for every place with a chain, expected over draws of all weights.

    It depends only on the architecture and the shapes of the inputs, not on the values of the model or the inputs, nor
    on its numbers of groups. Recordings of one planning run share the results; one that cannot be run again
    has only those.

    Raises:
        TraceError: the model does not run on drawn values as it was recorded.
    """
    calls = [call for call in find_group_norms(trace.eval.dataflow, trace.model) if call.chain is not None]
    known = trace.measured.setdefault("group-count/expected-gains", {})
    if trace.may_measure and any(call.place not in known for call in calls):
        numbers = {call.place: _typical(call.channels) for call in calls}
        try:
            known.update(_over_draws(trace, numbers, one_sample=True))
        except TraceError:  # the batch size may be hard-coded
            known.update(_over_draws(trace, numbers, one_sample=False))
    return dict(known)


def draws_of(trace: Trace) -> int:
    """Return how many draws an expectation is taken over: it depends on the number of weights, not their values."""
    numbers = sum(parameter.numel() for parameter in trace.model.parameters())
    return max(LEAST_DRAWS, min(MOST_DRAWS, NUMBERS // max(1, numbers)))


def _over_draws(trace: Trace, numbers: dict[Hashable, int], *, one_sample: bool) -> dict[Hashable, dict[int, float]]:
    measuring, roles = _Measuring(trace, numbers, values=False), find_roles(trace)
    for seed in range(draws_of(trace)):
        generator = torch.Generator().manual_seed(seed)
        inputs = drawn_inputs(trace.inputs, generator, one_sample=one_sample)
        with single_precision_on_cpu():
            run_with(trace, _KINDS, measuring.watch, drawn_values(trace.model, roles, generator), inputs)
    return measuring.gains


def _typical(channels: int) -> int:
    return min(divisors(channels), key=lambda groups: abs(math.log(channels / groups / CHANNELS_PER_GROUP)))


def measured_gains(trace: Trace, decide: Decide) -> dict[Hashable, dict[int, float]]:
    """Return the gradient gain by number of groups for every place with a chain, on the model's own weights and inputs.

    One forward pass suffices: the moments of a norm's input serve for every number of groups, and the norm then runs
    with the number that ``decide`` chooses, so that later norms are measured after it as it will be. A norm called on
    several maps is decided on all of them; if the choice on the first differs from that on all, there is another pass.

    Raises:
        TraceError: the model does not run on its values as it was recorded.
    """
    decided: dict[Hashable, int | None] = {}
    for _ in range(ROUNDS):
        measuring = _Measuring(trace, decided, decide)
        run_on_values(trace, _KINDS, measuring.watch)
        found = measuring.gains
        decided = {place: decide(place, values) for place, values in found.items()}
        if all(used == {decided[place]} for place, used in measuring.used.items()):
            break
    return found


class _Measuring:
    """Gains observed during forward passes.

    Args:
        trace: what is run again.
        decided: the numbers of groups to run norms with, by place.
        decide: returns the number at any other place; by default the present one.
        values: whether weights of activations are the model's own.

    Attributes:
        used: the numbers of groups that the norm at a place ran with.
    """

    def __init__(
        self,
        trace: Trace,
        decided: Mapping[Hashable, int | None],
        decide: Decide = lambda place, values: None,
        *,
        values: bool = True,
    ) -> None:
        self.used: dict[Hashable, set[int | None]] = {}
        self._squares: dict[Hashable, list[dict[int, float]]] = {}
        self._decided, self._decide = decided, decide
        self._chains: dict[fx.Node, tuple[GroupNormCall, Chain]] = {}
        for call in find_group_norms(trace.eval.dataflow, trace.model):
            if call.chain is not None:
                self._chains[call.norm] = call, call.chain
        self._weights = {chain.weight for _, chain in self._chains.values()}
        self._energy: dict[fx.Node, torch.Tensor] = {}
        self._activations = {
            norm: activation_moments(chain.activation, trace.model, values=values)
            for norm, (_, chain) in self._chains.items()
        }

    @property
    def gains(self) -> dict[Hashable, dict[int, float]]:
        """Return the gain by number of groups over all calls at each place."""
        return {place: gains.pooled(calls) for place, calls in self._squares.items()}

    def watch(self, node: fx.Node, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = function_name(function)
        if node in self._chains and name == "group_norm":
            args, kwargs = self._norm(node, args, kwargs)
        elif node in self._weights and name.startswith(("conv", "linear")):
            self._energy[node] = _energy(function, args, kwargs)
        return function(*args, **kwargs)

    def _norm(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        call, chain = self._chains[node]
        if chain.weight not in self._energy:  # a custom layer
            return args, kwargs
        given = dict(zip(("input", "num_groups", "weight", "bias", "eps"), args, strict=False)) | kwargs
        energy, eps = self._energy.pop(chain.weight), given.get("eps", 1e-5)
        calls = self._squares.setdefault(call.place, [])
        calls.append(gains.measured(given["input"], energy, eps, self._activations[node]))
        if call.place in self._decided:
            number = self._decided[call.place]
        else:
            number = self._decide(call.place, gains.pooled(calls))
        self.used.setdefault(call.place, set()).add(number)
        return (), given if number is None else {**given, "num_groups": number}


def _energy(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """For each output channel, return the sum of squares of the weights that reach its input, averaged over positions.

    Computed by the layer itself, on ones and with its weights squared, so that stride, groups, transposition and
    padding are all taken into account.
    """
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    ones = torch.ones_like(given["input"][:1], dtype=torch.float32)
    rest = {name: value for name, value in kwargs.items() if name not in ("input", "weight", "bias")}
    energy: torch.Tensor = function(ones, given["weight"].float().square(), None, *args[3:], **rest)
    return energy.reshape(energy.shape[1], -1).mean(-1)

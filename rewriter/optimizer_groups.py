"""Parameter groups for an optimizer: which parameters decay, and why."""

from __future__ import annotations

import fnmatch
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from rewriter.analysis.gammas import Gamma, canonical_names, find_gammas
from rewriter.analysis.parameter_roles import Role, find_roles
from rewriter.errors import OptimizerError, SelectorError, listed
from rewriter.guard import check_model
from rewriter.manager import resolve_passes, suggest
from rewriter.record import records_of
from rewriter.remembered_inputs import inputs_to_run_on
from rewriter.tracing.trace import Trace, trace_candidates
from rewriter.wrappers import looked_through

_PASS = "weight-decay"


class GammaRule(Protocol):
    """What is asked of the pass that decides about gammas."""

    def decide(self, gamma: Gamma) -> tuple[bool, str]:
        """Whether ``gamma`` decays, and why."""


@dataclass(frozen=True)
class Decision:
    """Whether one parameter decays.

    Attributes:
        name: the parameter's name in the model.
        category: of a gamma its place (``branch_last``, …), of anything else its role.
        decays: whether it is in a group that decays.
        reason: why.
    """

    name: str
    category: str
    decays: bool
    reason: str


class ParamGroups(list[dict[str, Any]]):
    """Parameter groups: a list of dicts for any optimizer, that can say how it came about.

    Attributes:
        decisions: one for each trainable parameter of the model, gammas first.
    """

    decisions: tuple[Decision, ...] = ()

    @property
    def table(self) -> str:
        """Every gamma with its category, the decision and the reason; of everything else the numbers."""
        places = {str(role) for role in Role}
        gammas = [d for d in self.decisions if d.category not in places]
        rows = [("gamma", "category", "", "reason")]
        rows += [(d.name, d.category, "decay" if d.decays else "no decay", d.reason) for d in gammas]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows] if gammas else []
        others = Counter((d.decays, d.category, d.reason) for d in self.decisions if d.category in places)
        for (decays, role, reason), count in sorted(others.items(), key=lambda item: (-item[0][0], item[0])):
            lines.append(f"{count} x {role}: {'decay' if decays else 'no decay'}, {reason}")
        for group in self:
            decay = group.get("weight_decay", "the optimizer's")
            lines.append(f"group {group.get('name', '')!r}: {len(group['params'])} parameters, weight decay {decay}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.table)  # what a notebook shows


def param_groups(
    model: nn.Module,
    weight_decay: float | None = 5e-2,
    *,
    gamma: str | Mapping[str, bool] | None = None,
    example_inputs: Any = None,
    input_size: Any = None,
    no_weight_decay: str | Iterable[str] = (),
    within: Iterable[Mapping[str, Any]] | None = None,
) -> ParamGroups:
    """The trainable parameters of ``model`` in groups that decay and that do not, for any optimizer.

    Weights of convolutions, linear layers and attention decay. Gammas of norms do by their place in the dataflow
    (docs/passes/weight-decay.md). Biases, betas, embeddings, tokens and scales do not, nor does what
    ``no_weight_decay()`` of the model, or of a module in it, names. Each trainable parameter is in one group, a shared
    one once.

    Args:
        model: any model that :func:`rewriter.trace` can run, rewritten or not; it is not touched.
        weight_decay: of the groups that decay; None leaves it to the optimizer.
        gamma: ``"guideline"``, ``"exclude-all"``, ``"decay-all"``, or a dict of categories (``branch_last``,
            ``branch_other``, ``shortcut``, ``main``) to True or False. None is what the model was rewritten with, so
            that the groups are those of its report, or else the guideline.
        example_inputs, input_size: what to run the model on, as for :func:`rewriter.rewrite`; None takes the input
            size of the model's rewrite, or of its configuration.
        no_weight_decay: names of further parameters that do not decay, or patterns such as ``"*.bias_table"``.
        within: groups that exist already, say for a learning rate each layer. Their other settings are kept, and each
            is split in two. Parameters of other modules in them stay as they are.

    Returns:
        A list of dicts with ``params``, ``weight_decay`` and ``name``. Its ``table`` explains every gamma.

    Raises:
        OptimizerError: ``weight_decay`` or ``within`` is no such thing, or ``within`` lacks parameters of the model.
        SelectorError: an unknown policy or category, or a name in ``no_weight_decay`` that matches nothing.
        ModelError, InputError, TraceError: the model cannot be run.
    """
    _check_weight_decay(weight_decay)
    model = looked_through(model)
    check_model(model, may_be_wrapped=True)
    (rule,) = resolve_passes([{_PASS: {"gamma": _policy_of_rewrite(model) if gamma is None else gamma}}])
    traced = trace_candidates(model, inputs_to_run_on(model, example_inputs, input_size))
    excluded = _excluded(model, no_weight_decay)
    decisions = _decide(traced, rule, excluded)  # type: ignore[arg-type]
    decays = {name: decision.decays for name, decision in decisions.items()}
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if within is None:
        everything: dict[str, Any] = {"params": list(parameters.values())}
        given = [everything] if parameters else []
    else:
        given = _checked_groups(within, parameters)
    groups = ParamGroups(
        _split(given, model, {id(parameters[name]): decays[name] for name in parameters}, weight_decay)
    )
    groups.decisions = tuple(decisions.values())
    return groups


def _policy_of_rewrite(model: nn.Module) -> Any:
    """The option ``gamma`` of the last rewrite that asked for advice on it."""
    asked = [options for record in records_of(model) for name, options in record.plan.passes if name == _PASS]
    return asked[-1]["gamma"] if asked else "guideline"


def _decide(traced: Trace, rule: GammaRule, excluded: Mapping[str, str]) -> dict[str, Decision]:
    """For every trainable parameter, gammas first."""
    decisions: dict[str, Decision] = {}
    trainable = {name: parameter for name, parameter in traced.model.named_parameters() if parameter.requires_grad}
    for gamma in find_gammas(traced):
        if gamma.name in trainable:
            decays, reason = rule.decide(gamma)
            decisions[gamma.name] = Decision(gamma.name, str(gamma.category), decays, reason)
    for name, role in find_roles(traced).items():
        if name in trainable and name not in decisions:
            decays = role is Role.WEIGHT
            decisions[name] = Decision(name, str(role), decays, _REASONS.get(role, "it is no weight"))
    for name, reason in excluded.items():
        if name in decisions:
            decisions[name] = Decision(name, decisions[name].category, False, reason)
    return decisions


_REASONS = {Role.WEIGHT: "as usual", Role.UNSEEN: "what it does is not known"}


def _excluded(model: nn.Module, given: str | Iterable[str]) -> dict[str, str]:
    """Parameters that the user, the model or a module in it wants without decay, and who said so."""
    names = canonical_names(model)
    excluded: dict[str, str] = {}
    for path, module in model.named_modules():
        said = getattr(module, "no_weight_decay", None)
        if callable(said):
            source = f"{type(module).__name__}.no_weight_decay()"
            for pattern in _patterns(said() or (), source):
                for name in _matching(f"{path}.{pattern}".lstrip("."), names):
                    excluded[names[name]] = f"named by {source}"
    for pattern in _patterns(given, "no_weight_decay"):
        found = _matching(pattern, names)
        if not found:
            raise SelectorError(
                f"no_weight_decay: {pattern!r} matches no parameter of {type(model).__name__}; "
                f"{suggest(pattern, names)}"
            )
        excluded.update((names[name], "named in no_weight_decay=") for name in found)
    return excluded


def _patterns(given: Any, source: str) -> list[str]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        given = [given]
    patterns = list(given)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise SelectorError(f"{source}: expected names of parameters, or patterns, found {pattern!r}")
    return patterns


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]


def _check_weight_decay(value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (number and 0 <= value < math.inf):
        raise OptimizerError(f"weight_decay: expected a number of at least 0, or None, found {value!r}")


def _checked_groups(within: Any, parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """The groups with their parameters as lists; every trainable parameter of the model is in exactly one."""
    if isinstance(within, (torch.Tensor, Mapping)) or not isinstance(within, Iterable):
        raise OptimizerError(f"within: expected a list of parameter groups, found {type(within).__name__}")
    groups: list[dict[str, Any]] = []
    for group in within:
        if not isinstance(group, Mapping) or "params" not in group:
            raise OptimizerError(f"within: expected dicts with 'params', found {type(group).__name__}")
        params = group["params"]
        groups.append({**group, "params": [params] if isinstance(params, torch.Tensor) else list(params)})
    count = Counter(id(_tensor(entry)) for group in groups for entry in group["params"])
    lacking = [name for name, parameter in parameters.items() if not count[id(parameter)]]
    repeated = [name for name, parameter in parameters.items() if count[id(parameter)] > 1]
    for problem, names in (("none for", lacking), ("several for", repeated)):
        if names:
            raise OptimizerError(
                f"within: expected one group for every trainable parameter, found {problem} {len(names)} of "
                f"{len(parameters)}: {listed(names)}. Make the groups from this model."
            )
    return groups


def _split(
    given: Sequence[Mapping[str, Any]], model: nn.Module, decays: Mapping[int, bool], weight_decay: float | None
) -> list[dict[str, Any]]:
    """Each group in a part that decays and one that does not; parts with the same settings are joined."""
    of_model = {id(parameter) for parameter in model.parameters()}
    parts: list[_Part] = []
    for number, group in enumerate(given):
        ids = [id(_tensor(entry)) for entry in group["params"]]
        kept = [place for place, key in enumerate(ids) if key not in of_model]
        if kept:
            parts.append(_Part(_chosen(group, kept), None, number))
        for decaying in (True, False):
            chosen = _chosen(group, [place for place, key in enumerate(ids) if decays.get(key) is decaying])
            chosen.pop("weight_decay", None)
            if not decaying or weight_decay is not None:
                chosen["weight_decay"] = weight_decay if decaying else 0.0
            _join(parts, _Part(chosen, decaying, number))
    return _named([part for part in parts if part.group["params"]])


@dataclass
class _Part:
    """A part of the group with this number, and whether it decays; None for what is not of the model and stays."""

    group: dict[str, Any]
    decaying: bool | None
    number: int


def _chosen(group: Mapping[str, Any], places: Sequence[int]) -> dict[str, Any]:
    chosen = dict(group)
    for key in ("params", "param_names"):
        if key in group:
            chosen[key] = [group[key][place] for place in places]
    return chosen


def _join(parts: list[_Part], part: _Part) -> None:
    """Add ``part`` to one that differs in its parameters only, or append it."""
    for other in parts:
        if other.decaying is part.decaying and _settings(other.group) == _settings(part.group):
            for key in ("params", "param_names"):
                if key in part.group:
                    other.group[key] += part.group[key]
            return
    parts.append(part)


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: value for key, value in group.items() if key != "params"}
    if "param_names" in settings:
        settings["param_names"] = True
    return {key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in settings.items()}


def _named(parts: Sequence[_Part]) -> list[dict[str, Any]]:
    """Each group with a name of its own: ``decay``, ``no_decay``; behind the name or number of what was split."""
    names: Counter[str] = Counter()
    split = len(parts) > 2 or any("name" in part.group for part in parts)
    for part in parts:
        name = str(part.group.get("name", f"group_{part.number}"))
        if part.decaying is not None:
            ending = "decay" if part.decaying else "no_decay"
            stem = re.sub(r"(^|_)(no_)?decay$", "", name)  # it is there already if these groups came from here
            name = f"{stem}_{ending}" if split and stem else ending
        names[name] += 1
        part.group["name"] = name if names[name] == 1 else f"{name}_{names[name]}"
    return [part.group for part in parts]


def _tensor(entry: Any) -> Any:
    """The tensor of an entry that may carry its name: ``(name, tensor)``."""
    return entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry

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

from rewriter.analysis.gammas import Gamma, canonical_names
from rewriter.analysis.parameter_roles import ParameterRole
from rewriter.argument_checks import checked_flag
from rewriter.errors import InputError, ModelError, OptimizerError, SelectorError, TraceError, listed
from rewriter.guideline.registry import resolve_passes, suggest
from rewriter.model.refusal import check_model
from rewriter.model.whole_state import is_offloaded
from rewriter.model.wrappers import looked_through, parameter_names_inside, paths_inside
from rewriter.optimizer.grouped_parameters import Decision, ParamGroups, tensor_of
from rewriter.planning.parameter_kinds import as_gamma, find_kinds, kind_and_reader, recorded_kinds
from rewriter.planning.record import records_of
from rewriter.planning.remembered_inputs import inputs_to_run_on
from rewriter.tracing.input_types import ExampleInputs, InputSize
from rewriter.tracing.trace import trace_candidates

_PASS = "weight-decay"


class GammaRule(Protocol):
    """The interface of the pass that decides about gammas."""

    def policy(self, gamma: Gamma) -> tuple[bool, str]:
        """Whether ``gamma`` decays, and why."""


def param_groups(
    model: nn.Module,
    weight_decay: float | None = 5e-2,
    *,
    gamma: str | Mapping[str, bool] | None = None,
    example_inputs: ExampleInputs | None = None,
    input_size: InputSize | None = None,
    no_weight_decay: str | Iterable[str] = (),
    within: Iterable[Mapping[str, Any]] | None = None,
    named: bool = False,
) -> ParamGroups:
    """Split the trainable parameters of ``model`` into groups that decay and that do not, for any optimizer.

    Weights of convolutions, linear layers and attention decay. Gammas of norms decay by their place in the dataflow
    (docs/passes/weight-decay.md). Biases, betas, embeddings, tokens and scales do not, nor do parameters named by
    ``no_weight_decay()`` of the model or of a submodule. Each trainable parameter is in one group, a shared one once.

    The kind of each parameter was recorded when the model was rewritten; the model is run only for parameters added
    since, if it was not rewritten, or if an input is given.

    Args:
        model: any model that :func:`rewriter.trace` can run, rewritten or not; it is not modified.
        weight_decay: for the groups that decay; None leaves it to the optimizer.
        gamma: ``"guideline"``, ``"exclude-all"``, ``"decay-all"``, or a dict of categories (``branch_last``,
            ``branch_other``, ``shortcut``, ``main``) to True or False. None uses the policy of the model's rewrite, so
            that the groups agree with its report, or else the guideline.
        example_inputs, input_size: what to run the model on, as for :func:`rewriter.rewrite`; None uses the input
            size of the model's rewrite, or of its configuration.
        no_weight_decay: names of further parameters that do not decay, or patterns such as ``"*.bias_table"``.
        within: existing groups, for example with a learning rate per layer. Their other settings are kept, and each is
            split in two. Parameters of other modules in them are left unchanged.
        named: return ``(name, parameter)`` pairs, so that the optimizer keeps the names in its state dict.

    Returns:
        A list of dicts with ``params``, ``weight_decay`` and ``name``. Its ``table`` explains every gamma, ``names``
        holds the names of the parameters, and ``on(model)`` gives the same groups with the parameters of another copy,
        or of the model after ``fully_shard``.

    Raises:
        OptimizerError: ``weight_decay`` or ``within`` is invalid, or ``within`` lacks parameters of the model; or
            parameters were added since the rewrite, and the model cannot be run in its present state.
        SelectorError: an unknown policy or category, or a name in ``no_weight_decay`` that matches nothing.
        ModelError, InputError, TraceError: the model cannot be run.

    Example:
        >>> groups = rewriter.param_groups(timm.create_model("test_vit"), weight_decay=0.05)
        >>> {group["name"]: group["weight_decay"] for group in groups}
        {'decay': 0.05, 'no_decay': 0.0}
        >>> optimizer = torch.optim.AdamW(groups)
    """
    _check_weight_decay(weight_decay)
    named = checked_flag("named", named)
    model = looked_through(model)
    if any(map(is_offloaded, model.modules())):
        check_model(model, may_be_wrapped=True)
    (rule,) = resolve_passes([{_PASS: {"gamma": _policy_of_rewrite(model) if gamma is None else gamma}}])
    names = parameter_names_inside(model)
    kinds = {names[full]: kind for full, kind in _kinds(model, names, example_inputs, input_size).items()}
    excluded = _excluded(model, names, no_weight_decay)
    parameters = {names[full]: parameter for full, parameter in model.named_parameters() if parameter.requires_grad}
    decisions = _decide(parameters, kinds, rule, excluded)  # type: ignore[arg-type]
    if within is None:
        everything: dict[str, Any] = {"params": list(parameters.values())}
        given = [everything] if parameters else []
    else:
        given = _checked_groups(within, parameters)
    decays = {id(parameters[name]): decisions[name].decays for name in parameters}
    groups = ParamGroups(_split(given, model, decays, weight_decay))
    groups.decisions = tuple(decisions.values())
    groups.name_parameters(model, named=named)
    return groups


def _kinds(
    model: nn.Module, names: Mapping[str, str], example_inputs: ExampleInputs | None, input_size: InputSize | None
) -> dict[str, str]:
    """Return the kind of each trainable parameter, as recorded by its rewrite or from a trace of the present model.

    Keys are names with those of wrappers; ``names`` maps them to names without.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    recorded = recorded_kinds(model) if example_inputs is None and input_size is None else {}
    missing = [names[name] for name in trainable if name not in recorded]
    if not missing and recorded:
        return recorded
    try:
        check_model(model, may_be_wrapped=True)
        traced = trace_candidates(model, inputs_to_run_on(model, example_inputs, input_size))
    except (TraceError, InputError, ModelError) as error:
        if not recorded:
            raise
        raise OptimizerError(
            f"{len(missing)} of {len(trainable)} trainable parameters came after the rewrite: {listed(missing)}. What "
            f"they are is not known, for the model cannot be recorded as it is now ({error}). Add them before the "
            "rewrite, or give the optimizer a group of its own for them and freeze them for this call."
        ) from error
    return find_kinds(traced) | recorded


def _policy_of_rewrite(model: nn.Module) -> Any:
    """Return the option ``gamma`` of the last rewrite that requested this pass."""
    asked = [options for record in records_of(model) for name, options in record.plan.passes if name == _PASS]
    return asked[-1]["gamma"] if asked else "guideline"


def _decide(
    parameters: Iterable[str], kinds: Mapping[str, str], rule: GammaRule, excluded: Mapping[str, str]
) -> dict[str, Decision]:
    """Decide about every trainable parameter, gammas first."""
    gammas: dict[str, Decision] = {}
    others: dict[str, Decision] = {}
    trainable = set(parameters)
    for name in (name for name in kinds if name in trainable):
        gamma = as_gamma(name, kinds[name])
        if gamma is not None:
            gammas[name] = Decision(name, str(gamma.category), *rule.policy(gamma))
        else:
            kind, reader = kind_and_reader(kinds[name])
            role = ParameterRole(kind)
            reason = _UNKNOWN.format(reader) if reader else _REASONS.get(role, "it is no weight")
            others[name] = Decision(name, str(role), role is ParameterRole.WEIGHT, reason)
    decisions = gammas | others
    for name, reason in excluded.items():
        if name in decisions:
            decisions[name] = Decision(name, decisions[name].category, False, reason)
    return decisions


_REASONS = {
    ParameterRole.WEIGHT: "as usual",
    ParameterRole.UNSEEN: "what it does is not known",
    ParameterRole.OTHER: "an operation that is not known reads it; it has one axis only",
}
_UNKNOWN = "what {}() does with it is not known; if it is a weight, give it a group that decays"


def _excluded(model: nn.Module, inside: Mapping[str, str], given: str | Iterable[str]) -> dict[str, str]:
    """Return the parameters that the user, the model or a submodule excludes from decay, and who excludes them.

    Names may include those of wrappers or not.
    """
    first = canonical_names(model)
    names = {name: inside[first[full]] for full in first for name in (full, inside[full])}
    paths = paths_inside(model)
    excluded: dict[str, str] = {}
    for path, module in model.named_modules():
        said = getattr(module, "no_weight_decay", None)
        if callable(said):
            says = next((cls for cls in type(module).__mro__ if "no_weight_decay" in vars(cls)), type(module))
            source = f"{says.__name__}.no_weight_decay()"
            for pattern in _patterns(said() or (), source):
                for prefix in {path, paths[path]}:
                    for name in _matching(f"{prefix}.{pattern}".lstrip("."), names):
                        excluded[names[name]] = f"named by {source}"
    for pattern in _patterns(given, "no_weight_decay"):
        found = _matching(pattern, names)
        if not found:
            raise SelectorError(
                f"no_weight_decay: {pattern!r} matches no parameter of {type(model).__name__}; "
                f"{suggest(pattern, dict.fromkeys(inside.values()))}"
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
    """Return the groups with their parameters as lists; every trainable parameter of the model is in exactly one."""
    if isinstance(within, (torch.Tensor, Mapping)) or not isinstance(within, Iterable):
        raise OptimizerError(f"within: expected a list of parameter groups, found {type(within).__name__}")
    groups: list[dict[str, Any]] = []
    for group in within:
        if not isinstance(group, Mapping) or "params" not in group:
            raise OptimizerError(f"within: expected dicts with 'params', found {type(group).__name__}")
        params = group["params"]
        groups.append({**group, "params": [params] if isinstance(params, torch.Tensor) else list(params)})
    count = Counter(id(tensor_of(entry)) for group in groups for entry in group["params"])
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
    """Split each group into a part that decays and one that does not; parts with the same settings are joined."""
    of_model = {id(parameter) for parameter in model.parameters()}
    parts: list[_Part] = []
    for number, group in enumerate(given):
        ids = [id(tensor_of(entry)) for entry in group["params"]]
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
    """A part of group ``number``, and whether it decays; None for parameters outside the model, left unchanged."""

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
    """Add ``part`` to one that differs only in its parameters, or append it."""
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
    """Name each group uniquely: ``decay``, ``no_decay``, after the name or index of the group that was split."""
    names: Counter[str] = Counter()
    split = len(parts) > 2 or any("name" in part.group for part in parts)
    for part in parts:
        name = str(part.group.get("name", f"group_{part.number}"))
        if part.decaying is not None:
            ending = "decay" if part.decaying else "no_decay"
            stem = re.sub(r"(^|_)(no_)?decay$", "", name)  # present already if these groups came from here
            name = f"{stem}_{ending}" if split and stem else ending
        names[name] += 1
        part.group["name"] = name if names[name] == 1 else f"{name}_{names[name]}"
    return [part.group for part in parts]

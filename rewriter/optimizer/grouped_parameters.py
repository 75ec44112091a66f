"""Parameter groups that know the names of their parameters, and why each is in its group."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from rewriter.analysis.parameter_roles import ParameterRole
from rewriter.errors import OptimizerError, listed
from rewriter.model.wrappers import looked_through, parameter_names_inside


@dataclass(frozen=True)
class Decision:
    """Whether one parameter decays.

    Attributes:
        name: the parameter's name in the model.
        category: for a gamma its place (``branch_last``, …), for any other parameter its role.
        decays: whether it is in a group that decays.
        reason: why.
    """

    name: str
    category: str
    decays: bool
    reason: str


class ParamGroups(list[dict[str, Any]]):
    """Parameter groups: a list of dicts for any optimizer, with an explanation of every decision.

    Attributes:
        decisions: one for each trainable parameter of the model, gammas first.
    """

    decisions: tuple[Decision, ...] = ()
    _named: Mapping[str, torch.Tensor] = MappingProxyType({})

    @property
    def names(self) -> list[list[str]]:
        """For each group, the names of its parameters without those of wrappers; "" for those outside the model."""
        known = {id(parameter): name for name, parameter in self._named.items()}
        return [[known.get(id(tensor_of(entry)), "") for entry in _entries(group)] for group in self]

    def on(self, model: nn.Module) -> ParamGroups:
        """Return the same groups with the parameters that ``model`` now has under their names.

        For a model whose parameters were replaced (``fully_shard``, from the meta device), and for a copy of it (EMA).
        Groups added or removed, and settings changed since, are kept.

        Args:
            model: the model, a copy of it, or either with wrappers around it.

        Raises:
            OptimizerError: a name is gone, or ``model`` has trainable parameters that the groups do not cover.
            ModelError: it is not a model.
        """
        today = parameters_inside(looked_through(model))
        names = self.names
        gone = [name for of_group in names for name in of_group if name and name not in today]
        decided = {decision.name for decision in self.decisions}
        came = [name for name, parameter in today.items() if parameter.requires_grad and name not in decided]
        for problem, found in (("has no parameter {}, which these groups name", gone), ("trains {}, too", came)):
            if found:
                raise OptimizerError(
                    f"{type(model).__name__} {problem.format(listed(found))}. Make the groups from this model: "
                    "rewriter.param_groups(model)"
                )
        held = {name for of_group in names for name in of_group if name}
        groups = ParamGroups({**group} for group in self)
        for group, of_group in zip(groups, names, strict=True):
            if any(of_group):
                entries = zip(_entries(group), of_group, strict=True)
                group["params"] = [_as_entry(entry, today[name]) if name else entry for entry, name in entries]
        groups.decisions, groups._named = self.decisions, {name: today[name] for name in held}
        return groups

    def name_parameters(self, model: nn.Module, *, named: bool) -> None:
        """Record the names that parameters have in ``model``; with ``named``, make every entry a pair with its name.

        Raises:
            OptimizerError: with ``named``, a parameter from another module has no name.
        """
        held = {id(tensor_of(entry)) for group in self for entry in group["params"]}
        self._named = {name: tensor for name, tensor in parameters_inside(model).items() if id(tensor) in held}
        if not named:
            return
        for group, names in zip(self, self.names, strict=True):
            group["params"] = [
                entry if isinstance(entry, tuple) else (name, entry)
                for entry, name in zip(group["params"], names, strict=True)
            ]
            if any(not name for name, _ in group["params"]):
                raise OptimizerError(
                    "named=True: torch wants every parameter named or none, and within= has parameters of other "
                    "modules without names: give (name, parameter) pairs there"
                )

    @property
    def table(self) -> str:
        """Every gamma and unknown parameter with its decision and reason, and the counts of all others."""
        unknown = {ParameterRole.OTHER, ParameterRole.UNSEEN}
        counted = {str(role) for role in ParameterRole} - unknown
        named = [d for d in self.decisions if d.category not in counted]
        first = "gamma" if unknown.isdisjoint(d.category for d in named) else "parameter"
        rows = [(first, "category", "", "reason")]
        rows += [(d.name, d.category, "decay" if d.decays else "no decay", d.reason) for d in named]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows] if named else []
        others = Counter((d.decays, d.category, d.reason) for d in self.decisions if d.category in counted)
        for (decays, role, reason), count in sorted(others.items(), key=lambda item: (-item[0][0], item[0])):
            lines.append(f"{count} x {role}: {'decay' if decays else 'no decay'}, {reason}")
        for group in self:
            decay = group.get("weight_decay", "the optimizer's")
            lines.append(f"group {group.get('name', '')!r}: {len(group['params'])} parameters, weight decay {decay}")
        return "\n".join(lines)

    def __str__(self) -> str:
        return self.table

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.table)  # shown by a notebook


def parameters_inside(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters by their names without those of wrappers."""
    names = parameter_names_inside(model)
    return {names[full]: parameter for full, parameter in model.named_parameters()}


def tensor_of(entry: Any) -> Any:
    """Return the tensor of an entry that may carry its name: ``(name, tensor)``."""
    return entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry


def _entries(group: Mapping[str, Any]) -> list[Any]:
    """Return the contents of a group; a user's may hold one tensor, or an iterator, which is left alone."""
    held = group["params"]
    return list(held) if isinstance(held, (list, tuple)) else [held]


def _as_entry(old: Any, tensor: torch.Tensor) -> Any:
    return (old[0], tensor) if isinstance(old, tuple) else tensor


def load_by_name(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Make an optimizer of named parameters load state dicts by name; torch matches by order.

    A state dict saved with the groups in another order, or split differently, is then matched to its parameters. Each
    group takes the settings of the saved group that has most of its parameters.

    Args:
        optimizer: made from ``rewriter.param_groups(model, named=True)``.

    Returns:
        A function that undoes this.

    Raises:
        OptimizerError: it is not a torch optimizer, or its parameters have no names. When a state dict is loaded: it
            has no names, or different ones.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise OptimizerError(f"expected a torch.optim.Optimizer, found {type(optimizer).__name__}")
    if any("param_names" not in group for group in optimizer.param_groups):
        raise OptimizerError(
            "the optimizer knows no names: build it on rewriter.param_groups(model, named=True), with torch 2.6 or "
            "newer"
        )
    return optimizer.register_load_state_dict_pre_hook(_by_name).remove


def _by_name(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    saved = state["param_groups"]
    if any("param_names" not in group for group in saved):
        raise OptimizerError(
            "the state dict of the optimizer has no names; it was saved by one without named parameters"
        )
    place_of = {name: place for place, group in enumerate(saved) for name in group["param_names"]}
    number_of = {name: number for g in saved for name, number in zip(g["param_names"], g["params"], strict=True)}
    wanted = dict.fromkeys(name for group in optimizer.param_groups for name in group["param_names"])
    missing, extra = [n for n in wanted if n not in number_of], [n for n in number_of if n not in wanted]
    if missing or extra:
        told = [f"{what}: {listed(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names]
        raise OptimizerError(f"the state dict of the optimizer has other parameters: {'; '.join(told)}")
    groups = []
    for group in optimizer.param_groups:
        names = list(group["param_names"])
        shared = Counter(place_of[name] for name in names)
        settings = saved[shared.most_common(1)[0][0]] if shared else group
        own = {"name": group["name"]} if "name" in group else {}
        groups.append({**settings, **own, "params": [number_of[name] for name in names], "param_names": names})
    return {**state, "param_groups": groups}

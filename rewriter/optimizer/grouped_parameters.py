"""Groups of parameters that know the names of their parameters, and why they are in them."""

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
    _named: Mapping[str, torch.Tensor] = MappingProxyType({})

    @property
    def names(self) -> list[list[str]]:
        """For each group the names of its parameters, without those of wrappers; "" for what is not the model's."""
        known = {id(parameter): name for name, parameter in self._named.items()}
        return [[known.get(id(tensor_of(entry)), "") for entry in _entries(group)] for group in self]

    def on(self, model: nn.Module) -> ParamGroups:
        """The same groups with the parameters that ``model`` has today under their names.

        For a model whose parameters were replaced (``fully_shard``, from the meta device), and for a copy of it (EMA).
        Groups that were added or taken away, and settings that were changed since, stay so.

        Args:
            model: the model, a copy of it, or either with wrappers around it.

        Raises:
            OptimizerError: a name is gone, or ``model`` trains parameters that were not decided about.
            ModelError: it is no model.
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
        """Note the names that parameters have in ``model``; with ``named`` make every entry a pair with its name.

        Raises:
            OptimizerError: with ``named``, a parameter of other modules has no name.
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
        """Every gamma, and what is not known, with the decision and the reason; of everything else the numbers."""
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
        printer.text(self.table)  # what a notebook shows


def parameters_inside(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by their names without those of wrappers."""
    names = parameter_names_inside(model)
    return {names[full]: parameter for full, parameter in model.named_parameters()}


def tensor_of(entry: Any) -> Any:
    """The tensor of an entry that may carry its name: ``(name, tensor)``."""
    return entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry


def _entries(group: Mapping[str, Any]) -> list[Any]:
    """What a group holds; a user's may hold one tensor, or an iterator, which is left alone."""
    held = group["params"]
    return list(held) if isinstance(held, (list, tuple)) else [held]


def _as_entry(old: Any, tensor: torch.Tensor) -> Any:
    return (old[0], tensor) if isinstance(old, tuple) else tensor


def load_by_name(optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """Let an optimizer of named parameters load state dicts by their names; torch goes by the order.

    So a state dict that was saved with the groups in another order, or divided otherwise, finds its parameters. The
    settings of each group are those of the saved group that has the most of its parameters.

    Args:
        optimizer: made of ``rewriter.param_groups(model, named=True)``.

    Returns:
        What takes this back.

    Raises:
        OptimizerError: it is no optimizer of torch, or its parameters have no names. While a state dict is loaded: it
            has no names, or other ones.
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

"""The two models that are compared, created anew for every seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rewriter.api import original_state_dict
from rewriter.edit.classes import class_name, original_class
from rewriter.errors import ComparisonError, RewriterError
from rewriter.model.copying import WITHOUT, copy_model
from rewriter.model.random_state import random_state_kept, seed_all
from rewriter.model.refusal import check_model
from rewriter.planning.apply import apply_plan
from rewriter.planning.mark import nothing_said
from rewriter.planning.record import records_of
from rewriter.text import counted

MakeModel = Callable[[], nn.Module]
ChangeModel = Callable[[nn.Module], nn.Module]


@dataclass(frozen=True)
class ModelPairs:
    """The two sides of a comparison.

    Attributes:
        before: the original: a model, or a function that makes one, with its initial weights.
        after: the other: a model, or a function that makes it from an original.
    """

    before: nn.Module | MakeModel
    after: nn.Module | ChangeModel

    def pair(self, seed: int) -> tuple[nn.Module, nn.Module]:
        """Return both models for one seed, with the same initial weights; the caller's objects are not modified.

        Raises:
            ComparisonError: a function does not return a model.
            ModelError: a model that is compiled, wrapped or lazy.
        """
        with random_state_kept():
            seed_all(seed)
            return self._pair()

    def _pair(self) -> tuple[nn.Module, nn.Module]:
        if self.before is self.after:
            raise ComparisonError(
                "before and after are the same model, as after a rewrite in place; give a function that makes the "
                "original, or rewrite without inplace=True"
            )
        before = _copied(self.before) if isinstance(self.before, nn.Module) else _made(self.before, "before")
        if not isinstance(self.after, nn.Module):
            return before, _made(self.after, "after", copy_model(before, WITHOUT))
        if isinstance(self.before, nn.Module):
            return before, _copied(self.after)
        check_model(self.after)
        plans = [record.plan for record in records_of(self.after)]
        if not plans:
            raise ComparisonError(
                f"after: expected a model of rewriter.rewrite, or a function of the original, since before is a "
                f"function; found a {type(self.after).__name__} that was not rewritten"
            )
        after = copy_model(before, WITHOUT)
        for plan in plans:
            apply_plan(plan, after, inplace=True, verify=False)
        return before, after

    def varies_from(self, first: nn.Module) -> bool:
        """Whether the original of another seed differs in weights from ``first``, that of seed 0."""
        return not isinstance(self.before, nn.Module) and not same_weights(first, self.pair(1)[0])


def same_weights(before: nn.Module, after: nn.Module) -> bool:
    """Whether ``after`` has the weights of ``before``, apart from additions of a rewrite."""
    with nothing_said():
        ours, theirs = original_state_dict(before), original_state_dict(after)
    return ours.keys() == theirs.keys() and all(
        not isinstance(value, torch.Tensor) or torch.equal(value.cpu(), theirs[key].cpu())
        for key, value in ours.items()
    )


def name_of(model: nn.Module) -> str:
    """Return the timm name of the model, or the name of its class."""
    configuration = getattr(model, "pretrained_cfg", None)
    architecture = configuration.get("architecture") if isinstance(configuration, dict) else None
    return architecture or class_name(original_class(type(model))).rsplit(".", 1)[-1]


def changes(model: nn.Module) -> tuple[str, ...]:
    """Return what was done to a rewritten model, one line per pass; passes that found nothing share one."""
    lines, idle = [], []
    for record in records_of(model):
        for name, _ in record.plan.passes:
            sites, _, advice = record.plan.findings(name)
            done = [counted(len(sites), "place")] if sites else []
            done += [f"advice on {counted(len(advice), 'place')}"] if advice else []
            if done:
                lines.append(f"{name}: {', '.join(done)}")
            else:
                idle.append(name)
    return (*lines, f"nothing found by {', '.join(idle)}") if idle else tuple(lines)


def each_pass_alone(before: nn.Module, after: nn.Module) -> dict[str, nn.Module]:
    """Return, for each pass that edited ``after``, ``before`` with the edits of that pass alone."""
    records, names = records_of(after), passes_of(after)
    if len(records) != 1 or len(names) < 2:  # after several rewrites, the later ones do not fit the original
        return {}
    plan = records[0].plan
    sites = {name: tuple(site for site in plan.sites if site.pass_name == name) for name in names}
    return {name: apply_plan(replace(plan, sites=sites[name]), before, verify=False) for name in names}


def passes_of(model: nn.Module) -> list[str]:
    """Return the names of the passes that edited a model, in order."""
    return list(dict.fromkeys(site.pass_name for record in records_of(model) for site in record.plan.sites))


def _copied(model: nn.Module) -> nn.Module:
    check_model(model)
    return copy_model(model, WITHOUT)


def _made(function: Any, what: str, *arguments: nn.Module) -> nn.Module:
    """Return a copy of the result of ``function``, which may be a model that the caller keeps."""
    if not callable(function):
        raise ComparisonError(f"{what}: expected a torch.nn.Module or a function, found {type(function).__name__}")
    given = "the original" if arguments else "no argument"
    try:
        model = function(*arguments)
    except TypeError as error:
        if isinstance(error, RewriterError):
            raise
        raise ComparisonError(f"{what}: called with {given} it raised a TypeError: {error}") from error
    if not isinstance(model, nn.Module):
        raise ComparisonError(
            f"{what}: expected a function that gives a torch.nn.Module, it gave {type(model).__name__}"
        )
    return _copied(model)

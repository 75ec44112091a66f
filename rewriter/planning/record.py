"""What a rewritten model stores about its rewrites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from rewriter.edit.edits import Applied
from rewriter.model.wrappers import named_modules_inside
from rewriter.planning.checks import Verification
from rewriter.planning.data import PlanData
from rewriter.planning.staleness import replaced

_ATTRIBUTE = "_rewriter_records"

Verdict = Verification
"""Its name in models that version 0.1.0 pickled."""


@dataclass(frozen=True)
class Record:
    """One rewrite of a model.

    Attributes:
        plan: what was requested.
        applied: what was done.
        verdict: what was verified; None if nothing was.
        seconds: how long each step took.
        folded: after :func:`rewriter.fold`, the layers by path, each with the reason it was left, if it was.
        unchecked: why it is not known that the edited code is what runs; empty if it is known.
    """

    plan: PlanData
    applied: Applied
    verdict: Verification | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    folded: tuple[tuple[str, str], ...] = ()
    unchecked: str = "an earlier version made this rewrite"

    @property
    def changed_weights(self) -> bool:
        """Whether :func:`rewriter.fold` moved constants into weights, so that the original cannot be restored."""
        return any(not reason for _, reason in self.folded)

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        return self


def records_of(model: nn.Module) -> tuple[Record, ...]:
    """Return the rewrites of ``model``, oldest first."""
    records: tuple[Record, ...] = _kept_in(model).get(_ATTRIBUTE, ())
    return records


def _kept_in(model: nn.Module) -> dict[str, Any]:
    """Return where records are kept: ``meta`` for a graph module, whose copies drop what the graph does not name."""
    return model.meta if isinstance(model, fx.GraphModule) else model.__dict__


def is_folded(model: nn.Module) -> bool:
    """Whether :func:`rewriter.fold` changed weights of ``model``."""
    return any(record.changed_weights for record in records_of(model))


def set_records(model: nn.Module, records: tuple[Record, ...]) -> None:
    """Store ``records`` on ``model``; an empty tuple removes every trace of them."""
    if records:
        _kept_in(model)[_ATTRIBUTE] = records
    else:
        _kept_in(model).pop(_ATTRIBUTE, None)


def rewritten_parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the outermost rewritten models that ``model`` is or contains, each with its path in ``model``."""
    found: list[tuple[str, nn.Module]] = []
    for path, module in named_modules_inside(model):
        inner = any(path == outer or not outer or path.startswith(f"{outer}.") for outer, _ in found)
        if records_of(module) and not inner:
            found.append((path, module))
    return found


def records_in_force(model: nn.Module) -> tuple[Record, ...]:
    """Return the rewrites of ``model``, without sites of which nothing is left in it."""
    return tuple(_without(record, set(replaced(model, record.applied))) for record in records_of(model))


def with_parameters(record: Record, parameters: Mapping[str, str]) -> Record:
    """Return the record, updated with what a later plan says about parameters."""
    return replace(record, plan=replace(record.plan, parameters={**record.plan.parameters, **parameters}))


def _without(record: Record, stale: set[str]) -> Record:
    if not stale:
        return record
    sites = tuple(site for site in record.plan.sites if not {edit.path for edit in site.edits} <= stale)
    paths = {edit.path for site in sites for edit in site.edits}
    applied = Applied(
        tuple(edit for site in sites for edit in site.edits),
        tuple(item for item in record.applied.previous if item[0] in paths),
        tuple(path for path in record.applied.edited_classes if path in paths),
        tuple(changed for changed in record.applied.tensors if changed.path in paths),
    )
    return replace(record, plan=replace(record.plan, sites=sites), applied=applied)

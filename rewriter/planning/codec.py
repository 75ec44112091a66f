"""Convert a plan to plain data and back. Nothing in the data is executed or imported."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any, TypeVar

from rewriter.edit.edits import CODEC
from rewriter.errors import PlanError
from rewriter.guideline.base import Advice, Contract, Rate, Site, Skipped
from rewriter.planning.data import PlanData
from rewriter.reasons import reason_of

FORMAT = 3
"""Version of the JSON form."""

AnyPlan = TypeVar("AnyPlan", bound=PlanData)

_SITE = ("path", "pattern", "action", "reason", "rate_at", "claim", "rates", "inactive", "edits")
_FOLLOWS = frozenset({"inactive"})
"""Properties of a site that are derived from its fields."""

CODEC.prepare(PlanData, Site, Skipped, Advice, Rate, Contract)


def to_data(plan: PlanData) -> dict[str, Any]:
    """Return the plan as JSON data."""
    return {
        "format": FORMAT,
        "model": plan.model,
        "structure": plan.structure,
        "request": plan.request,
        "passes": [{name: options} for name, options in plan.passes],
        "contracts": CODEC.to_plain(plan.contracts),
        "notes": list(plan.notes),
        "sites": [_finding(site, *_SITE) for site in plan.sites],
        "skipped": [_finding(skip, "path", "pattern", "reason", "detail", "inactive") for skip in plan.skipped],
        "advice": [_finding(advice, "path", "pattern", "advice", "reason") for advice in plan.advice],
        "parameters": plan.parameters,
    }


def to_text(plan: PlanData) -> str:
    """Return the plan as JSON text."""
    return json.dumps(to_data(plan), indent=2)


def from_text(cls: type[AnyPlan], text: str) -> AnyPlan:
    """Return the plan read from JSON text.

    Args:
        cls: class of the plan.
        text: JSON.

    Raises:
        PlanError: the text is not a plan, or has another format version.
    """
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(f"the plan is damaged: not JSON ({error})") from error
    return from_data(cls, data)


def from_data(cls: type[AnyPlan], data: Any) -> AnyPlan:
    """Return the plan that :func:`to_data` described.

    Raises:
        PlanError: the data is not a plan, or has another format version.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise PlanError(f"expected a plan of format {FORMAT}, found {found!r}. Make a new plan.")
    try:
        values = {field.name: data[field.name] for field in fields(PlanData) if field.name in data}
        passes = CODEC.from_plain(list[dict[str, dict[str, Any]]], data.get("passes"), "passes")
        values["passes"] = [[name, options] for item in passes for name, options in item.items()]
        for kind in ("sites", "skipped", "advice"):
            follows = _FOLLOWS if kind == "sites" else frozenset[str]()
            found = CODEC.from_plain(list[dict[str, Any]], data.get(kind), kind)
            values[kind] = [_fields_of(item, follows) for item in found]
        plan = CODEC.from_plain(PlanData, values)
        for skip in plan.skipped:
            reason_of(skip.reason)
    except (ValueError, TypeError, OverflowError) as error:
        raise PlanError(f"the plan is damaged: {error}") from error
    _check_complete(plan)
    return cls(**vars(plan))


def _finding(finding: Any, *names: str) -> dict[str, Any]:
    return {"pass": finding.pass_name, **{name: CODEC.to_plain(getattr(finding, name)) for name in names}}


def _fields_of(data: dict[str, Any], follows: frozenset[str]) -> dict[str, Any]:
    return {"pass_name" if name == "pass" else name: item for name, item in data.items() if name not in follows}


def _check_complete(plan: PlanData) -> None:
    """Refuse a plan with findings of passes that it does not list, or that have no contract.

    Raises:
        PlanError: naming the pass.
    """
    named = {name for name, _ in plan.passes}
    findings: tuple[Site | Skipped | Advice, ...] = (*plan.sites, *plan.skipped, *plan.advice)
    missing = sorted({finding.pass_name for finding in findings} - named)
    without = sorted({site.pass_name for site in plan.sites} - set(plan.contracts))
    if missing or without:
        what = (
            f"passes that are not named ({', '.join(missing)})" if missing else f"no contract of {', '.join(without)}"
        )
        raise PlanError(f"the plan is damaged: it has {what}")

"""A plan as plain data, and back. Nothing in the data is executed or imported."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any, TypeVar

from rewriter.edit.edits import edit_from_data, edit_to_data
from rewriter.errors import PlanError
from rewriter.guideline.base import Advice, Contract, Rate, Site, Skipped
from rewriter.planning.data import PlanData
from rewriter.reasons import reason_of

FORMAT = 3
"""Version of the JSON form."""

AnyPlan = TypeVar("AnyPlan", bound=PlanData)


def to_data(plan: PlanData) -> dict[str, Any]:
    """What JSON can hold."""
    return {
        "format": FORMAT,
        "model": plan.model,
        "structure": plan.structure,
        "request": plan.request,
        "passes": [{name: options} for name, options in plan.passes],
        "contracts": {name: asdict(contract) for name, contract in plan.contracts.items()},
        "notes": list(plan.notes),
        "sites": [
            {
                "pass": s.pass_name,
                "path": s.path,
                "pattern": s.pattern,
                "action": s.action,
                "reason": s.reason,
                "rate_at": s.rate_at,
                "claim": s.claim,
                "rates": [asdict(rate) for rate in s.rates],
                "inactive": s.inactive,
                "edits": [edit_to_data(edit) for edit in s.edits],
            }
            for s in plan.sites
        ],
        "skipped": [
            {"pass": s.pass_name, "path": s.path, "pattern": s.pattern, "reason": str(s.reason), "detail": s.detail}
            for s in plan.skipped
        ],
        "advice": [
            {"pass": a.pass_name, "path": a.path, "pattern": a.pattern, "advice": a.advice, "reason": a.reason}
            for a in plan.advice
        ],
        "parameters": plan.parameters,
    }


def to_text(plan: PlanData) -> str:
    """The plan as JSON text."""
    return json.dumps(to_data(plan), indent=2)


def from_text(cls: type[AnyPlan], text: str) -> AnyPlan:
    """The plan that was written as JSON.

    Args:
        cls: of the plan.
        text: JSON.

    Raises:
        PlanError: the text is not a plan, or of another format.
    """
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise PlanError(f"the plan is damaged: not JSON ({error})") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise PlanError(f"expected a plan of format {FORMAT}, found {found!r}. Make a new plan.")
    try:
        passes = tuple((str(name), dict(options)) for item in data["passes"] for name, options in item.items())
        _check_complete(data, {name for name, _ in passes})
        return cls(
            model=str(data["model"]),
            structure=str(data["structure"]),
            passes=passes,
            sites=tuple(_site_from_data(item) for item in data["sites"]),
            skipped=tuple(map(_skipped_from_data, data["skipped"])),
            advice=tuple(Advice(a["pass"], a["path"], a["pattern"], a["advice"], a["reason"]) for a in data["advice"]),
            notes=tuple(data["notes"]),
            request=dict(data["request"]),
            contracts={str(name): Contract(**promises) for name, promises in data["contracts"].items()},
            parameters=dict(data.get("parameters", {})),
        )
    except PlanError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PlanError(f"the plan is damaged: {type(error).__name__}: {error}") from error


def _check_complete(data: Any, passes: set[str]) -> None:
    """Refuse a plan whose notes, findings or kinds of parameters are no texts, or with findings of passes not named.

    Raises:
        PlanError: which.
    """
    if not all(isinstance(note, str) for note in data["notes"]):
        raise PlanError(f"the plan is damaged: notes are texts, found {data['notes']!r}")
    for kind in ("skipped", "advice"):
        found = next((item for item in data[kind] if not all(isinstance(text, str) for text in item.values())), None)
        if found is not None:
            raise PlanError(f"the plan is damaged: what is {kind} is told in texts, found {found!r}")
    kinds = data.get("parameters", {})
    if not isinstance(kinds, dict) or not all(isinstance(kind, str) for kind in kinds.values()):
        raise PlanError(f"the plan is damaged: what parameters are is told in texts by name, found {kinds!r}")
    named = {item["pass"] for kind in ("sites", "skipped", "advice") for item in data[kind]}
    missing = sorted(map(str, named - passes))
    without = sorted({item["pass"] for item in data["sites"]} - set(data["contracts"]))
    if missing or without:
        what = (
            f"passes that are not named ({', '.join(missing)})" if missing else f"no contract of {', '.join(without)}"
        )
        raise PlanError(f"the plan is damaged: it has {what}")


def _site_from_data(data: Any) -> Site:
    texts = [data[name] for name in ("pass", "path", "pattern", "action", "reason", "rate_at", "claim")]
    if not all(isinstance(text, str) for text in texts):
        raise PlanError(f"the plan is damaged: not a site: {data!r}")
    pass_name, path, pattern, action, reason, rate_at, claim = texts
    edits = tuple(edit_from_data(edit) for edit in data["edits"])
    rates = tuple(
        Rate(str(r["path"]), str(r["name"]), float(r["value"]), float(r["off"])) for r in data.get("rates", ())
    )
    return Site(pass_name, path, pattern, action, reason, edits, rate_at, claim, rates)


def _skipped_from_data(data: Any) -> Skipped:
    return Skipped(data["pass"], data["path"], data["pattern"], reason_of(data["reason"]), data["detail"])

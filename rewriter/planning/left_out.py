"""Turn sites that are not in force into skipped places with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from rewriter.guideline.base import Site, Skipped
from rewriter.planning.data import PlanData
from rewriter.reasons import Reason

AnyPlan = TypeVar("AnyPlan", bound=PlanData)


def without(made: AnyPlan, failing: Sequence[tuple[Site, str]]) -> AnyPlan:
    """Return the plan without sites that are not in force; they are skipped, with the reason."""
    skipped = left_out(made.sites, failing)
    sites = tuple(site for site in made.sites if id(site) not in skipped)
    return replace(made, sites=sites, skipped=(*made.skipped, *skipped.values()))


def left_out(sites: Sequence[Site], failing: Sequence[tuple[Site, str]]) -> dict[int, Skipped]:
    """Return what is skipped, by identity of the site: failing sites, and those that share an edit with one of them."""
    reasons = {id(site): reason for site, reason in failing}
    shared = [edit for site, _ in failing for edit in site.edits]
    found = {}
    for site in sites:
        reason = reasons.get(id(site))
        if reason is None and any(edit in shared for edit in site.edits):
            reason = "it shares an edit with a place that is not in force"
        if reason is not None:
            detail = f"{site.action}: {reason}"
            found[id(site)] = site.skipped(Reason.NOT_IN_FORCE, detail)
    return found

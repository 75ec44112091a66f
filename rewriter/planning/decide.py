"""Decide which findings of the passes become part of a plan: those selected, allowed, claimed by none and in force."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import nn

from rewriter.guideline.base import Advice, Finding, Pass, Site, Skipped
from rewriter.planning.hidden_branches import on_every_way
from rewriter.planning.in_force import Recorded, not_in_force, places_left
from rewriter.planning.left_out import left_out
from rewriter.planning.record import records_in_force
from rewriter.planning.selection import Selection
from rewriter.reasons import Reason
from rewriter.tracing.trace import Trace


def decide(
    found: Sequence[Finding],
    traced: Trace,
    passes: Sequence[Pass],
    selection: Selection,
    held_back: Collection[str] = (),
) -> list[Finding]:
    """Return what becomes of the findings of ``passes``; every site among them is in force.

    Args:
        found: the findings.
        traced: what they were found in.
        passes: those that found them.
        selection: where edits may be made.
        held_back: names of passes that must not edit.
    """
    found = on_every_way(list(found), traced, passes)
    deciding = _Deciding(traced.model, selection, held_back)
    while True:  # sites that are not in force make room for others
        decided = deciding.of(found)
        sites = [finding for finding in decided if isinstance(finding, Site)]
        if not sites:
            return decided
        recorded = Recorded(
            traced.model,
            traced.inputs,
            passes,
            traced.backend,
            measured=traced.measured,
            planning=True,
            modes_alike=traced.modes_alike,
            left=places_left(finding for finding in decided if isinstance(finding, Skipped)),
        )
        failing = not_in_force(sites, recorded)
        if not failing:
            return decided
        deciding.left_out.update(left_out(sites, failing))


@dataclass(frozen=True)
class _Deciding:
    """What decides about a finding, apart from its pass.

    Attributes:
        model: the model, for the claims of its earlier rewrites.
        selection: where edits may be made.
        held_back: passes that are held back.
        left_out: sites that are not in force, by identity, as the skipped places they become.
    """

    model: nn.Module
    selection: Selection
    held_back: Collection[str]
    left_out: dict[int, Skipped] = field(default_factory=dict)

    def of(self, found: Sequence[Finding]) -> list[Finding]:
        claims = {site.claim: site for record in records_in_force(self.model) for site in record.plan.sites}
        return [self._of(finding, claims) for finding in found]

    def _of(self, found: Finding, claims: dict[str, Site]) -> Finding:
        allows = self.selection.allows
        if isinstance(found, Advice) and not allows(found.path):
            return found.skipped(Reason.FILTERED, f"{found.advice}: not selected")
        if not isinstance(found, Site):
            return found
        if found.pass_name in self.held_back:
            return found.skipped(Reason.HELD_BACK, f"{found.action}: would change the eval output")
        if not all(map(allows, {found.path, *(edit.path for edit in found.edits)})):
            return found.skipped(Reason.FILTERED, f"{found.action}: not selected")
        if id(found) in self.left_out:
            return self.left_out[id(found)]
        first = claims.setdefault(found.claim, found) if found.claim else found
        if first.pass_name != found.pass_name:
            detail = f"{first.pass_name} acts here ({first.action}); one kind of noise at one pooling"
            return found.skipped(Reason.CLAIMED, detail)
        return found

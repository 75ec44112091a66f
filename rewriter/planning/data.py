"""What a plan says: sites and edits for one structure of model, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rewriter.edit.edits import Edit
from rewriter.guideline.base import Advice, Contract, Site, Skipped


@dataclass(frozen=True)
class PlanData:
    """Sites and edits for one structure of model.

    Attributes:
        model: class of the model, and ``structure`` a fingerprint of its tree of modules; weights do not matter.
        passes: names and options of the passes, in their order.
        sites: where they apply, with the edits.
        skipped: where they nearly do, with the reason.
        advice: what they say about places without editing them.
        notes: what else the user should know, the most important first.
        request: how the plan was asked for (``input``, ``only``, ``skip``, ``preserve``).
        contracts: what each pass promises to preserve.
        parameters: what each parameter is to the model, by name, see :mod:`rewriter.planning.parameter_kinds`.
    """

    model: str
    structure: str
    passes: tuple[tuple[str, dict[str, Any]], ...]
    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    advice: tuple[Advice, ...] = ()
    notes: tuple[str, ...] = ()
    request: dict[str, Any] = field(default_factory=dict)
    contracts: dict[str, Contract] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"parameters": {}, **state})  # a pickle of before they were kept

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits, in the order they are made."""
        return tuple(edit for site in self.sites for edit in site.edits)

    @property
    def inactive(self) -> tuple[Site, ...]:
        """Sites that have no effect with the rates that the model has: they are edited, and wait for another rate."""
        return tuple(site for site in self.sites if site.inactive)

    def findings(self, name: str) -> tuple[list[Site], list[Skipped], list[Advice]]:
        """What one pass found."""
        return (
            [site for site in self.sites if site.pass_name == name],
            [skip for skip in self.skipped if skip.pass_name == name],
            [advice for advice in self.advice if advice.pass_name == name],
        )

    @property
    def idle(self) -> tuple[str, ...]:
        """Passes that found nothing, not even a near miss."""
        return tuple(name for name, _ in self.passes if not any(self.findings(name)))

"""The content of a plan: sites and edits for one model structure, as data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rewriter.edit.edits import Edit
from rewriter.guideline.base import Advice, Contract, Site, Skipped


@dataclass(frozen=True)
class PlanData:
    """Sites and edits for one model structure.

    Attributes:
        model: class of the model.
        structure: a fingerprint of its module tree; weights do not matter.
        passes: names and options of the passes, in order.
        sites: where they apply, with the edits.
        skipped: where they almost apply, with the reason.
        advice: recommendations about places that are not edited.
        notes: what else the user should know, most important first.
        request: the arguments of the request (``input``, ``only``, ``skip``, ``preserve``).
        contracts: what each pass promises to preserve.
        parameters: the kind of each parameter, by name, see :mod:`rewriter.planning.parameter_kinds`.
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
        self.__dict__.update({"parameters": {}, **state})  # a pickle from before they were stored

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits, in the order they are made."""
        return tuple(edit for site in self.sites for edit in site.edits)

    @property
    def inactive(self) -> tuple[Site, ...]:
        """Sites without effect at the model's present rates: they are edited, and take effect with another rate."""
        return tuple(site for site in self.sites if site.inactive)

    def findings(self, name: str) -> tuple[list[Site], list[Skipped], list[Advice]]:
        """Return what one pass found."""
        return (
            [site for site in self.sites if site.pass_name == name],
            [skip for skip in self.skipped if skip.pass_name == name],
            [advice for advice in self.advice if advice.pass_name == name],
        )

    @property
    def idle(self) -> tuple[str, ...]:
        """Passes that found nothing, not even a near miss."""
        return tuple(name for name, _ in self.passes if not any(self.findings(name)))

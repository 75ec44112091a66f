"""A plan: every edit known, explained and printed before it is made. A plan is data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rewriter.model.copying import Model
from rewriter.planning.agreement import check_same_plan
from rewriter.planning.apply import apply_plan
from rewriter.planning.codec import from_text, to_text
from rewriter.planning.data import PlanData
from rewriter.planning.diff import diff_of
from rewriter.planning.render import order_of, text_of
from rewriter.planning.structure import check_fits, has_structure_of


@dataclass(frozen=True)
class Plan(PlanData):
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

    def apply(self, model: Model, inplace: bool = False, verify: bool = True, *, all_ranks: bool = True) -> Model:
        """Apply the plan to ``model``, or to a copy of it, and check the passes' contracts.

        Args:
            model, inplace, verify: as for :func:`rewriter.rewrite`.
            all_ranks: if ``torch.distributed`` is initialised, False for a plan that this process alone applies.

        Raises:
            PlanError: the plan was made for another model.
            ContractError: a contract does not hold; the model is unchanged.
            RewriterError: another process has a different plan, or does not make the call.
        """
        check_same_plan(self, all_ranks=all_ranks)
        return apply_plan(self, model, inplace=inplace, verify=verify)

    def check_fits(self, model: nn.Module) -> None:
        """Refuse a model with a different structure.

        Raises:
            PlanError: naming the first module that differs.
        """
        check_fits(self, model)

    def has_structure_of(self, model: nn.Module) -> bool:
        """Whether ``model`` has the module tree that the plan was made for."""
        return has_structure_of(self, model)

    def diff(self, model: nn.Module) -> str:
        """Return the source changes by method as a unified diff; methods with the same change are shown once."""
        return diff_of(self, model)

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return to_text(self)

    @staticmethod
    def from_json(text: str) -> Plan:
        """Return the plan that :meth:`to_json` wrote. Nothing in the text is executed or imported.

        Raises:
            PlanError: the text is not a plan, or has another format version.
        """
        return from_text(Plan, text)

    @property
    def order(self) -> str:
        """The passes with the options that were given, in the order they are applied."""
        return order_of(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # shown by a notebook

    def __str__(self) -> str:
        return text_of(self)

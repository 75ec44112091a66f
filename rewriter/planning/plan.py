"""A plan: every edit known, explained and printed before it is made. A plan is data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rewriter.planning.agreement import check_same_plan
from rewriter.planning.apply import apply_plan
from rewriter.planning.codec import from_text, to_text
from rewriter.planning.data import PlanData
from rewriter.planning.diff import diff_of
from rewriter.planning.render import order_of, text_of
from rewriter.planning.structure import check_fits, has_structure_of
from rewriter.subjects.function_module import Subject, as_module


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

    def apply(self, model: Subject, inplace: bool = False, verify: bool = True, *, all_ranks: bool = True) -> Subject:
        """Apply the plan to ``model``, or to a copy of it, and check the passes' contracts.

        Args:
            model, inplace, verify: as for :func:`rewriter.rewrite`; a function is not changed.
            all_ranks: if ``torch.distributed`` is initialised, False for a plan that this process alone applies.

        Raises:
            PlanError: the plan was made for another model.
            ContractError: a contract does not hold; the model is unchanged.
            RewriterError: another process has a different plan, or does not make the call.
        """
        subject = as_module(model, inplace=inplace)
        check_same_plan(self, all_ranks=all_ranks)
        applied: Subject = apply_plan(self, subject, inplace=inplace, verify=verify)
        return applied

    def check_fits(self, model: Callable[..., Any]) -> None:
        """Refuse a model with a different structure, or a function with another name or source.

        Raises:
            PlanError: naming the first module that differs.
        """
        check_fits(self, as_module(model))

    def has_structure_of(self, model: Callable[..., Any]) -> bool:
        """Whether ``model`` has the module tree, or is the function, that the plan was made for."""
        return has_structure_of(self, as_module(model))

    def diff(self, model: Callable[..., Any]) -> str:
        """Return the source changes by method as a unified diff; methods with the same change are shown once.

        Of a function that is to be edited, the module that it becomes is the first parameter of the new text.
        """
        return diff_of(self, as_module(model))

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

"""accelerate: stores the plan in what ``accelerator.save_state`` writes, and compares it when that is loaded."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from rewriter import libraries
from rewriter.errors import InstallationError, PlanMismatchError
from rewriter.model.wrappers import looked_through
from rewriter.planning.codec import from_data
from rewriter.planning.plan import Plan
from rewriter.storage.pretrained import plans_of

with libraries.needed("accelerate", InstallationError, __name__):
    from accelerate import Accelerator


class RegisteredPlan:
    """The plan of a rewritten model, in the form in which accelerate checkpoints objects.

    Args:
        model: a rewritten model, prepared or not.

    Raises:
        StorageError: it was not rewritten.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = looked_through(model)
        plans_of(self._model)

    def state_dict(self) -> dict[str, Any]:
        """Return the plans as data."""
        return {"plans": json.dumps(plans_of(self._model))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compare the saved plans with those of the model.

        Raises:
            PlanMismatchError: the edits differ.
        """
        saved, here = (
            [from_data(Plan, item).edits for item in plans]
            for plans in (json.loads(state["plans"]), plans_of(self._model))
        )
        if saved != here:
            raise PlanMismatchError(
                f"the checkpoint is of a {type(self._model).__name__} with other edits. Rewrite a fresh original with "
                "the plan of that training: rewriter.rewrite(model, plan_file=...)"
            )


def register(accelerator: Accelerator, model: nn.Module) -> RegisteredPlan:
    """Make ``accelerator.save_state`` store the plan of ``model``, and ``load_state`` refuse a state with another plan.

    Args:
        accelerator: before its ``save_state`` or ``load_state``.
        model: a rewritten model, before or after ``accelerator.prepare``.

    Raises:
        StorageError: the model was not rewritten.
    """
    registered = RegisteredPlan(model)
    accelerator.register_for_checkpointing(registered)
    return registered

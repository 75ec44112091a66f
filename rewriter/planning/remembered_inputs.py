"""Recreate what a plan, or the latest rewrite of a model, was made on, from its shapes and dtypes."""

from __future__ import annotations

import contextlib

from torch import nn

from rewriter.errors import InputError
from rewriter.planning.data import PlanData
from rewriter.planning.record import records_of
from rewriter.subjects.function_module import FunctionModule
from rewriter.tracing.input_description import described_inputs
from rewriter.tracing.input_types import ExampleInputs, InputSize
from rewriter.tracing.inputs import Inputs, Origin, candidate_inputs
from rewriter.tracing.trace import trace_candidates


def inputs_of_plan(made: PlanData, model: nn.Module, *, meta: bool = False) -> Inputs | None:
    """Return arguments like those ``made`` was planned on; None if it does not say (the user's own, not plain data).

    With ``meta`` they have no values.
    """
    origin = str(made.request.get("input", ""))
    if made.request.get("arguments") is not None:
        return described_inputs(made.request["arguments"], model, origin, meta=meta)
    size = made.request.get("input_size")
    if size is None and origin in (Origin.EXAMPLE_INPUTS, "none"):
        return None
    try:  # a plan of version 0.1.0 gives only the size
        return trace_candidates(model, candidate_inputs(model, None, tuple(size) if size is not None else None)).inputs
    except InputError:
        return None


def inputs_of_rewrite(model: nn.Module) -> Inputs | None:
    """Return what the latest rewrite of ``model`` was planned on; None if there is none, or no rewrite says."""
    found = (inputs_of_plan(record.plan, model) for record in reversed(records_of(model)))
    return next((inputs for inputs in found if inputs is not None), None)


def inputs_to_run_on(
    model: nn.Module, example_inputs: ExampleInputs | None = None, input_size: InputSize | None = None
) -> list[Inputs]:
    """Return what the caller gives; else what the model was rewritten for, then what its configuration says.

    The likeliest come first, as in :func:`rewriter.tracing.inputs.candidate_inputs`.

    Raises:
        InputError: there are none.
    """
    if isinstance(model, FunctionModule) and (input_size is not None or not records_of(model)):
        model.refuse_without(example_inputs)
    if example_inputs is None and input_size is None and (remembered := inputs_of_rewrite(model)) is not None:
        configured: list[Inputs] = []
        with contextlib.suppress(InputError):  # the model may have been given another size since
            configured = [inputs for inputs in candidate_inputs(model) if inputs.image_size != remembered.image_size]
        return [remembered, *configured]
    return candidate_inputs(model, example_inputs, input_size)

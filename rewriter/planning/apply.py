"""Apply a plan to a model, and check that every pass keeps its contract."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from rewriter.argument_checks import checked_flag
from rewriter.edit.edits import Applied, apply_edits, take_back
from rewriter.errors import InputError, PlaceLeftAlone, PlanError, RewriterError, TraceError
from rewriter.guideline.base import Pass
from rewriter.guideline.registry import resolve_passes
from rewriter.model.adapters import refuse_adapters, refuse_mixed_precision
from rewriter.model.copying import Model, copy_model
from rewriter.model.random_state import random_state_kept
from rewriter.model.refusal import check_model
from rewriter.planning.checks import Check, Checked, Verification
from rewriter.planning.data import PlanData
from rewriter.planning.in_force import Recorded, not_in_force, places_left
from rewriter.planning.left_out import without
from rewriter.planning.mark import check_room, place_mark
from rewriter.planning.record import Record, records_in_force, set_records, with_parameters
from rewriter.planning.remembered_inputs import inputs_of_plan
from rewriter.planning.structure import check_fits
from rewriter.planning.verify import Verifier
from rewriter.tracing.inputs import Inputs, Origin, candidate_inputs
from rewriter.tracing.trace import trace_candidates

AnyPlan = TypeVar("AnyPlan", bound=PlanData)


def apply_plan(
    made: PlanData,
    model: Model,
    *,
    inplace: bool = False,
    verify: bool = True,
    inputs: Inputs | None = None,
    in_force: bool = False,
    exactly: bool = False,
    seconds: dict[str, float] | None = None,
) -> Model:
    """Apply a plan; see :meth:`rewriter.Plan.apply`.

    Args:
        made: the plan.
        model: the model to apply it to.
        inplace: edit ``model`` itself instead of a copy.
        verify: check the contracts of the passes.
        inputs: what to run the model on; None synthesises inputs like those of the plan.
        in_force: whether the plan was just made for this very model, so that its edits are known to be in force.
        exactly: raise instead of leaving out edits that are not in force.
        seconds: durations of the steps before this one.
    """
    check_model(model)
    refuse_adapters(model)
    refuse_mixed_precision(model)
    inplace, verify = checked_flag("inplace", inplace), checked_flag("verify", verify)
    check_fits(made, model)
    check_room(model)
    seconds = dict(seconds or {})
    made_up = inputs is None and bool(made.sites)
    if made_up and (verify or not in_force):
        inputs = inputs_of_plan(made, model, meta=not verify)
    unchecked = ""
    if made.sites and not in_force:
        with _timed(seconds, "record again"):
            made, inputs, unchecked = _in_force(made, model, inputs, exactly)
    with _timed(seconds, "copy"):
        target = model if inplace else copy_model(model)
    verifier = None
    with _timed(seconds, "verify"):
        if verify and inputs is not None and made.sites:
            try:
                verifier = Verifier(made, target, inputs)
            except InputError:
                if not made_up or inputs.origin is not Origin.EXAMPLE_INPUTS:
                    raise  # the model need not run on inputs synthesised in place of the user's own
    previous = records_in_force(target)
    with _timed(seconds, "apply"):
        applied = _apply(made, target)
    verification = None
    if verifier is not None:
        with _timed(seconds, "verify"):
            applied, verification = _verify(made, target, applied, verifier)
    elif verify and not made.sites:
        verification = Verification((Check(Checked.MODEL, True, "unchanged"),))
    _warn_of_places_left_alone(made)
    if made.sites or made.passes not in [record.plan.passes for record in previous]:
        previous = (*previous, Record(made, applied, verification, seconds, unchecked=unchecked))
    else:  # nothing new is applied, but parameters may have been added since
        previous = (*previous[:-1], with_parameters(previous[-1], made.parameters))
    set_records(target, previous)
    place_mark(target)
    return target


@contextlib.contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - started


def _apply(made: PlanData, target: nn.Module) -> Applied:
    with random_state_kept():
        return apply_edits(target, made.edits)


def _verify(made: PlanData, target: nn.Module, applied: Applied, verifier: Verifier) -> tuple[Applied, Verification]:
    """Return the edits in ``target`` and the result of the checks; if a contract is broken, the model is restored."""
    try:
        found = verifier.judge()
    except BaseException:
        take_back(target, applied)
        raise
    if found.failed:
        take_back(target, applied)
        found = verifier.excuse(found)
        applied = _apply(made, target)
    return applied, verifier.whole(found)


def _in_force(
    made: AnyPlan, model: nn.Module, inputs: Inputs | None, exactly: bool
) -> tuple[AnyPlan, Inputs | None, str]:
    """Return the plan without sites not in force on ``model``, the inputs used, and why that is unknown, if it is.

    Raises:
        PlanError: a site is not in force, and the plan is to be applied ``exactly``.
    """
    if inputs is None:
        return made, None, "the plan was made on the user's own example_inputs, which are not known here"
    try:
        return _without_failing(made, model, inputs, exactly), inputs, ""
    except TraceError as error:
        try:  # the model may have been built for another size
            inputs = trace_candidates(model, candidate_inputs(model)).inputs
            return _without_failing(made, model, inputs, exactly), inputs, ""
        except (InputError, TraceError):
            return made, None, f"the model does not run on made-up inputs like those of the plan, {error}"


def _without_failing(made: AnyPlan, model: nn.Module, inputs: Inputs, exactly: bool) -> AnyPlan:
    passes = list(_known_passes(made))
    while failing := not_in_force(made.sites, Recorded(model, inputs, passes, left=places_left(made.skipped))):
        if exactly:
            site, reason = failing[0]
            where = site.path or "the root"
            raise PlanError(f"the plan does not fit this model: {site.pass_name} at {where}, {site.action}: {reason}")
        made = without(made, failing)
    return made


def _known_passes(made: PlanData) -> Iterator[Pass]:
    """Yield the passes of a plan, except those that are not installed, follow a function, or measure.

    Measurements made elsewhere may differ in the last digit, and the plan already holds the result.
    """
    for name, options in made.passes:
        with contextlib.suppress(RewriterError):
            yield from (item for item in resolve_passes([{name: options}]) if not item.measures)


def _warn_of_places_left_alone(made: PlanData) -> None:
    """Warn of places that stay against the guideline: the code cannot be edited, or it is not known how."""
    refused = [skip for skip in made.skipped if skip.warned_of]
    if refused:
        first = refused[0]
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        where = first.path or "the model itself"
        warnings.warn(
            f"{first.pass_name} left a place in {where} alone{others}: {first.reason}: {first.detail}",
            PlaceLeftAlone,
            stacklevel=4,
        )

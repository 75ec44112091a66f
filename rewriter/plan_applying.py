"""Carry a plan out on a model, and check that every pass kept its promise."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import nn

from rewriter.adapters import refuse_adapters, refuse_mixed_precision
from rewriter.argument_checks import checked_flag
from rewriter.copying import copy_model
from rewriter.edit.edits import apply_edits, take_back
from rewriter.errors import ContractError, InputError, PlaceLeftAlone, PlanError, RewriterError, TraceError
from rewriter.guard import check_model, random_state_kept
from rewriter.guideline import Contract, Pass
from rewriter.in_force import Recorded, not_in_force, places_left
from rewriter.inputs import Inputs, candidate_inputs
from rewriter.manager import resolve_passes
from rewriter.plan_making import without
from rewriter.plan_mark import check_room, place_mark
from rewriter.planning import Plan
from rewriter.reasons import TECHNICAL
from rewriter.record import Record, Verdict, records_in_force, set_records, with_parameters
from rewriter.remembered_inputs import inputs_of_plan
from rewriter.tracing.trace import trace_candidates
from rewriter.verification import EVAL_OUTPUT, Observation, drift_between, observe
from rewriter.verification import compare as compare_observations

_MOST_RUNS = 3
"""How often an original is run again to see whether it does the same: what alternates comes back after two."""


def apply_plan(
    made: Plan,
    model: nn.Module,
    *,
    inplace: bool = False,
    verify: bool = True,
    inputs: Inputs | None = None,
    in_force: bool = False,
    exactly: bool = False,
    seconds: dict[str, float] | None = None,
) -> nn.Module:
    """Carry a plan out; see :meth:`rewriter.Plan.apply`.

    Args:
        made: the plan.
        model: what it is carried out on.
        inplace: on ``model`` itself instead of a copy.
        verify: check the contracts of the passes.
        inputs: what to run the model on; None makes up what the plan was made on.
        in_force: whether the plan was made for this very model just now, so that its edits are known to be in force.
        exactly: refuse to leave out what is not in force.
        seconds: what the steps before this one took.
    """
    check_model(model)
    refuse_adapters(model)
    refuse_mixed_precision(model)
    inplace, verify = checked_flag("inplace", inplace), checked_flag("verify", verify)
    seconds = dict(seconds or {})
    made.check_fits(model)
    check_room(model)
    made_up = inputs is None and bool(made.sites)
    if made_up and (verify or not in_force):
        inputs = inputs_of_plan(made, model, meta=not verify)
    unchecked = ""
    if made.sites and not in_force:
        started = time.perf_counter()
        try:
            made, unchecked = _checked_in_force(made, model, inputs, exactly)
        except TraceError as error:
            try:  # the model may have been made for another size
                inputs = trace_candidates(model, candidate_inputs(model)).inputs
                made, unchecked = _checked_in_force(made, model, inputs, exactly)
            except (InputError, TraceError):
                inputs, unchecked = None, f"the model does not run on made-up inputs like those of the plan, {error}"
        seconds["record again"] = time.perf_counter() - started
    started = time.perf_counter()
    target = model if inplace else copy_model(model)
    seconds["copy"] = time.perf_counter() - started

    started = time.perf_counter()
    before = None
    if verify and inputs is not None and made.sites:
        try:
            before = _observe_original(target, inputs)
        except InputError:
            if not made_up or inputs.origin != "example_inputs":
                raise  # on values that were made up for the user's own inputs nothing need run
    seconds["verify"] = time.perf_counter() - started

    previous = records_in_force(target)
    started = time.perf_counter()
    preserving = _preserving_alone(made, target, inputs, before) if before is not None and inputs is not None else ()
    seconds["verify"] += time.perf_counter() - started

    started = time.perf_counter()
    with random_state_kept():
        applied = apply_edits(target, made.edits)
    seconds["apply"] = time.perf_counter() - started

    verdict = None
    if before is not None and inputs is not None:
        started = time.perf_counter()
        try:
            verdict = _judge(target, inputs, before, _contracts(made, _names(made)))
        except BaseException:
            take_back(target, applied)
            raise
        seconds["verify"] += time.perf_counter() - started
        if verdict.failed:
            take_back(target, applied)
            verdict = _without_own(verdict, target, inputs, before, _contracts(made, _names(made)))
            if verdict.failed:
                raise ContractError(_broken(made, target, inputs, before, verdict))
            with random_state_kept():
                applied = apply_edits(target, made.edits)
        verdict = Verdict((*verdict.checks[:1], *preserving, *verdict.checks[1:]))
    elif verify and not made.sites:
        verdict = Verdict((("model", True, "unchanged"),))
    _warn_of_places_left_alone(made)
    if made.sites or made.passes not in [record.plan.passes for record in previous]:
        previous = (*previous, Record(made, applied, verdict, seconds, unchecked=unchecked))
    else:  # nothing is done anew, but parameters may have come since
        previous = (*previous[:-1], with_parameters(previous[-1], made.parameters))
    set_records(target, previous)
    place_mark(target)
    return target


def _checked_in_force(made: Plan, model: nn.Module, inputs: Inputs | None, exactly: bool) -> tuple[Plan, str]:
    """The plan without sites that are not in force on ``model``, and why that could not be found out, if so.

    Raises:
        PlanError: a site is not in force, and the plan is to be carried out ``exactly``.
    """
    if inputs is None:
        return made, "the plan was made on the user's own example_inputs, which are not known here"
    passes = list(_known_passes(made))
    while failing := not_in_force(made.sites, Recorded(model, inputs, passes, left=places_left(made.skipped))):
        if exactly:
            site, reason = failing[0]
            where = site.path or "the root"
            raise PlanError(f"the plan does not fit this model: {site.pass_name} at {where}, {site.action}: {reason}")
        made = without(made, failing)
    return made, ""


def _known_passes(made: Plan) -> Iterator[Pass]:
    """The passes of a plan without those that are not installed here, that follow a function, or that measure.

    What was measured elsewhere need not come out alike to the last digit, and a plan says what is to be.
    """
    for name, options in made.passes:
        with contextlib.suppress(RewriterError):
            yield from (item for item in resolve_passes([{name: options}]) if not item.measures)


def _warn_of_places_left_alone(made: Plan) -> None:
    """A place where the guideline applies and the code cannot be edited should not go unnoticed."""
    refused = [skip for skip in made.skipped if skip.reason in TECHNICAL]
    if refused:
        first = refused[0]
        others = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        warnings.warn(
            f"{first.pass_name} left {first.path or 'the model'} alone{others}: {first.reason}: {first.detail}",
            PlaceLeftAlone,
            stacklevel=4,
        )


def _observe_original(model: nn.Module, inputs: Inputs) -> Observation:
    try:
        return observe(model, inputs)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} does not run on the {inputs.origin} it is to be verified on: "
            f"{type(error).__name__}: {error}. Give an input that it runs on, or verify=False."
        ) from error


def _judge(
    model: nn.Module, inputs: Inputs, before: Observation, contracts: list[Contract], *, training: bool = True
) -> Verdict:
    """Whether the edited ``model`` keeps ``contracts``; one that does not run keeps none."""
    try:
        after = observe(model, inputs, training=training)
    except Exception as error:
        return Verdict((("eval mode", False, f"{type(error).__name__}: {error}"),))
    verdict = compare_observations(before, after, contracts)
    if any(name == EVAL_OUTPUT and held is False for name, held, _ in verdict.checks):
        # it may count its calls where nothing can put that back
        drift = drift_between(after, observe(model, inputs, training=False))
        verdict = compare_observations(replace(before, spread=max(before.spread, drift)), after, contracts)
    return verdict


def _without_own(
    verdict: Verdict, original: nn.Module, inputs: Inputs, before: Observation, contracts: list[Contract]
) -> Verdict:
    """The verdict without blame for what the original model, run again, does not keep either.

    A generator that it holds goes on with every run, and nothing can put that back.
    """
    failed, own = {name for name, held, _ in verdict.checks if held is False}, dict[str, str]()
    for _ in range(_MOST_RUNS):
        try:
            again = compare_observations(before, observe(original, inputs), contracts)
        except Exception as error:
            own = dict.fromkeys(failed, f"it does not run any more, {type(error).__name__}: {error}")
        else:
            own.update((name, detail) for name, held, detail in again.checks if held is False)
        if failed <= set(own):
            break
    said = "the model itself does not do the same in each run"
    return Verdict(
        tuple(
            (name, None, f"{said}: {own[name]}") if held is False and name in own else (name, held, detail)
            for name, held, detail in verdict.checks
        )
    )


def _preserving_alone(
    made: Plan, model: nn.Module, inputs: Inputs, before: Observation
) -> tuple[tuple[str, bool | None, str], ...]:
    """Where some passes change the eval output: the check that the others, by themselves, do not."""
    names = _names(made)
    alone = [name for name, contract in zip(names, _contracts(made, names), strict=True) if contract.eval_output]
    if not alone or alone == names:
        return ()
    verdict = _judge_alone(made, model, inputs, before, alone, training=False)
    if verdict.failed:
        verdict = _without_own(verdict, model, inputs, before, _contracts(made, alone))
    check = next((check for check in verdict.checks if check[0] == EVAL_OUTPUT), verdict.checks[0])
    if check[1] is False:
        raise ContractError(_broken(made, model, inputs, before, Verdict((check,))))
    return ((f"eval output of {', '.join(alone)} alone", *check[1:]),)


def _names(made: Plan) -> list[str]:
    """The passes that edit something."""
    return list(dict.fromkeys(site.pass_name for site in made.sites))


def _contracts(made: Plan, names: Sequence[str]) -> list[Contract]:
    return [made.contracts.get(name, Contract()) for name in names]


def _judge_alone(
    made: Plan, model: nn.Module, inputs: Inputs, before: Observation, names: Sequence[str], *, training: bool = True
) -> Verdict:
    """Whether the passes called ``names`` keep their contracts by themselves; the model is as it was afterwards."""
    with random_state_kept():
        applied = apply_edits(model, [e for s in made.sites if s.pass_name in names for e in s.edits])
    try:
        return _judge(model, inputs, before, _contracts(made, names), training=training)
    finally:
        take_back(model, applied)


def _broken(made: Plan, model: nn.Module, inputs: Inputs, before: Observation, verdict: Verdict) -> str:
    """Name the pass that broke its contract, by applying each alone."""
    names = _names(made)
    culprits = [name for name in names if _judge_alone(made, model, inputs, before, [name]).failed]
    return (
        f"pass {', '.join(culprits or names)} broke its contract ({'; '.join(verdict.failed)}). "
        "The model is as it was; leave the pass out with passes=, or the place with skip=."
    )

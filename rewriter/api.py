"""The public verbs."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from rewriter.edit.classes import class_name, original_class
from rewriter.edit.edits import apply_edits, take_back
from rewriter.errors import ContractError, InputError, ModelError, PlaceLeftAlone, SelectorError, UndoError
from rewriter.freshness import carries_trained_weights
from rewriter.guard import check_model, collector_paused, random_state_kept
from rewriter.guideline import Advice, Contract, Finding, Site, Skipped
from rewriter.inputs import Inputs, candidate_inputs
from rewriter.manager import resolve_passes
from rewriter.planning import Plan, fingerprint
from rewriter.reasons import TECHNICAL, Reason
from rewriter.record import Record, Report, Verdict, is_folded, make_report, records_in_force, records_of, set_records
from rewriter.selection import Selection, as_sequence, select, selector_texts
from rewriter.tracing.trace import Trace, trace_model
from rewriter.verification import Observation, observe
from rewriter.verification import compare as compare_observations

_PRESERVE = ("auto", "eval", "nothing")


def rewrite(
    model: nn.Module,
    passes: Any = None,
    *,
    example_inputs: Any = None,
    input_size: Any = None,
    only: Any = None,
    skip: Any = None,
    preserve: str = "auto",
    inplace: bool = False,
    verify: bool = True,
) -> nn.Module:
    """Apply guidelines to ``model`` and return it, an object of the same class.

    Rewrite before the optimizer, EMA, ``torch.compile`` and DDP are built: with ``inplace=False`` the result is a copy
    with parameters of its own.

    Args:
        model: any ``nn.Module`` that runs on the input; its mode, device and data types are kept.
        passes: None for all installed passes, ``()`` for none, or names, instances and one-key dicts with options.
        example_inputs: a tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of tensors.
        input_size: instead of examples: an int, ``(H, W)`` or ``(C, H, W)``. If neither is given the size is read from
            the model's own configuration.
        only, skip: module paths, globs, ``"re:…"`` patterns or classes that limit where edits are made.
        preserve: ``"auto"`` holds back passes that change the eval output if the model carries trained weights;
            ``"eval"`` always, ``"nothing"`` never.
        inplace: edit ``model`` itself instead of a copy.
        verify: check each pass's contract by running the model before and after.

    Raises:
        RewriterError: every refusal; the model given is then exactly as it was.
    """
    started = time.perf_counter()
    made, traced, seconds = plan_traced(
        model, passes, example_inputs=example_inputs, input_size=input_size, only=only, skip=skip, preserve=preserve
    )
    seconds["plan"] = time.perf_counter() - started - seconds["trace"]
    inputs = traced.inputs if traced else None
    del traced  # its graphs need not outlive the plan
    return apply_plan(made, model, inplace=inplace, verify=verify, inputs=inputs, seconds=seconds)


def plan(
    model: nn.Module,
    passes: Any = None,
    *,
    example_inputs: Any = None,
    input_size: Any = None,
    only: Any = None,
    skip: Any = None,
    preserve: str = "auto",
) -> Plan:
    """What :func:`rewrite` would do, without doing it. The arguments are those of :func:`rewrite`."""
    return plan_traced(
        model, passes, example_inputs=example_inputs, input_size=input_size, only=only, skip=skip, preserve=preserve
    )[0]


def apply_plan(
    made: Plan,
    model: nn.Module,
    *,
    inplace: bool = False,
    verify: bool = True,
    inputs: Inputs | None = None,
    seconds: dict[str, float] | None = None,
) -> nn.Module:
    """Carry a plan out; see :meth:`rewriter.Plan.apply`."""
    check_model(model)
    seconds = dict(seconds or {})
    made.check_fits(model)
    if verify and inputs is None and made.sites:
        inputs = _planned_inputs(made, model)
    started = time.perf_counter()
    target = model if inplace else copy_model(model)
    seconds["copy"] = time.perf_counter() - started

    started = time.perf_counter()
    before = _observe_original(target, inputs) if verify and inputs is not None and made.sites else None
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
            raise ContractError(_broken(made, target, inputs, before, verdict))
        verdict = Verdict((*verdict.checks[:1], *preserving, *verdict.checks[1:]))
    elif verify and not made.sites:
        verdict = Verdict((("model", True, "unchanged"),))
    _warn_of_places_left_alone(made)
    if made.sites or made.passes not in [record.plan.passes for record in previous]:
        previous = (*previous, Record(made, applied, verdict, seconds))
    set_records(target, previous)
    return target


def undo(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Take every rewrite of ``model`` back: classes, structure, hyper-parameters and forward; values stay.

    Raises:
        UndoError: the model was not rewritten.
    """
    check_model(model)
    if not records_of(model):
        raise UndoError(f"{type(model).__name__} was not rewritten, or is only a part of a model that was")
    if is_folded(model):
        raise UndoError("the model was folded for export: its weights are not those of the original any more")
    target = model if inplace else copy_model(model)
    for record in reversed(records_of(target)):
        take_back(target, record.applied)
    set_records(target, ())
    return target


def report(model: nn.Module) -> Report:
    """What was done to a rewritten model, what was skipped and why, what was verified, and what is stale by now."""
    check_model(model)
    return make_report(model)


@collector_paused()
def trace(model: nn.Module, example_inputs: Any = None, input_size: Any = None) -> Trace:
    """Run a skeleton of ``model`` and record it; the model itself is not touched.

    Raises:
        ModelError, InputError, TraceError: with the module, the source line and the remedy.
    """
    check_model(model)
    candidates = candidate_inputs(model, example_inputs, input_size)
    for inputs in candidates[:-1]:
        try:
            return trace_model(model, inputs, backends=("meta",))
        except Exception:  # the model reads another number of channels than its configuration says
            continue
    return trace_model(model, candidates[-1])


def to_graph_module(model: nn.Module, example_inputs: Any = None, input_size: Any = None) -> fx.GraphModule:
    """The model as one flat ``fx.GraphModule`` that shares its parameters.

    It is fixed to the mode, batch size and resolution that it was traced with.

    Raises:
        TraceError: part of the model runs outside torch's sight.
    """
    from rewriter.tracing.export import graph_module

    return graph_module(trace(model, example_inputs, input_size))


def original_state_dict(model: nn.Module) -> dict[str, Any]:
    """A state dict that the model loads with ``strict=True`` as it was before the rewrite.

    Without what the rewrite added (buffers of scale equalizers); all other values are those of now.

    Raises:
        ModelError: the model was folded, so its weights are not those of the original any more.
    """
    check_model(model)
    if is_folded(model):
        raise ModelError("the model was folded for export; ask the model that it was folded from")
    state = model.state_dict()
    if not records_of(model):
        return state
    added = [f"{e.path}.{e.name}.".lstrip(".") for r in records_of(model) for e in r.applied.edits if e.kind == "add"]  # type: ignore[attr-defined]
    return type(state)((key, value) for key, value in state.items() if not key.startswith(tuple(added)))


def copy_model(model: nn.Module) -> nn.Module:
    """``deepcopy`` that also copies tensors cached during a forward pass, which plain ``deepcopy`` refuses."""
    with _DetachedCopies():
        return copy.deepcopy(model)


class _DetachedCopies(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__deepcopy__ and not args[0].is_leaf:
            args = (args[0].detach(), *args[1:])
        return func(*args, **(kwargs or {}))


@collector_paused()
def plan_traced(
    model: nn.Module,
    passes: Any,
    *,
    example_inputs: Any = None,
    input_size: Any = None,
    only: Any = None,
    skip: Any = None,
    preserve: str = "auto",
) -> tuple[Plan, Trace | None, dict[str, float]]:
    """The plan, the trace that it was made from (None without passes) and the seconds that tracing took."""
    check_model(model)
    if is_folded(model):
        raise ModelError("the model was folded for export; rewrite the model that it was folded from")
    if preserve not in _PRESERVE:
        raise SelectorError(f"preserve: expected one of {', '.join(map(repr, _PRESERVE))}, found {preserve!r}")
    resolved = resolve_passes(passes)
    only, skip = (None if selectors is None else as_sequence(selectors) for selectors in (only, skip))
    selection = select(model, only, skip)
    changing = {item.name for item in resolved if not item.contract.eval_output}
    trained = preserve == "auto" and bool(changing) and carries_trained_weights(model)
    held_back = changing if preserve == "eval" or (trained and passes is None) else set()
    notes: list[str] = []
    started = time.perf_counter()
    traced = trace(model, example_inputs, input_size) if resolved else None
    seconds = {"trace": time.perf_counter() - started}
    findings: dict[type, list[Any]] = {Site: [], Skipped: [], Advice: []}
    if traced is not None and traced.backend != "meta":
        notes.append(f"traced on {traced.backend} tensors: {traced.notes[-1].split(': ', 1)[-1]}")
    if traced is not None:
        traced.may_measure = not held_back
    claims = {site.claim: site for record in records_in_force(model) for site in record.plan.sites}
    for item in resolved:
        for finding in item.find(traced) if traced is not None else ():
            found = _filtered(finding, selection, held_back, claims)
            findings[type(found)].append(found)
    notes = _notes_on_preserving(findings, changing if trained else set(), preserve) + notes
    request = {
        "input": traced.inputs.origin if traced else "none",
        "input_size": list(traced.inputs.image_size) if traced and traced.inputs.image_size else None,
        "only": selector_texts(only),
        "skip": selector_texts(skip),
        "preserve": preserve,
    }
    made = Plan(
        class_name(original_class(type(model))),
        fingerprint(model),
        tuple((item.name, item.options()) for item in resolved),
        tuple(findings[Site]),
        tuple(findings[Skipped]),
        tuple(findings[Advice]),
        tuple(notes),
        request,
        {item.name: item.contract for item in resolved},
    )
    return made, traced, seconds


def _notes_on_preserving(findings: Mapping[type, list[Any]], changing: set[str], preserve: str) -> list[str]:
    """What was held back, or changes trained weights' output because it was asked for by name."""
    held = dict.fromkeys(skip.pass_name for skip in findings[Skipped] if skip.reason is Reason.HELD_BACK)
    if held:
        why = "preserve='eval'" if preserve == "eval" else "the model carries trained weights"
        how = "preserve='nothing' applies them"
        if preserve == "auto":
            how += ", and naming a pass applies it (where only the backbone is pretrained)"
        return [f"held back: {', '.join(held)}, because {why}; {how}"]
    named = dict.fromkeys(site.pass_name for site in findings[Site] if site.pass_name in changing)
    return [f"{', '.join(named)} changes the output of trained weights, as asked for by name"] if named else []


def _filtered(found: Finding, selection: Selection, held_back: set[str], claims: dict[str, Site]) -> Finding:
    if isinstance(found, Advice) and not selection.allows(found.path):
        return Skipped(found.pass_name, found.path, found.pattern, Reason.FILTERED, f"{found.advice}: not selected")
    if not isinstance(found, Site):
        return found
    if found.pass_name in held_back:
        detail = f"{found.action}: would change the eval output"
        return Skipped(found.pass_name, found.path, found.pattern, Reason.HELD_BACK, detail)
    outside = [path for path in {found.path, *(e.path for e in found.edits)} if not selection.allows(path)]
    if outside:
        return Skipped(found.pass_name, found.path, found.pattern, Reason.FILTERED, f"{found.action}: not selected")
    first = claims.setdefault(found.claim, found) if found.claim else found
    if first.pass_name != found.pass_name:
        detail = f"{first.pass_name} acts here ({first.action}); one kind of noise at one pooling"
        return Skipped(found.pass_name, found.path, found.pattern, Reason.CLAIMED, detail)
    return found


def inputs_of_rewrite(model: nn.Module) -> Inputs | None:
    """What the latest rewrite of ``model`` was planned on; None if they all were planned on the user's own examples."""
    found = (_planned_inputs(record.plan, model) for record in reversed(records_of(model)))
    return next((inputs for inputs in found if inputs is not None), None)


def _planned_inputs(made: Plan, model: nn.Module) -> Inputs | None:
    """What a plan was made on, made up once more; None if that cannot be: the user's own examples."""
    size = made.request.get("input_size")
    if size is None and made.request.get("input") in ("example_inputs", "none"):
        return None
    try:
        return trace(model, input_size=tuple(size) if size is not None else None).inputs
    except InputError:
        return None


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
    return compare_observations(before, after, contracts)


def _preserving_alone(
    made: Plan, model: nn.Module, inputs: Inputs, before: Observation
) -> tuple[tuple[str, bool | None, str], ...]:
    """Where some passes change the eval output: the check that the others, by themselves, do not."""
    names = _names(made)
    alone = [name for name, contract in zip(names, _contracts(made, names), strict=True) if contract.eval_output]
    if not alone or alone == names:
        return ()
    verdict = _judge_alone(made, model, inputs, before, alone, training=False)
    check = next((check for check in verdict.checks if check[0] == "eval output"), verdict.checks[0])
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

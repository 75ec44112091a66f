"""Make a plan from a model and a request; every edit in it is known to be in force."""

from __future__ import annotations

import time
from collections.abc import Sequence

from torch import nn

from rewriter.analysis.trained_weights import carries_trained_weights, is_told
from rewriter.edit.classes import class_name, original_class
from rewriter.errors import ModelError, SelectorError
from rewriter.guideline.base import Advice, Finding, Passes, Site, Skipped
from rewriter.guideline.deciding import findings_of
from rewriter.guideline.registry import resolve_passes
from rewriter.model.adapters import refuse_adapters, refuse_mixed_precision
from rewriter.model.collector import collector_paused
from rewriter.model.refusal import check_model
from rewriter.plain_data import json_value
from rewriter.planning.decide import decide
from rewriter.planning.parameter_kinds import find_kinds
from rewriter.planning.plan import Plan
from rewriter.planning.record import is_folded
from rewriter.planning.remembered_inputs import inputs_to_run_on
from rewriter.planning.selection import Preserve, Selectors, as_sequence, select, selector_texts
from rewriter.planning.structure import fingerprint
from rewriter.reasons import Reason
from rewriter.tracing.input_description import describe_inputs
from rewriter.tracing.input_types import ExampleInputs, InputSize
from rewriter.tracing.trace import Trace, trace_candidates

_PRESERVE = ("auto", "eval", "nothing")


@collector_paused()
def make_plan(
    model: nn.Module,
    passes: Passes | None,
    *,
    example_inputs: ExampleInputs | None = None,
    input_size: InputSize | None = None,
    only: Selectors | None = None,
    skip: Selectors | None = None,
    preserve: Preserve = "auto",
) -> tuple[Plan, Trace | None, dict[str, float]]:
    """Return the plan, the trace it was made from (None without passes) and the duration of each step in seconds.

    Raises:
        RewriterError: as :func:`rewriter.plan`.
    """
    check_model(model)
    refuse_adapters(model)
    refuse_mixed_precision(model)
    if is_folded(model):
        raise ModelError("the model was folded for export; rewrite the model that it was folded from")
    if not isinstance(preserve, str) or preserve not in _PRESERVE:
        raise SelectorError(f"preserve: expected one of {', '.join(map(repr, _PRESERVE))}, found {preserve!r}")
    resolved = resolve_passes(passes)
    only, skip = (None if selectors is None else as_sequence(selectors) for selectors in (only, skip))
    selection = select(model, only, skip)
    changing = {item.name for item in resolved if not item.contract.eval_output}
    trained = preserve == "auto" and bool(changing) and carries_trained_weights(model)
    held_back = changing if preserve == "eval" or (trained and passes is None) else set()
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    traced = trace_candidates(model, inputs_to_run_on(model, example_inputs, input_size)) if resolved else None
    seconds["trace"] = time.perf_counter() - started
    started = time.perf_counter()
    found = [finding for item in resolved for finding in findings_of(item, traced)] if traced is not None else []
    seconds["plan"] = time.perf_counter() - started
    started = time.perf_counter()
    findings = decide(found, traced, resolved, selection, held_back) if traced is not None else []
    seconds["record again"] = time.perf_counter() - started
    notes = _notes_on_preserving(findings, changing if trained else set(), preserve, told=not trained or is_told(model))
    if traced is not None and traced.backend != "meta":
        why = traced.notes[-1].split(": ", 1)[-1].split(" mode: ", 1)[-1].partition(" The input came from")[0]
        why = f"{why.partition('. ')[0].rstrip('.')}."  # torch goes on for paragraphs
        notes.append(f"traced on {traced.backend} tensors, for on tensors without values the model does not run: {why}")
    request = {
        "input": str(traced.inputs.origin) if traced else "none",
        "input_size": list(traced.inputs.image_size) if traced and traced.inputs.image_size else None,
        "arguments": describe_inputs(traced.inputs, model) if traced else None,
        "only": selector_texts(only),
        "skip": selector_texts(skip),
        "preserve": preserve,
    }
    made = Plan(
        class_name(original_class(type(model))),
        fingerprint(model),
        tuple((item.name, json_value(item.options(), "options")) for item in resolved),
        tuple(item for item in findings if isinstance(item, Site)),
        tuple(item for item in findings if isinstance(item, Skipped)),
        tuple(item for item in findings if isinstance(item, Advice)),
        tuple(notes),
        request,
        {item.name: item.contract for item in resolved},
        find_kinds(traced) if traced else {},
    )
    return made, traced, seconds


def _notes_on_preserving(findings: Sequence[Finding], changing: set[str], preserve: str, *, told: bool) -> list[str]:
    """Return notes on what was held back, or changes trained weights' output because it was requested by name."""
    skipped = [finding for finding in findings if isinstance(finding, Skipped)]
    held = dict.fromkeys(skip.pass_name for skip in skipped if skip.reason is Reason.HELD_BACK)
    if held:
        why = "preserve='eval'" if preserve == "eval" else "the model carries trained weights"
        how = "preserve='nothing' applies them"
        if preserve == "auto":
            how += ", and naming a pass applies it (where only the backbone is pretrained); a training that goes on"
            how += " gives its plan, plan_file="
        return [f"held back: {', '.join(held)}, because {why}; {how}"]
    named = dict.fromkeys(f.pass_name for f in findings if isinstance(f, Site) and f.pass_name in changing)
    weights = "trained weights" if told else "weights that may be trained, for no norm tells"
    return [f"{', '.join(named)} changes the output of {weights}, as asked for by name"] if named else []

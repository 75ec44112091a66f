"""``rewriter.check``: what the guidelines find in a subject."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from rewriter.guideline.base import Advice, Pass, Passes, Recommendation, Site, Skipped
from rewriter.guideline.deciding import checked_code, findings_of
from rewriter.guideline.lint import Lint, Location
from rewriter.guideline.registry import installed_passes, passes_by_code, resolve_passes
from rewriter.lint.findings import Finding, Findings
from rewriter.lint.selection import Codes, chosen_codes
from rewriter.lint.training import Training, options_of
from rewriter.model.refusal import check_model
from rewriter.planning.decide import decide
from rewriter.planning.remembered_inputs import inputs_to_run_on
from rewriter.planning.selection import select as selected_modules
from rewriter.subjects.function_module import as_module
from rewriter.tracing.input_types import ExampleInputs, InputSize
from rewriter.tracing.trace import Trace, trace_candidates


def check(
    subject: Callable[..., Any],
    passes: Passes | None = None,
    *,
    select: str | Iterable[str] | None = None,
    ignore: str | Iterable[str] | None = None,
    training: Training | None = None,
    example_inputs: ExampleInputs | None = None,
    input_size: InputSize | None = None,
) -> Findings:
    """Return what the guidelines find in ``subject``; nothing is changed.

    Args:
        subject: a model, or a function with ``example_inputs``.
        passes: None for all installed passes that have codes; otherwise as for :func:`rewriter.rewrite`.
        select, ignore: codes, or beginnings of codes such as ``"RW02"``; of two that fit, the longer one decides.
        training: the options of the training, to be looked at too: parsed arguments, a mapping, a YAML or JSON file, or
            an object with fields.
        example_inputs, input_size: as for :func:`rewriter.rewrite`.

    Raises:
        SelectorError: an unknown pass or code.
        RewriterError: any other refusal, as of :func:`rewriter.plan`.

    Example:
        >>> model = timm.create_model("test_resnet", drop_rate=0.2)
        >>> for finding in rewriter.check(model, select="RW02"):
        ...     print(finding.code, finding.severity, finding.fixable)
        RW0202 warning True
    """
    model = as_module(subject)
    check_model(model)
    wanted = [item for item in resolve_passes(_with_codes() if passes is None else passes) if item.codes]
    lints = {lint.code: lint for item in wanted for lint in item.codes}
    codes = chosen_codes(select, ignore, list(passes_by_code()))
    wanted = [item for item in wanted if any(codes.allow(lint.code) for lint in item.codes)]
    options = options_of(training) if training is not None else None
    traced = trace_candidates(model, inputs_to_run_on(model, example_inputs, input_size))
    found: list[Finding] = []
    for item in wanted:
        found += _of_model(item, traced, lints, codes)
        if options is not None:
            found += _of_training(item, item.check_training(traced, options), lints, codes)
    return Findings(sorted(found, key=_place), list(lints.values()))


def _with_codes() -> list[str]:
    return [name for name, cls in installed_passes().items() if cls.codes]


def _of_model(item: Pass, traced: Trace, lints: dict[str, Lint], codes: Codes) -> Iterator[Finding]:
    """Each pass alone: what two would contend for is a finding of both."""
    for found in decide(findings_of(item, traced), traced, [item], selected_modules(traced.model)):
        if found.code and codes.allow(found.code):
            lint = lints[found.code]
            active = isinstance(found, Advice) or not found.inactive
            yield _finding(lint, found.path, found.location, _message(found), active, isinstance(found, Site))


def _of_training(
    item: Pass, found: Iterable[Recommendation], lints: dict[str, Lint], codes: Codes
) -> Iterator[Finding]:
    for advice in found:
        if codes.allow(checked_code(item, advice.code)):
            yield _finding(lints[advice.code], "", None, f"{advice.advice}: {advice.reason}", True, False)


def _finding(lint: Lint, path: str, location: Location | None, message: str, active: bool, fixable: bool) -> Finding:
    file, line = (location.file, location.line) if location is not None else (None, None)
    return Finding(lint.code, path, file, line, f"{lint.title}: {message}", str(lint.severity), active, fixable)


def _message(found: Site | Skipped | Advice) -> str:
    if isinstance(found, Site):
        return f"{found.action}, because {found.reason}"
    return f"{found.advice}, because {found.reason}" if isinstance(found, Advice) else found.detail


def _place(finding: Finding) -> tuple[str, int, str, str]:
    return finding.file or "", finding.line or 0, finding.path, finding.code

"""``rewriter rewrite NAME``: rewrite a model, check it, report, and write it to a directory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rewriter.cli.asked import Asked
from rewriter.cli.options import (
    CHECKPOINT,
    INPUT_SIZE,
    JSON,
    MODEL_KWARGS,
    NAME,
    ONLY,
    PASS,
    PRESERVE,
    PRETRAINED,
    SKIP,
    Preserve,
    errors_reported,
    option,
    output_console,
    print_json,
    stdout_kept_clean,
)

if TYPE_CHECKING:
    from torch import nn

    from rewriter.cli.model import Wanted

_OUTPUT = Annotated[Path | None, option("--output", "-o", metavar="DIRECTORY", help="Write the rewritten model here.")]
_PLAN = Annotated[
    Path | None, option("--plan", metavar="FILE", help="Apply this plan (of rewriter plan --json) and nothing else.")
]
_NO_VERIFY = Annotated[bool, option("--no-verify", help="Do not run the model to check the passes' contracts.")]


def rewrite_command(
    name: NAME,
    output: _OUTPUT = None,
    model_kwargs: MODEL_KWARGS = None,
    input_size: INPUT_SIZE = None,
    passes: PASS = None,
    only: ONLY = None,
    skip: SKIP = None,
    preserve: PRESERVE = Preserve.AUTO,
    pretrained: PRETRAINED = False,
    checkpoint: CHECKPOINT = None,
    plan: _PLAN = None,
    no_verify: _NO_VERIFY = False,
    as_json: JSON = False,
) -> None:
    """Rewrite a model, check what it must preserve, and report; with -o, write it to a directory."""
    if plan is not None and (passes or only or skip or input_size or preserve is not Preserve.AUTO):
        raise typer.BadParameter("--plan says what is done: leave out --pass, --only, --skip, --preserve, --input-size")
    asked = Asked(name, model_kwargs, input_size, passes, only, skip, preserve, pretrained, checkpoint)
    with errors_reported(as_json):
        import rewriter
        from rewriter.cli.model import Wanted, Work
        from rewriter.cli.output import show_diff, show_saved, show_seconds, show_sites, show_skipped, show_verdict
        from rewriter.planning.plan_file import read_plan
        from rewriter.planning.record import records_of
        from rewriter.storage.directory import check_target

        wanted, work = Wanted(asked), Work()
        with stdout_kept_clean(as_json):
            if output is not None:
                check_target(output)
            entry = wanted.create(work)
            steps = "tracing, planning and rewriting" if no_verify else "tracing, planning, rewriting and verifying"
            with work.step("rewrite", f"{steps} {name}"):
                if plan is not None:
                    model = read_plan(plan).apply(entry.model, verify=not no_verify)
                else:
                    model = rewriter.rewrite(entry.model, **wanted.arguments(entry), verify=not no_verify)
            record = records_of(model)[-1]
            del work.seconds["rewrite"]  # the record lists its parts
            work.seconds |= record.seconds
            recipe = wanted.recipe(entry, record) if output is not None else None
            if output is not None:
                with work.step("save", f"writing {output}"):
                    rewriter.save(model, output, recipe=recipe)
        if as_json:
            print_json(_rewrite_as_data(wanted, model, output, work.seconds))
            return
        with output_console() as console:
            wanted.show(console, entry, record.plan)
            show_sites(console, record.plan, done=True)
            show_diff(console, record.plan, entry.model)
            show_skipped(console, record.plan)
            show_verdict(console, record)
            show_seconds(console, work.seconds)
            if output is not None:
                show_saved(console, output, rebuilds=recipe is not None, original=wanted.described_original(entry))


def _rewrite_as_data(
    wanted: Wanted, model: nn.Module, output: Path | None, seconds: dict[str, float]
) -> dict[str, Any]:
    import rewriter
    from rewriter.edit.classes import class_name, original_class

    report = rewriter.report(model)
    return {
        "model": wanted.name,
        "kwargs": {key: value if _is_json(value) else repr(value) for key, value in wanted.model_kwargs.items()},
        "class": class_name(original_class(type(model))),
        "applied": len(report.applied),
        "inactive": len(report.inactive),
        "skipped": len(report.skipped),
        "verified": report.verified,
        "report": report.to_data(),
        "milliseconds": {step: round(1000 * value, 1) for step, value in seconds.items()},
        "directory": None if output is None else str(output),
    }


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True

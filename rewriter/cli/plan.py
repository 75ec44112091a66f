"""``rewriter plan NAME``: what a rewrite would do, where and why."""

from __future__ import annotations

from typing import Annotated

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
    stdout_kept_clean,
)

_DIFF = Annotated[bool, option("--diff", help="Show how the source of methods changes.")]


def plan_command(
    name: NAME,
    model_kwargs: MODEL_KWARGS = None,
    input_size: INPUT_SIZE = None,
    passes: PASS = None,
    only: ONLY = None,
    skip: SKIP = None,
    preserve: PRESERVE = Preserve.AUTO,
    pretrained: PRETRAINED = False,
    checkpoint: CHECKPOINT = None,
    diff: _DIFF = False,
    as_json: JSON = False,
) -> None:
    """Show what a rewrite would do, where and why, without doing it."""
    asked = Asked(name, model_kwargs, input_size, passes, only, skip, preserve, pretrained, checkpoint)
    with errors_reported(as_json):
        import rewriter
        from rewriter.cli.model import Wanted, Work
        from rewriter.cli.output import show_diff, show_seconds, show_sites, show_skipped

        wanted, work = Wanted(asked), Work()
        with stdout_kept_clean(as_json):
            entry = wanted.create(work, meta=not pretrained and checkpoint is None)
            with work.step("plan", f"tracing and planning {name}"):
                made = rewriter.plan(entry.model, **wanted.arguments(entry))
            if wanted.needs_values(made) and any(parameter.is_meta for parameter in entry.model.parameters()):
                entry = wanted.create(work)
                with work.step("plan", f"measuring and planning {name}"):
                    made = rewriter.plan(entry.model, **wanted.arguments(entry))
        if as_json:
            print(made.to_json())
            return
        with output_console() as console:
            wanted.show(console, entry, made)
            show_sites(console, made, done=False)
            if diff:
                show_diff(console, made, entry.model)
            show_skipped(console, made)
            show_seconds(console, work.seconds)

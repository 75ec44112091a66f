"""The work of ``rewriter check``: make the subject, check it, and mend what is found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rewriter
from rewriter.cli.asked import Asked
from rewriter.cli.model import Wanted, Work
from rewriter.cli.options import output_console
from rewriter.cli.output import show_diff
from rewriter.guideline.registry import passes_by_code
from rewriter.lint.findings import Finding, Findings
from rewriter.lint.selection import chosen_codes
from rewriter.planning.selection import select
from rewriter.storage.directory import check_target


class Checking:
    """A subject, and what is asked of it.

    Args:
        asked: the request.
        ignored: by a selector of module paths, codes that are left out there.
        shown: whether steps are shown.
    """

    def __init__(self, asked: Asked, ignored: Mapping[str, Sequence[str]], shown: bool) -> None:
        self._wanted, self._work, self._ignored = Wanted(asked), Work(shown=shown), ignored
        self._entry: Any = None

    def find(self, codes: str | None, left_out: str | None, training: Path | None) -> Findings:
        """What the guidelines find in the chosen modules."""
        wanted = self._wanted
        needs_values = wanted.pretrained or wanted.checkpoint is not None
        self._entry = wanted.create(self._work, meta=not needs_values)
        model, arguments = self._entry.model, wanted.arguments(self._entry)
        inputs = {key: arguments[key] for key in ("example_inputs", "input_size")}
        with self._work.step("check", f"checking {wanted.name}"):
            found = rewriter.check(
                model, wanted.resolved, select=codes, ignore=left_out, training=training, **inputs
            )  # fmt: skip
        chosen, known = select(model, wanted.only, wanted.skip), list(passes_by_code())
        ignored = [(select(model, path), chosen_codes(codes, None, known)) for path, codes in self._ignored.items()]

        def is_wanted(finding: Finding) -> bool:
            left_out = any(where.allows(finding.path) and codes.allow(finding.code) for where, codes in ignored)
            return chosen.allows(finding.path) and not left_out

        return found.where(is_wanted)

    def show_diff(self, findings: Findings) -> None:
        """Print how :meth:`fix` would change the source."""
        made = rewriter.plan(self._entry.model, **self._arguments(findings))
        with output_console() as console:
            show_diff(console, made, self._entry.model)
            if not made.sites:
                console.print("nothing to mend by a rewrite")

    def fix(self, findings: Findings, output: Path) -> None:
        """Write the model to ``output``, rewritten where something that is mended by a rewrite was found."""
        check_target(output)
        wanted = self._wanted
        entry = wanted.create(self._work)
        model = rewriter.rewrite(entry.model, **self._arguments(findings))
        report = rewriter.report(model)
        rewriter.save(model, output, recipe=wanted.recipe(entry, report.records[-1]) if report.records else None)
        print(f"written to {output}: {report.summary()}")

    def _arguments(self, findings: Findings) -> dict[str, Any]:
        """Arguments of :func:`rewriter.plan` that mend the faults, and the notes if nothing else is found."""
        fixable = [finding for finding in findings if finding.fixable]
        wanted = [finding for finding in fixable if finding.is_fault] or fixable
        named = passes_by_code()
        names = list(dict.fromkeys(named[finding.code] for finding in wanted))
        given = [item for item in self._wanted.resolved or () if item.name in names]
        paths = list(dict.fromkeys(finding.path for finding in wanted))
        arguments = self._wanted.arguments(self._entry)
        return {**arguments, "passes": given or names, "only": paths if wanted else None}

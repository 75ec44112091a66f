"""What :func:`rewriter.check` finds, as data and in the formats of code hosts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, overload
from urllib.parse import quote

from rewriter.guideline.lint import Lint, Severity
from rewriter.text import counted, group
from rewriter.version import __version__


@dataclass(frozen=True)
class Finding:
    """One fault, or what could be done.

    Attributes:
        code: stable, such as ``"RW0201"``: see :class:`rewriter.authoring.Lint`.
        path: path of the module; empty for the model itself.
        file, line: the line of the code that runs, from 1; None where no code says it (a training configuration).
        message: what is wrong, and the remedy.
        severity: ``"error"``, ``"warning"`` or ``"note"``.
        active: whether it has an effect now; a dropout of rate 0 has none.
        fixable: whether :func:`rewriter.rewrite` with that pass mends it.
    """

    code: str
    path: str
    file: str | None
    line: int | None
    message: str
    severity: str
    active: bool = True
    fixable: bool = False

    @property
    def is_fault(self) -> bool:
        """Whether it is more than a note, and has an effect."""
        return self.active and self.severity != Severity.NOTE

    def __str__(self) -> str:
        return _shown(self.path or "(root)", *_texts(self))


class Findings(Sequence[Finding]):
    """All findings about one subject, in the order of the code; a sequence.

    Args:
        findings: the findings.
        lints: what their codes mean.
    """

    def __init__(self, findings: Sequence[Finding], lints: Sequence[Lint] = ()) -> None:
        self._findings = tuple(findings)
        self._lints = {lint.code: lint for lint in lints}

    @overload
    def __getitem__(self, index: int) -> Finding: ...

    @overload
    def __getitem__(self, index: slice) -> Findings: ...

    def __getitem__(self, index: int | slice) -> Finding | Findings:
        if isinstance(index, slice):
            return Findings(self._findings[index], tuple(self._lints.values()))
        return self._findings[index]

    def __len__(self) -> int:
        return len(self._findings)

    def __iter__(self) -> Iterator[Finding]:
        return iter(self._findings)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Findings) and self._findings == other._findings

    def __hash__(self) -> int:
        return hash(self._findings)

    @property
    def faults(self) -> list[Finding]:
        """Those that are more than notes, and have an effect."""
        return [finding for finding in self if finding.is_fault]

    def where(self, wanted: Callable[[Finding], bool]) -> Findings:
        """Return those for which ``wanted`` is true."""
        return Findings(tuple(filter(wanted, self)), tuple(self._lints.values()))

    def to_data(self) -> list[dict[str, Any]]:
        """Return each finding as plain data."""
        return [asdict(finding) for finding in self]

    def to_json(self) -> str:
        """Return a JSON list of the findings."""
        return json.dumps(self.to_data(), indent=2)

    def to_github(self, root: str | Path | None = None) -> str:
        """Return workflow commands of GitHub Actions, which annotate the lines of a pull request.

        Args:
            root: of the repository; files in it are named from there on, as GitHub wants them.
        """
        return "\n".join(_workflow_command(finding, root) for finding in self)

    def to_sarif(self, root: str | Path | None = None) -> str:
        """Return a SARIF 2.1.0 log, as code hosts read it; ``root`` as for :meth:`to_github`."""
        codes = sorted({finding.code for finding in self})
        driver = {
            "name": "rewriter",
            "version": __version__,
            "rules": [_sarif_rule(self._lints.get(code, Lint(code, code))) for code in codes],
        }
        results = [_sarif_result(finding, codes.index(finding.code), root) for finding in self]
        log = {
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{"tool": {"driver": driver}, "results": results}],
        }
        return json.dumps(log, indent=2)

    def __repr__(self) -> str:
        return f"<{self.summary()}>"

    def summary(self) -> str:
        """Return the numbers of faults, notes and inactive places in one line."""
        notes = sum(finding.active and not finding.is_fault for finding in self)
        inactive = sum(not finding.active for finding in self)
        parts = [counted(len(self.faults), "finding"), counted(notes, "note")]
        return ", ".join([*parts, *([f"{inactive} inactive"] if inactive else [])])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # shown by a notebook

    def __str__(self) -> str:
        lines: dict[tuple[str | None, int | None, str], list[Finding]] = {}
        for finding in self:
            lines.setdefault((finding.file, finding.line, finding.code), []).append(finding)
        shown = [_shown(paths, *texts) for found in lines.values() for paths, texts in group(found, _texts)]
        return "\n".join([*shown, self.summary()])


def _texts(finding: Finding) -> tuple[str, str]:
    where = f"{finding.file}:{finding.line}: " if finding.file else ""
    state = "" if finding.active else ", inactive"
    fix = " (fixable)" if finding.fixable else ""
    return f"{where}{finding.code} [{finding.severity}{state}]", f"{finding.message}{fix}"


def _shown(paths: str, fault: str, message: str) -> str:
    return f"{fault} {paths}: {message}"


def _workflow_command(finding: Finding, root: str | Path | None) -> str:
    kind = {Severity.NOTE: "notice"}.get(Severity(finding.severity), finding.severity) if finding.active else "notice"
    place = {"file": _within(finding.file, root) or finding.file, "line": finding.line} if finding.file else {}
    properties = {**place, "title": f"{finding.code} {finding.path or '(root)'}"}
    text = ",".join(f"{name}={_escaped(str(value), ':,')}" for name, value in properties.items())
    return f"::{kind} {text}::{_escaped(finding.message)}"


def _escaped(text: str, also: str = "") -> str:
    """Escape what ends a workflow command, or a property of one."""
    for character in f"%\r\n{also}":
        text = text.replace(character, f"%{ord(character):02X}")
    return text


def _sarif_rule(lint: Lint) -> dict[str, Any]:
    return {
        "id": lint.code,
        "shortDescription": {"text": lint.title},
        "defaultConfiguration": {"level": str(lint.severity)},
    }


def _sarif_result(finding: Finding, rule: int, root: str | Path | None) -> dict[str, Any]:
    level = finding.severity if finding.active else "none"
    result: dict[str, Any] = {
        "ruleId": finding.code,
        "ruleIndex": rule,
        "level": level,
        "kind": "fail" if finding.active else "informational",
        "message": {"text": f"{finding.path or '(root)'}: {finding.message}"},
        "locations": [{"logicalLocations": [{"fullyQualifiedName": finding.path or "(root)", "kind": "module"}]}],
    }
    if finding.file:
        result["locations"][0]["physicalLocation"] = {
            "artifactLocation": _artifact(finding.file, root),
            "region": {"startLine": finding.line},
        }
    return result


def _artifact(file: str, root: str | Path | None) -> dict[str, str]:
    inside = _within(file, root)
    return {"uri": quote(inside), "uriBaseId": "%SRCROOT%"} if inside else {"uri": Path(file).as_uri()}


def _within(file: str, root: str | Path | None) -> str:
    """The path of ``file`` from ``root`` on; empty if it is not in there."""
    if root is None or not Path(file).is_relative_to(Path(root).resolve()):
        return ""
    return Path(file).relative_to(Path(root).resolve()).as_posix()

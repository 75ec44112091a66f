"""Faults that passes find, under stable codes."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Severity(enum.StrEnum):
    """How bad a fault is."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Lint:
    """A kind of fault.

    Attributes:
        code: stable; two letters (``RW`` for this project), two digits of the guideline and two of the fault.
        title: what is wrong, in a few words.
        severity: ``"error"`` for what breaks training or costs much accuracy by the paper, ``"warning"`` for what the
            guideline advises against, ``"note"`` for what could be done and is no fault.
    """

    code: str
    title: str
    severity: Severity | str = Severity.WARNING


@dataclass(frozen=True)
class Location:
    """A line of the code that runs.

    Attributes:
        file: its absolute path.
        line: from 1, in the file.
    """

    file: str
    line: int

"""What a sweep finds about one model."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from typing import Any

from rewriter.plain_data import PLAIN


class Status(enum.StrEnum):
    """How the check of one model ended."""

    OK = "ok"
    FAILED = "failed"
    DIED = "died"
    TIMED_OUT = "timed out"


class Held(enum.StrEnum):
    """Whether something that was promised was found to be kept."""

    HELD = "held"
    NOT = "not"
    NOT_DECIDABLE = "not decidable"


@dataclass
class Row:
    """What was found about one model; None where the check did not get so far.

    Attributes:
        name: the model's name.
        status: how the check ended; ``error`` says why, in one line, if not well.
        class_name: the model's class.
        parameters: number of parameters.
        weights: ``"meta"`` if the model had no memory, ``"real"`` if it had weights.
        backend: what both modes were traced on: ``"meta"`` or ``"cpu"`` tensors.
        passes: for each pass the number of ``sites`` planned and ``applied``, of places
            ``advised`` on, and ``skipped``, places by reason.
        verified: whether the passes' contracts held; ``checks`` has each one: name, verdict, detail.
        undo: whether undo gave the model back; ``undo_detail`` says what was compared, or what differs.
        milliseconds: of each step: create, trace, plan, apply, verify, undo, and numbers (comparing, with numerics).
        peak_mb: most memory held, in MB (10^6 bytes) beyond what the worker had before; None if the system cannot tell.
    """

    name: str
    status: Status = Status.OK
    error: str | None = None
    class_name: str | None = None
    parameters: int | None = None
    weights: str | None = None
    backend: str | None = None
    passes: dict[str, dict[str, Any]] = field(default_factory=dict)
    verified: Held | None = None
    checks: list[tuple[str, Held, str]] = field(default_factory=list)
    undo: Held | None = None
    undo_detail: str | None = None
    milliseconds: dict[str, float] = field(default_factory=dict)
    peak_mb: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the check came to its end and nothing that was promised was broken."""
        return self.status is Status.OK

    @property
    def total_milliseconds(self) -> float:
        """All steps together."""
        return sum(self.milliseconds.values())

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data: dict[str, Any] = PLAIN.to_plain(self)
        return data

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_data())

    @staticmethod
    def from_data(data: Any) -> Row:
        """The row that :meth:`to_data` gave.

        Raises:
            ValueError: the data is not a row.
        """
        return PLAIN.from_plain(Row, data)


def one_line(text: str, limit: int = 500) -> str:
    """Without line breaks, cut to ``limit`` characters."""
    joined = " ".join(text.split())
    return joined if len(joined) <= limit else f"{joined[: limit - 1]}…"

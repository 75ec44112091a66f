"""The results of a sweep for one model."""

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
    """Whether a promise was found to be kept."""

    HELD = "held"
    NOT = "not"
    NOT_DECIDABLE = "not decidable"


@dataclass
class Row:
    """Results for one model; None for steps that the check did not reach.

    Attributes:
        name: the model's name.
        status: how the check ended; ``error`` gives the reason in one line, if it failed.
        class_name: the model's class.
        parameters: number of parameters.
        weights: ``"meta"`` if the model had no memory, ``"real"`` if it had weights.
        backend: what both modes were traced on: ``"meta"`` or ``"cpu"`` tensors.
        passes: for each pass the number of ``sites`` planned and ``applied``, of places
            ``advised`` on, and ``skipped``, places by reason.
        verified: whether the passes' contracts held; ``checks`` has each one: name, verdict, detail.
        undo: whether undo restored the model; ``undo_detail`` says what was compared, or what differs.
        milliseconds: of each step: create, trace, plan, apply, verify, undo, and numbers (comparing, with numerics).
        peak_mb: peak memory in MB (10^6 bytes) beyond the worker's before; None if the system does not report it.
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
        """Whether the check completed and no promise was broken."""
        return self.status is Status.OK

    @property
    def total_milliseconds(self) -> float:
        """The sum over all steps."""
        return sum(self.milliseconds.values())

    def to_data(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        data: dict[str, Any] = PLAIN.to_plain(self)
        return data

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.to_data())

    @staticmethod
    def from_data(data: Any) -> Row:
        """Return the row that :meth:`to_data` described.

        Raises:
            ValueError: the data is not a row.
        """
        return PLAIN.from_plain(Row, data)


def one_line(text: str, limit: int = 500) -> str:
    """Remove line breaks and truncate to ``limit`` characters."""
    joined = " ".join(text.split())
    return joined if len(joined) <= limit else f"{joined[: limit - 1]}…"

"""Counts, times and extremes over the rows of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rewriter.sweep.row import Row

_EXTREMES = 10


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return plain data: number of rows of each kind, results of each pass, step times, the slowest and the largest."""
    steps: Counter[str] = Counter()
    for row in rows:
        steps.update(row.milliseconds)
    return {
        "models": len(rows),
        "status": _counted(str(row.status) for row in rows),
        "weights": _counted(row.weights for row in rows),
        "backend": _counted(row.backend for row in rows),
        "verified": _counted(row.verified for row in rows),
        "undo": _counted(row.undo for row in rows),
        "passes": _of_passes(rows),
        "milliseconds": {step: round(value, 1) for step, value in steps.items()},
        "slowest": [
            {"name": row.name, "milliseconds": round(row.total_milliseconds, 1)}
            for row in sorted(rows, key=lambda row: -row.total_milliseconds)[:_EXTREMES]
            if row.milliseconds
        ],
        "largest": [
            {"name": row.name, "peak_mb": row.peak_mb}
            for row in sorted(rows, key=lambda row: -(row.peak_mb or 0.0))[:_EXTREMES]
            if row.peak_mb is not None
        ],
    }


def _of_passes(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        for name, counts in row.passes.items():
            total = found.setdefault(name, {"models": 0, "sites": 0, "applied": 0, "advised": 0, "skipped": Counter()})
            total["models"] += counts["applied"] > 0 or counts["advised"] > 0
            total["sites"] += counts["sites"]
            total["applied"] += counts["applied"]
            total["advised"] += counts["advised"]
            total["skipped"].update(counts["skipped"])
    return {name: {**total, "skipped": dict(total["skipped"].most_common())} for name, total in found.items()}


def _counted(values: Iterable[str | None]) -> dict[str, int]:
    return dict(Counter(str(value) for value in values if value is not None).most_common())

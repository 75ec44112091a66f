"""The results of a sweep as lines of text and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewriter.reporting.tables import markdown_table
from rewriter.sweep.row import Row
from rewriter.sweep.runner import Sweep
from rewriter.text import counted

_HEADINGS = ("model", "class", "parameters", "status", "traced", "passes", "verified", "undo", "ms", "MB")


def summary_lines(sweep: Sweep) -> list[tuple[str, str]]:
    """Return names and values of the summary, for two columns."""
    found = sweep.summary()
    lines = [
        ("models", f"{found['models']}: {_counts(found['status'])}"),
        ("resumed", f"{sweep.resumed} rows were in the file" if sweep.resumed else ""),
        ("weights", _counts(found["weights"])),
        ("traced on", _counts(found["backend"])),
    ]
    for name, total in found["passes"].items():
        models = counted(total["models"], "model")
        advised = f", {total['advised']} places advised on" if total["advised"] else ""
        lines.append((name, f"{total['applied']} of {total['sites']} sites applied{advised}, in {models}"))
        if total["skipped"]:
            lines.append(("", f"skipped: {_counts(total['skipped'])}"))
    lines += [
        ("verified", _counts(found["verified"])),
        ("undo", _counts(found["undo"])),
        ("time", ", ".join(f"{step} {value / 1000:.1f} s" for step, value in found["milliseconds"].items())),
    ]
    return [(name, value) for name, value in lines if value]


def markdown(sweep: Sweep) -> str:
    """Return the summary, rows that are not ok, the extremes, and a table of all rows."""
    versions = ", ".join(f"{name} {version}" for name, version in sweep.versions.items())
    asked = ", ".join(f"{name}: {value}" for name, value in sweep.request.described().items())
    parts = ["# Sweep", f"Asked of each model: {asked}. Versions: {versions}."]
    parts.append("\n".join(f"* {name}: {value}" if name else f"  {value}" for name, value in summary_lines(sweep)))
    bad = [row for row in sweep.rows if not row.ok]
    if bad:
        parts += [
            "## Not ok",
            markdown_table(("model", "status", "why"), [(r.name, r.status, r.error or "") for r in bad]),
        ]
    found = sweep.summary()
    extremes = (("Slowest", "slowest", "milliseconds", "ms"), ("Most memory", "largest", "peak_mb", "MB"))
    for title, key, value, unit in extremes:
        if found[key]:
            parts += [
                f"## {title}",
                markdown_table(("model", unit), [(i["name"], f"{i[value]:.0f}") for i in found[key]]),
            ]
    parts += ["## All models", markdown_table(_HEADINGS, [_cells(row) for row in sweep.rows])]
    return "\n\n".join(parts) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        (row.class_name or "").rpartition(".")[2],
        "" if row.parameters is None else f"{row.parameters / 1e6:.1f} M",
        row.status,
        " ".join(filter(None, (row.backend, f"({row.weights} weights)" if row.weights else ""))),
        "; ".join(_pass_cell(name, counts) for name, counts in row.passes.items()),
        row.verified or "",
        row.undo or "",
        f"{row.total_milliseconds:.0f}" if row.milliseconds else "",
        "" if row.peak_mb is None else f"{row.peak_mb:.0f}",
    )


def _pass_cell(name: str, counts: Mapping[str, Any]) -> str:
    skipped = f" ({_counts(counts['skipped'])})" if counts["skipped"] else ""
    advised = f", advised {counts['advised']}" if counts["advised"] else ""
    return f"{name} {counts['applied']}/{counts['sites']}{advised}, skipped {sum(counts['skipped'].values())}{skipped}"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())

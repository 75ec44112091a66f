"""The report of a rewritten model: what was done, what was left alone, and why."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from rewriter.edit.edits import AddModule
from rewriter.guideline.base import Advice, Site, Skipped
from rewriter.layers.registry import CalibratedLayer, calibrated_layers, layer_class
from rewriter.planning.codec import to_data
from rewriter.planning.record import Record, records_of, rewritten_parts
from rewriter.planning.render import order_of, texts_of_advice
from rewriter.planning.staleness import stale as stale_paths
from rewriter.text import counted, group, in_milliseconds


@dataclass(frozen=True)
class Report:
    """What was done to a model, what was left alone and why.

    Attributes:
        records: one for each rewrite.
        stale: sites whose modules were replaced after the rewrite; rewriting again repairs them.
        uncalibrated: layers that are the identity until :func:`rewriter.calibrate` has measured their constants.
        calibrated: the others, by path, with mean and standard deviation of each of their input tensors.
        inactive: sites in force that do nothing at present, since their rate is 0 (or keeps everything).
    """

    records: tuple[Record, ...]
    stale: tuple[str, ...]
    uncalibrated: tuple[str, ...] = ()
    calibrated: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()
    inactive: tuple[Site, ...] = ()

    @property
    def applied(self) -> tuple[Site, ...]:
        """Every site that was edited and has an effect; see :attr:`inactive` for the others."""
        return tuple(site for record in self.records for site in record.plan.sites if site not in self.inactive)

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Every place that was left alone, with its reason."""
        return tuple(skip for record in self.records for skip in record.plan.skipped)

    @property
    def advice(self) -> tuple[Advice, ...]:
        """Recommendations of passes about places that are not edited."""
        return tuple(advice for record in self.records for advice in record.plan.advice)

    @property
    def verified(self) -> bool | None:
        """Whether every contract held; None if a rewrite was not verified or could not be decided."""
        if not self.records or any(record.verdict is None for record in self.records):
            return None
        held = [check.held for record in self.records if record.verdict for check in record.verdict.checks]
        return None if not held or None in held else all(held)

    def to_data(self) -> list[dict[str, Any]]:
        """Return each rewrite as JSON data."""
        return [
            {
                "plan": to_data(record.plan),
                "in_force": not record.unchecked if record.plan.sites else None,
                "not_checked_in_force": record.unchecked if record.plan.sites else "",
                "verified": [check.to_data() for check in record.verdict.checks] if record.verdict else None,
                "milliseconds": {name: round(1000 * value, 1) for name, value in record.seconds.items()},
                "inactive": [
                    {"pass": site.pass_name, "path": site.path, "action": site.action}
                    for site in record.plan.sites
                    if site in self.inactive
                ],
                "stale": list(self.stale),
                "uncalibrated": list(self.uncalibrated),
                "calibrated": {path: [list(pair) for pair in pairs] for path, pairs in self.calibrated},
                "folded": [list(entry) for entry in record.folded],
            }
            for record in self.records
        ]

    def summary(self) -> str:
        """Return in one line which passes did how much, and whether their contracts held."""
        if not self.records:
            return "not rewritten"
        applied = Counter(site.pass_name for site in self.applied)
        parts = [f"{name} {count}" for name, count in sorted(applied.items())] or ["nothing applied"]
        parts += [
            f"{len(found)} {word}" for word, found in (("inactive", self.inactive), ("skipped", self.skipped)) if found
        ]
        return f"{', '.join(parts)}; {_VERIFIED[self.verified]}"

    def flat(self) -> dict[str, int | float | str]:
        """Return numbers by name, as experiment trackers log them: ``rewriter/dropout/applied`` and others."""
        values: dict[str, int | float | str] = {"rewriter/verified": _VERIFIED[self.verified]}
        for word, found in (("applied", self.applied), ("inactive", self.inactive), ("skipped", self.skipped)):
            values[f"rewriter/{word}"] = len(found)
            for name, count in Counter(item.pass_name for item in found).items():
                values[f"rewriter/{name}/{word}"] = count
        for record in self.records:
            for step, seconds in record.seconds.items():
                key = f"rewriter/seconds/{step.replace(' ', '_')}"
                values[key] = round(float(values.get(key, 0.0)) + seconds, 4)
        return values

    def to_json(self) -> str:
        """Return the report as JSON text."""
        return json.dumps(self.to_data(), indent=2)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # shown by a notebook

    def __str__(self) -> str:
        if not self.records:
            return "not rewritten"
        lines = []
        for record in self.records:
            lines += list(record.plan.notes)
            if len(record.plan.passes) > 1:
                lines.append(f"passes: {order_of(record.plan)}")
            for name, _ in record.plan.passes:
                if name in record.plan.idle:
                    continue
                sites, skipped, advice = record.plan.findings(name)
                reasons = Counter(str(s.reason) for s in skipped)
                why = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
                waiting = [site for site in sites if site in self.inactive]
                working = [site for site in sites if site not in self.inactive]
                done = f"{len(working)} applied" if sites or not advice else "nothing edited"
                done += f", {len(waiting)} inactive" if waiting else ""
                given = f", {len(advice)} advised on" if advice else ""
                lines.append(f"{name}: {done}, {len(skipped)} skipped{f' ({why})' if why else ''}{given}")
                lines += [f"  + {paths}: {what}" for paths, (what,) in group(working, lambda site: (site.action,))]
                lines += [f"  ~ {paths}: {what}" for paths, (what,) in group(waiting, _waiting)]
                refused = [skip for skip in skipped if skip.warned_of]
                lines += [f"  ! {paths}: {what}" for paths, (what,) in group(refused, _refused)]
                lines += [f"  * {paths}: {what}" for paths, (what, _) in group(advice, texts_of_advice)]
            if record.plan.idle:
                lines.append(f"nothing found by {', '.join(record.plan.idle)}")
            if record.plan.sites:
                lines.append(_in_force(record))
            lines.append(f"verified: {record.verdict or 'no'}")
            lines.append(f"time: {in_milliseconds(record.seconds)}")
            whole = [path for path, reason in record.folded if not reason]
            if record.folded:
                lines.append(f"folded into the weights that follow: {', '.join(whole) or 'none'}")
            lines += [f"not folded: {path}: {reason}" for path, reason in record.folded if reason]
        for path, pairs in self.calibrated:
            means, stds = (", ".join(f"{value:.3g}" for value in values) for values in zip(*pairs, strict=True))
            lines.append(f"calibrated: {path}: mean {means}; standard deviation {stds}")
        if self.uncalibrated:
            lines.append(
                f"not calibrated: {', '.join(self.uncalibrated)}; the identity until rewriter.calibrate(model, batches)"
            )
        lines += [f"stale: {path} was replaced after the rewrite; rewrite again to mend it" for path in self.stale]
        return "\n".join(lines)


_VERIFIED = {True: "verified", False: "a contract does not hold", None: "not verified"}


def _waiting(site: Site) -> tuple[str]:
    """What was done, and at which setting that has no effect: as planned, or as the user has set it since."""
    now = " and ".join(f"{rate.off:g} ({f'{rate.path}.{rate.name}'.lstrip('.')})" for rate in site.rates if rate.name)
    return (f"{site.action}: no effect at {(site.rate_at if site.inactive else now) or 'its rate'}",)


def _refused(skip: Skipped) -> tuple[str]:
    return (f"{skip.reason}: {skip.detail}",)


def _in_force(record: Record) -> str:
    if record.unchecked:
        return f"not checked in force: {record.unchecked}"
    return f"in force: {counted(len(record.plan.sites), 'place')}, recorded once more after the edits"


def needs_no_calibration(model: nn.Module) -> bool:
    """Whether ``model`` is, or contains, a rewritten model, and no rewrite added a layer with constants of the data."""
    records = [record for _, part in rewritten_parts(model) for record in records_of(part)]
    added = (edit for record in records for edit in record.applied.edits if isinstance(edit, AddModule))
    return bool(records) and not any(issubclass(layer_class(edit.layer), CalibratedLayer) for edit in added)


def make_report(model: nn.Module) -> Report:
    """Return the report of a rewritten model, or of those it contains; an empty one if there are none."""
    records: list[Record] = []
    stale: dict[str, None] = {}
    uncalibrated: list[str] = []
    calibrated: list[tuple[str, tuple[tuple[float, float], ...]]] = []
    inactive: list[Site] = []
    for outer, part in rewritten_parts(model):
        of_part = records_of(part)
        found = (path for record in of_part for path in stale_paths(part, record.applied))
        stale.update(dict.fromkeys(f"{outer}.{path}".strip(".") or "(root)" for path in found))
        for path, layer in calibrated_layers(part).items():
            name = f"{outer}.{path}".lstrip(".")
            if not layer.calibrated:
                uncalibrated.append(name)
            elif layer.absorbed is None:
                calibrated.append((name, tuple((mean, 1 / factor) for mean, factor in layer.constants())))
        inactive += [site for record in of_part for site in record.plan.sites if site.inactive_in(part)]
        records += of_part
    return Report(tuple(records), tuple(stale), tuple(uncalibrated), tuple(calibrated), tuple(inactive))

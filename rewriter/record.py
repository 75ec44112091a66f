"""What a rewritten model carries about its rewrite, and the report made from it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import fx, nn

from rewriter.edit.classes import carries_edit
from rewriter.edit.edits import AddModule, Applied, EditMethod
from rewriter.edit.held_methods import hides
from rewriter.grouping import counted, group
from rewriter.layers import CalibratedLayer, calibrated_layers, layer_class
from rewriter.planning import INACTIVE_REMEDY, Plan
from rewriter.reasons import TECHNICAL
from rewriter.wrappers import named_modules_inside

_ATTRIBUTE = "_rewriter_records"


@dataclass(frozen=True)
class Verdict:
    """What verification found: per check, whether it held, and a sentence."""

    checks: tuple[tuple[str, bool | None, str], ...] = ()

    @property
    def failed(self) -> list[str]:
        return [f"{name}: {detail}" for name, held, detail in self.checks if held is False]

    def __str__(self) -> str:
        words = {True: "holds", False: "BROKEN", None: "not decidable"}
        return "; ".join(
            f"{name} {words[held]}" + (f" ({detail})" if detail else "") for name, held, detail in self.checks
        )


@dataclass(frozen=True)
class Record:
    """One rewrite of a model.

    Attributes:
        plan: what was asked for; ``applied`` what was done.
        verdict: what was verified; None if nothing was.
        seconds: how long each step took.
        folded: after :func:`rewriter.fold`, the layers by path, each with the reason why it was left, if it was.
        unchecked: why it is not known that what was edited is what runs; empty if it is known.
    """

    plan: Plan
    applied: Applied
    verdict: Verdict | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    folded: tuple[tuple[str, str], ...] = ()
    unchecked: str = "an earlier version made this rewrite"

    @property
    def changed_weights(self) -> bool:
        """Whether :func:`rewriter.fold` moved constants into weights, so that the original cannot be restored."""
        return any(not reason for _, reason in self.folded)

    def __deepcopy__(self, memo: dict[int, Any]) -> Record:
        return self


def records_of(model: nn.Module) -> tuple[Record, ...]:
    """The rewrites that ``model`` went through, oldest first."""
    records: tuple[Record, ...] = _kept_in(model).get(_ATTRIBUTE, ())
    return records


def _kept_in(model: nn.Module) -> dict[str, Any]:
    """Where records are kept: of a graph module, copies take only what the graph names, and its ``meta``."""
    return model.meta if isinstance(model, fx.GraphModule) else model.__dict__


def is_folded(model: nn.Module) -> bool:
    """Whether :func:`rewriter.fold` changed weights of ``model``."""
    return any(record.changed_weights for record in records_of(model))


def set_records(model: nn.Module, records: tuple[Record, ...]) -> None:
    """Store ``records`` on ``model``; none removes every trace of them."""
    if records:
        _kept_in(model)[_ATTRIBUTE] = records
    else:
        _kept_in(model).pop(_ATTRIBUTE, None)


@dataclass(frozen=True)
class Report:
    """What was done to a model, what was left alone and why.

    Attributes:
        records: one for each rewrite.
        stale: sites whose modules were replaced after the rewrite; rewriting again mends them.
        uncalibrated: layers that are the identity until :func:`rewriter.calibrate` has measured their constants.
        calibrated: the others, by path, with mean and standard deviation of each tensor that they take.
        inactive: sites in force that do nothing now, since their rate is 0 (or keeps everything).
    """

    records: tuple[Record, ...]
    stale: tuple[str, ...]
    uncalibrated: tuple[str, ...] = ()
    calibrated: tuple[tuple[str, tuple[tuple[float, float], ...]], ...] = ()
    inactive: tuple[Any, ...] = ()

    @property
    def applied(self) -> tuple[Any, ...]:
        """Every site that was edited and has an effect; see :attr:`inactive` for the others."""
        return tuple(site for record in self.records for site in record.plan.sites if site not in self.inactive)

    @property
    def skipped(self) -> tuple[Any, ...]:
        """Every place that was left alone, with its reason."""
        return tuple(skip for record in self.records for skip in record.plan.skipped)

    @property
    def advice(self) -> tuple[Any, ...]:
        """What passes say about places without editing them."""
        return tuple(advice for record in self.records for advice in record.plan.advice)

    @property
    def verified(self) -> bool | None:
        """Whether every contract held; None if a rewrite was not verified or could not be decided."""
        held = [check[1] for r in self.records for check in (r.verdict.checks if r.verdict else ((0, None, 0),))]
        return None if not held or None in held else all(held)

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(
            [
                {
                    "plan": json.loads(record.plan.to_json()),
                    "in_force": not record.unchecked if record.plan.sites else None,
                    "not_checked_in_force": record.unchecked if record.plan.sites else "",
                    "verified": [list(check) for check in record.verdict.checks] if record.verdict else None,
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
            ],
            indent=2,
        )

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows

    def __str__(self) -> str:
        if not self.records:
            return "not rewritten"
        lines = []
        for record in self.records:
            lines += list(record.plan.notes)
            if len(record.plan.passes) > 1:
                lines.append(f"passes: {record.plan.order}")
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
                lines += [f"  + {paths}: {site.action}" for paths, site in group(working)]
                lines += [f"  ~ {paths}: {site.action}: no effect at its rate" for paths, site in group(waiting)]
                refused = [skip for skip in skipped if skip.reason in TECHNICAL]
                lines += [f"  ! {paths}: {skip.reason}: {skip.detail}" for paths, skip in group(refused)]
                lines += [f"  * {paths}: {item.pattern}: {item.advice}" for paths, item in group(advice)]
            if record.plan.idle:
                lines.append(f"nothing found by {', '.join(record.plan.idle)}")
            if any(site in self.inactive for site in record.plan.sites):
                lines.append(f"inactive: their rate is 0 (or keeps everything); set another one, {INACTIVE_REMEDY}")
            if record.plan.sites:
                lines.append(_in_force(record))
            lines.append(f"verified: {record.verdict or 'no'}")
            lines.append("time: " + ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in record.seconds.items()))
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


def _in_force(record: Record) -> str:
    if record.unchecked:
        return f"not checked in force: {record.unchecked}"
    return f"in force: {counted(len(record.plan.sites), 'place')}, recorded once more after the edits"


def rewritten_parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The rewritten models that ``model`` is or holds, the outermost ones, each with its path in ``model``."""
    found: list[tuple[str, nn.Module]] = []
    for path, module in named_modules_inside(model):
        inner = any(path == outer or not outer or path.startswith(f"{outer}.") for outer, _ in found)
        if records_of(module) and not inner:
            found.append((path, module))
    return found


def needs_no_calibration(model: nn.Module) -> bool:
    """Whether ``model`` is, or holds, a rewritten model, and no rewrite added a layer with constants of the data."""
    records = [record for _, part in rewritten_parts(model) for record in records_of(part)]
    added = (edit for record in records for edit in record.applied.edits if isinstance(edit, AddModule))
    return bool(records) and not any(issubclass(layer_class(edit.layer), CalibratedLayer) for edit in added)


def make_report(model: nn.Module) -> Report:
    """The report of a rewritten model, or of those that it holds; an empty one if there is none."""
    records: list[Record] = []
    stale: dict[str, None] = {}
    uncalibrated: list[str] = []
    calibrated: list[tuple[str, tuple[tuple[float, float], ...]]] = []
    inactive: list[Any] = []
    for outer, part in rewritten_parts(model):
        of_part = records_of(part)
        found = (path for record in of_part for look in (_replaced, _hidden, _exchanged) for path in look(part, record))
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


def records_in_force(model: nn.Module) -> tuple[Record, ...]:
    """The rewrites that ``model`` went through, without the sites of which nothing is left in it."""
    return tuple(_without(record, set(_replaced(model, record))) for record in records_of(model))


def with_parameters(record: Record, parameters: Mapping[str, str]) -> Record:
    """The record with what a later plan says of parameters."""
    return replace(record, plan=replace(record.plan, parameters={**record.plan.parameters, **parameters}))


def _replaced(model: nn.Module, record: Record) -> list[str]:
    """Where a module that was edited is not there any more."""
    modules = dict(named_modules_inside(model, remove_duplicate=False))
    return [path for path in record.applied.edited_classes if not carries_edit(type(modules.get(path)))]


def _hidden(model: nn.Module, record: Record) -> list[str]:
    """Where a ``forward`` set on the instance hides a method that was edited."""
    modules = dict(named_modules_inside(model, remove_duplicate=False))
    methods = [edit for edit in record.applied.edits if isinstance(edit, EditMethod) and edit.path in modules]
    return [edit.path for edit in methods if hides(modules[edit.path], edit.method)]


def _exchanged(model: nn.Module, record: Record) -> list[str]:
    """Where a child that was added is of another class now, or gone, while the module that calls it is there."""
    modules = dict(named_modules_inside(model, remove_duplicate=False))
    added = [
        edit
        for edit in record.applied.edits
        if isinstance(edit, AddModule) and carries_edit(type(modules.get(edit.path)))
    ]
    children = {f"{edit.path}.{edit.name}".lstrip("."): layer_class(edit.layer) for edit in added}
    return [path for path, layer in children.items() if not isinstance(modules.get(path), layer)]


def _without(record: Record, stale: set[str]) -> Record:
    if not stale:
        return record
    sites = tuple(site for site in record.plan.sites if not {edit.path for edit in site.edits} <= stale)
    paths = {edit.path for site in sites for edit in site.edits}
    applied = Applied(
        tuple(edit for site in sites for edit in site.edits),
        tuple(item for item in record.applied.previous if item[0] in paths),
        tuple(path for path in record.applied.edited_classes if path in paths),
    )
    return replace(record, plan=replace(record.plan, sites=sites), applied=applied)

"""A plan: every edit known, explained and printed before it is made. A plan is data."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from torch import nn

from rewriter.edit.classes import MethodEdit, adopted_source, class_name, original_class, source_of
from rewriter.edit.edits import AddBehaviour, Edit, class_edits, edit_from_data, edit_to_data, find_module
from rewriter.edit.operations import Adopt, edited_text
from rewriter.errors import PlanError
from rewriter.grouping import counted, group, joined_groups
from rewriter.guideline import Advice, Contract, Rate, Site, Skipped
from rewriter.manager import installed_passes
from rewriter.reasons import Reason

FORMAT = 3
"""Version of the JSON form."""


INACTIVE_REMEDY = "as the model's own setting or with dropout:p=0.2"
"""How a site without effect is switched on."""


@dataclass(frozen=True)
class Plan:
    """Sites and edits for one structure of model.

    Attributes:
        model: class of the model, and ``structure`` a fingerprint of its tree of modules; weights do not matter.
        passes: names and options of the passes, in their order.
        sites: where they apply, with the edits.
        skipped: where they nearly do, with the reason.
        advice: what they say about places without editing them.
        notes: what else the user should know, the most important first.
        request: how the plan was asked for (``input``, ``only``, ``skip``, ``preserve``).
        contracts: what each pass promises to preserve.
        parameters: what each parameter is to the model, by name, see :mod:`rewriter.parameter_kinds`.
    """

    model: str
    structure: str
    passes: tuple[tuple[str, dict[str, Any]], ...]
    sites: tuple[Site, ...]
    skipped: tuple[Skipped, ...]
    advice: tuple[Advice, ...] = ()
    notes: tuple[str, ...] = ()
    request: dict[str, Any] = field(default_factory=dict)
    contracts: dict[str, Contract] = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"parameters": {}, **state})  # a pickle of before they were kept

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits, in the order they are made."""
        return tuple(edit for site in self.sites for edit in site.edits)

    @property
    def inactive(self) -> tuple[Site, ...]:
        """Sites that have no effect with the rates that the model has: they are edited, and wait for another rate."""
        return tuple(site for site in self.sites if site.inactive)

    def apply(
        self, model: nn.Module, inplace: bool = False, verify: bool = True, *, all_ranks: bool = True
    ) -> nn.Module:
        """Carry the plan out on ``model``, or on a copy of it, and check the passes' contracts.

        Args:
            model, inplace, verify: as for :func:`rewriter.rewrite`.
            all_ranks: where ``torch.distributed`` is initialised, False for a plan that this process alone applies.

        Raises:
            PlanError: the plan was made for another model.
            ContractError: a contract does not hold; the model is as it was.
            RewriterError: another process has another plan, or does not call.
        """
        from rewriter.plan_applying import apply_plan
        from rewriter.plan_file import check_same_plan

        check_same_plan(self, all_ranks=all_ranks)
        return apply_plan(self, model, inplace=inplace, verify=verify)

    def check_fits(self, model: nn.Module) -> None:
        """Refuse a model of another structure.

        Raises:
            PlanError: naming the first module that differs.
        """
        for edit in self.edits:
            find_module(model, edit.path)
        if not self.has_structure_of(model):
            raise PlanError(
                f"the plan was made for another {self.model} (structure {self.structure}, found {fingerprint(model)} "
                f"in {class_name(original_class(type(model)))}). Make a new plan for this model."
            )

    def has_structure_of(self, model: nn.Module) -> bool:
        """Whether ``model`` has the tree of modules that the plan was made for."""
        return self.structure in fingerprints(_original_classes(model))

    def diff(self, model: nn.Module) -> str:
        """The change of source, method by method, as a unified diff; methods with the same change are shown once."""
        changes: dict[str, list[str]] = {}
        for path, edit in class_edits(self.edits).items():
            for method in edit.methods:
                changes.setdefault(_method_diff(find_module(model, path), method), []).append(path)
        return "\n".join(f"# {joined_groups(paths)}\n{text}" for text, paths in changes.items())

    def to_json(self) -> str:
        """The plan as JSON text."""
        data = {
            "format": FORMAT,
            "model": self.model,
            "structure": self.structure,
            "request": self.request,
            "passes": [{name: options} for name, options in self.passes],
            "contracts": {name: asdict(contract) for name, contract in self.contracts.items()},
            "notes": list(self.notes),
            "sites": [
                {
                    "pass": s.pass_name,
                    "path": s.path,
                    "pattern": s.pattern,
                    "action": s.action,
                    "reason": s.reason,
                    "rate_at": s.rate_at,
                    "claim": s.claim,
                    "rates": [asdict(rate) for rate in s.rates],
                    "inactive": s.inactive,
                    "edits": [edit_to_data(edit) for edit in s.edits],
                }
                for s in self.sites
            ],
            "skipped": [
                {"pass": s.pass_name, "path": s.path, "pattern": s.pattern, "reason": str(s.reason), "detail": s.detail}
                for s in self.skipped
            ],
            "advice": [
                {"pass": a.pass_name, "path": a.path, "pattern": a.pattern, "advice": a.advice, "reason": a.reason}
                for a in self.advice
            ],
            "parameters": self.parameters,
        }
        return json.dumps(data, indent=2)

    @staticmethod
    def from_json(text: str) -> Plan:
        """The plan that :meth:`to_json` wrote. Nothing in the text is executed or imported.

        Raises:
            PlanError: the text is not a plan, or of another format.
        """
        try:
            data = json.loads(text)
        except (ValueError, TypeError, RecursionError) as error:
            raise PlanError(f"the plan is damaged: not JSON ({error})") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, dict) else type(data).__name__
            raise PlanError(f"expected a plan of format {FORMAT}, found {found!r}. Make a new plan.")
        try:
            passes = tuple((str(name), dict(options)) for item in data["passes"] for name, options in item.items())
            _check_complete(data, {name for name, _ in passes})
            return Plan(
                model=str(data["model"]),
                structure=str(data["structure"]),
                passes=passes,
                sites=tuple(_site_from_data(item) for item in data["sites"]),
                skipped=tuple(
                    Skipped(s["pass"], s["path"], s["pattern"], Reason(s["reason"]), s["detail"])
                    for s in data["skipped"]
                ),
                advice=tuple(
                    Advice(a["pass"], a["path"], a["pattern"], a["advice"], a["reason"]) for a in data["advice"]
                ),
                notes=tuple(data["notes"]),
                request=dict(data["request"]),
                contracts={str(name): Contract(**promises) for name, promises in data["contracts"].items()},
                parameters=dict(data.get("parameters", {})),
            )
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"the plan is damaged: {type(error).__name__}: {error}") from error

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))  # what a notebook shows

    def __str__(self) -> str:
        lines = [f"plan for {self.model.rsplit('.', 1)[-1]}: {self.order}"]
        lines += [f"  note: {note}" for note in self.notes]
        if self.idle:
            lines.append(f"nothing found by {', '.join(self.idle)}")
        for name, _ in self.passes:
            if name in self.idle:
                continue
            sites, skipped, advice = self.findings(name)
            given = f", {counted(len(advice), 'place')} advised on" if advice else ""
            off = sum(site.inactive for site in sites)
            idle = f", {off} inactive" if off else ""
            lines.append(f"{name}: {counted(len(sites) - off, 'site')}{idle}, {len(skipped)} skipped{given}")
            for paths, site in group(sites):
                lines.append(f"  {'~' if site.inactive else '+'} {paths}: {site.pattern}")
                lines.append(f"      {site.action}")
                lines.append(f"      because {site.reason}")
                if site.rate_at:
                    no_effect = f"; no effect until it is another, {INACTIVE_REMEDY}" if site.inactive else ""
                    lines.append(f"      setting: {site.rate_at}{no_effect}")
                own = _own_classes(site)
                if own:
                    lines.append(f"      class of its own: {own}")
            for paths, skip in group(skipped):
                lines.append(f"  - {paths}: {skip.pattern} [{skip.reason}]")
                lines.append(f"      {skip.detail}")
            for paths, advised in group(advice):
                lines.append(f"  * {paths}: {advised.pattern}: {advised.advice}")
                lines.append(f"      because {advised.reason}")
        return "\n".join(lines)

    def findings(self, name: str) -> tuple[list[Site], list[Skipped], list[Advice]]:
        """What one pass found."""
        return (
            [site for site in self.sites if site.pass_name == name],
            [skip for skip in self.skipped if skip.pass_name == name],
            [advice for advice in self.advice if advice.pass_name == name],
        )

    @property
    def order(self) -> str:
        """The passes with the options that were given, in the order that they come in."""
        return " → ".join(_with_options(*item) for item in self.passes) or "no passes"

    @property
    def idle(self) -> tuple[str, ...]:
        """Passes that found nothing, not even a near miss."""
        return tuple(name for name, _ in self.passes if not any(self.findings(name)))


def _own_classes(site: Site) -> str:
    """The modules, named from the site, that get a class of their own without a change of source."""
    paths = [edit.path for edit in site.edits if isinstance(edit, AddBehaviour)]
    names = (path.rpartition(".")[2] if path == site.path else path.removeprefix(f"{site.path}.") for path in paths)
    return ", ".join(path if name.isdigit() else name for path, name in zip(paths, names, strict=True))


def fingerprint(model: nn.Module) -> str:
    """Changes with the tree of modules (paths and classes), not with weights or shapes.

    A class counts by its name without its module, which is another one where a script is imported or spawned.
    """
    return fingerprints(_original_classes(model))[0]


def named_fingerprint(model: nn.Module) -> str:
    """The fingerprint with the modules of the classes, as version 0.1.0 made it."""
    return fingerprints(_original_classes(model))[1]


def fingerprints(classes: Iterable[tuple[str, type]]) -> tuple[str, str]:
    """Both fingerprints, of modules by path and class."""
    pairs = list(classes)
    return (
        _digest(f"{path}:{cls.__qualname__}" for path, cls in pairs),
        _digest(f"{path}:{class_name(cls)}" for path, cls in pairs),
    )


def _original_classes(model: nn.Module) -> Iterator[tuple[str, type]]:
    return ((path, original_class(type(module))) for path, module in model.named_modules())


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode())
    return digest.hexdigest()[:16]


def _with_options(name: str, options: dict[str, Any]) -> str:
    """The pass with the options that are not its defaults."""
    cls = installed_passes().get(name)
    defaults = {field.name: field.default for field in fields(cls)} if cls is not None else {}
    given = ", ".join(
        f"{key}={value}" for key, value in options.items() if key not in defaults or value != defaults[key]
    )
    return f"{name} ({given})" if given else name


def _check_complete(data: Any, passes: set[str]) -> None:
    """Refuse a plan whose notes, findings or kinds of parameters are no texts, or with findings of passes not named.

    Raises:
        PlanError: which.
    """
    if not all(isinstance(note, str) for note in data["notes"]):
        raise PlanError(f"the plan is damaged: notes are texts, found {data['notes']!r}")
    for kind in ("skipped", "advice"):
        found = next((item for item in data[kind] if not all(isinstance(text, str) for text in item.values())), None)
        if found is not None:
            raise PlanError(f"the plan is damaged: what is {kind} is told in texts, found {found!r}")
    kinds = data.get("parameters", {})
    if not isinstance(kinds, dict) or not all(isinstance(kind, str) for kind in kinds.values()):
        raise PlanError(f"the plan is damaged: what parameters are is told in texts by name, found {kinds!r}")
    named = {item["pass"] for kind in ("sites", "skipped", "advice") for item in data[kind]}
    missing = sorted(map(str, named - passes))
    without = sorted({item["pass"] for item in data["sites"]} - set(data["contracts"]))
    if missing or without:
        what = (
            f"passes that are not named ({', '.join(missing)})" if missing else f"no contract of {', '.join(without)}"
        )
        raise PlanError(f"the plan is damaged: it has {what}")


def _site_from_data(data: Any) -> Site:
    texts = [data[name] for name in ("pass", "path", "pattern", "action", "reason", "rate_at", "claim")]
    if not all(isinstance(text, str) for text in texts):
        raise PlanError(f"the plan is damaged: not a site: {data!r}")
    pass_name, path, pattern, action, reason, rate_at, claim = texts
    edits = tuple(edit_from_data(edit) for edit in data["edits"])
    rates = tuple(
        Rate(str(r["path"]), str(r["name"]), float(r["value"]), float(r["off"])) for r in data.get("rates", ())
    )
    return Site(pass_name, path, pattern, action, reason, edits, rate_at, claim, rates)


def _method_diff(module: nn.Module, edit: MethodEdit) -> str:
    name = f"{edit.owner}.{edit.method}"
    source = source_of(type(module), edit.owner, edit.method, edit.digest)
    text = _diff(name, source.text, edited_text(source, edit.operations))
    for operation in edit.operations:
        if isinstance(operation, Adopt):
            helper = adopted_source(source, operation)
            function = f"{helper.function.__module__}.{helper.function.__qualname__}"
            text += _diff(function, helper.text, operation.text_of_method(helper))
    return text


def _diff(name: str, old: str, new: str) -> str:
    lines = (old.splitlines(keepends=True), new.splitlines(keepends=True))
    return "".join(difflib.unified_diff(*lines, name, "rewritten", n=2))

"""A plan as text."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rewriter.edit.edits import AddBehaviour
from rewriter.guideline.base import Site
from rewriter.guideline.registry import installed_passes
from rewriter.planning.data import PlanData
from rewriter.text import counted, group

INACTIVE_REMEDY = "as the model's own setting or with dropout:p=0.2, in Python Dropout(p=0.2), of heads alone head_p"
"""How to switch on a site without effect."""


def text_of(plan: PlanData) -> str:
    """Return what every pass would do, and why; what is left alone, and why."""
    lines = [f"plan for {plan.model.rsplit('.', 1)[-1]}: {order_of(plan)}"]
    lines += [f"  note: {note}" for note in plan.notes]
    if plan.idle:
        lines.append(f"nothing found by {', '.join(plan.idle)}")
    for name, _ in plan.passes:
        if name in plan.idle:
            continue
        sites, skipped, advice = plan.findings(name)
        given = f", {counted(len(advice), 'place')} advised on" if advice else ""
        off = sum(site.inactive for site in sites)
        idle = f", {off} inactive" if off else ""
        lines.append(f"{name}: {counted(len(sites) - off, 'site')}{idle}, {len(skipped)} skipped{given}")
        for paths, site in group(sites):
            lines.append(f"  {'~' if site.inactive else '+'} {paths}: {site.pattern}")
            lines += [f"      {line}" for line in details_of(site)]
            if own := _own_classes(site):
                lines.append(f"      class of its own: {own}")
        for paths, skip in group(skipped):
            lines.append(f"  - {paths}: {skip.pattern} [{skip.reason}]")
            lines.append(f"      {skip.detail}")
        for paths, advised in group(advice):
            lines.append(f"  * {paths}: {advised.pattern}: {advised.advice}")
            lines.append(f"      because {advised.reason}")
    return "\n".join(lines)


def order_of(plan: PlanData) -> str:
    """Return the passes with the options that were given, in the order they are applied."""
    return " → ".join(_with_options(*item) for item in plan.passes) or "no passes"


def details_of(site: Site) -> list[str]:
    """Return what is done at a site, why, and where its rate is set."""
    no_effect = f"; no effect until it is another, {INACTIVE_REMEDY}" if site.inactive else ""
    setting = [f"setting: {site.rate_at}{no_effect}"] if site.rate_at else []
    return [site.action, f"because {site.reason}", *setting]


def _own_classes(site: Site) -> str:
    """Return the modules, named from the site, that get their own class without a change of source."""
    paths = [edit.path for edit in site.edits if isinstance(edit, AddBehaviour)]
    names = (path.rpartition(".")[2] if path == site.path else path.removeprefix(f"{site.path}.") for path in paths)
    return ", ".join(path if name.isdigit() else name for path, name in zip(paths, names, strict=True))


def _with_options(name: str, options: dict[str, Any]) -> str:
    """Return the pass with its non-default options."""
    cls = installed_passes().get(name)
    defaults = {field.name: field.default for field in fields(cls)} if cls is not None else {}
    given = ", ".join(
        f"{key}={value}" for key, value in options.items() if key not in defaults or value != defaults[key]
    )
    return f"{name} ({given})" if given else name

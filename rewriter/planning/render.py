"""A plan as text."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rewriter.edit.edits import AddBehaviour
from rewriter.guideline.base import Advice, Site
from rewriter.guideline.registry import installed_passes
from rewriter.planning.data import PlanData
from rewriter.text import counted, group


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
        for paths, (mark, pattern, *details) in group(sites, texts_of_site):
            lines += [f"  {mark} {paths}: {pattern}", *(f"      {detail}" for detail in details)]
        for paths, (pattern, reason, detail) in group(skipped, lambda skip: (skip.pattern, skip.reason, skip.detail)):
            lines += [f"  - {paths}: {pattern} [{reason}]", f"      {detail}"]
        for paths, (what, reason) in group(advice, texts_of_advice):
            lines += [f"  * {paths}: {what}", f"      because {reason}"]
    return "\n".join(lines)


def order_of(plan: PlanData) -> str:
    """Return the passes with the options that were given, in the order they are applied."""
    return " → ".join(_with_options(*item) for item in plan.passes) or "no passes"


def texts_of_site(site: Site) -> list[str]:
    """Return a mark (``~`` if it has no effect), the pattern, what is done, why, where its rate is set, and which
    modules get a class of their own."""
    no_effect = "; no effect until it is another" if site.inactive else ""
    setting = [f"setting: {site.rate_at}{no_effect}"] if site.rate_at else []
    own = [f"class of its own: {names}"] if (names := _own_classes(site)) else []
    return ["~" if site.inactive else "+", site.pattern, site.action, f"because {site.reason}", *setting, *own]


def texts_of_advice(advice: Advice) -> list[str]:
    """Return what is advised on which pattern, and why."""
    return [f"{advice.pattern}: {advice.advice}", advice.reason]


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

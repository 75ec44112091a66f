"""Which passes are installed, which were requested, and in which order they run."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from importlib.metadata import EntryPoint
from typing import Any

from rewriter.entry_points import PASS_GROUP, described, entry_points, leave_out, load_entry_point
from rewriter.errors import InstallationError, SelectorError
from rewriter.guideline.base import Contract, Pass
from rewriter.guideline.option_types import misfit
from rewriter.plain_data import json_value

_BROKEN: dict[str, InstallationError] = {}
"""Why passes of other packages were left out, by the name of the entry point."""


@functools.lru_cache(maxsize=1)
def installed_passes() -> dict[str, type[Pass]]:
    """Every pass that an installed package registers in the entry-point group ``rewriter.passes``, by name.

    A pass of another package that is broken, or whose name is taken, is left out with a warning.

    Raises:
        InstallationError: a built-in pass cannot be imported.
    """
    found: dict[str, type[Pass]] = {}
    _BROKEN.clear()
    for entry in entry_points(PASS_GROUP):
        try:
            cls = _checked(load_entry_point(entry), entry, found)
        except InstallationError as error:
            leave_out(entry, error)
            _BROKEN.setdefault(entry.name, error)
        else:
            found[cls.name] = cls
    return dict(sorted(found.items()))


def passes_by_code() -> dict[str, str]:
    """The name of the installed pass that finds the fault of each code."""
    return {lint.code: name for name, cls in installed_passes().items() for lint in cls.codes}


def _checked(registered: Any, entry: EntryPoint, found: Mapping[str, type[Pass]]) -> type[Pass]:
    """The pass that an entry point loads, after checking that it is one and that its name is free."""
    problem = _problem(registered)
    if problem is None and found.get(registered.name, registered) is not registered:
        other = found[registered.name]
        problem = f"the name {registered.name!r} is taken by {other.__module__}.{other.__qualname__}"
    if problem is not None:
        raise InstallationError(f"{described(entry)}: {problem}. Mend or uninstall that package.")
    return registered  # type: ignore[no-any-return]


def _problem(cls: Any) -> str | None:
    """Why an object is not a valid pass; None if it is one."""
    if not (isinstance(cls, type) and issubclass(cls, Pass)):
        return f"expected a subclass of rewriter.Pass, found {cls!r}"
    if missing := _missing(cls):
        return f"{cls.__qualname__} does not define {missing}"
    options = [hint for hint in inspect.get_annotations(cls).values() if "ClassVar" not in str(hint)]
    if options and "__dataclass_params__" not in vars(cls):  # without options of its own it is that of its base
        return f"{cls.__qualname__} is no dataclass: decorate it with @dataclass(frozen=True)"
    texts = [name for name in ("name", "summary", "paper") if not isinstance(getattr(cls, name, None), str)]
    if texts or not cls.name:
        return f"{cls.__qualname__} has no text as its {', '.join(texts) or 'name'}"
    if not isinstance(cls.contract, Contract):
        return f"{cls.__qualname__}.contract: expected a rewriter.Contract, found {cls.contract!r}"
    if cls.default and any(f.init and f.default is MISSING and f.default_factory is MISSING for f in fields(cls)):
        return f"{cls.__qualname__}.default: a pass with options that have no default cannot be applied by default"
    if not isinstance(cls.after, tuple) or not all(isinstance(name, str) for name in cls.after):
        return f"{cls.__qualname__}.after: expected a tuple of names of passes, found {cls.after!r}"
    return None


def _missing(cls: type[Pass]) -> str:
    """The methods that ``cls`` has to define but does not."""
    if cls.find is not Pass.find:
        return ""
    return " and ".join(name for name in ("candidates", "decide") if getattr(cls, name) is getattr(Pass, name))


def resolve_passes(passes: Any) -> list[Pass]:
    """The requested passes, ordered by the constraints they declare.

    Args:
        passes: None for the installed passes that are applied by default, or a sequence of names, instances and
            one-key dicts ``{"dropout": {"p": 0.1}}``; a single one of these may be given without a sequence.

    Raises:
        SelectorError: an unknown pass or option, or a pass requested twice.
        InstallationError: a requested pass was left out because its package is broken; the cause is the original error.
    """
    if passes is None:
        passes = tuple(name for name, cls in installed_passes().items() if cls.default)
    elif isinstance(passes, (str, Pass, Mapping, type)):
        passes = (passes,)
    if not isinstance(passes, Sequence):
        raise SelectorError(f"passes: expected a sequence of passes, found {type(passes).__name__}")
    resolved = [_with_plain_options(_resolve(item)) for item in passes]
    names = [item.name for item in resolved]
    for name in names:
        if names.count(name) > 1:
            raise SelectorError(f"pass {name!r} is asked for {names.count(name)} times; give it once, with its options")
    return _ordered(resolved)


def _resolve(item: Any) -> Pass:
    if isinstance(item, Pass):
        if problem := _problem(type(item)):
            raise SelectorError(f"{type(item).__name__} is no pass yet: {problem}")
        return item
    if isinstance(item, type) and issubclass(item, Pass):
        if missing := _missing(item):
            raise SelectorError(f"{item.__name__} is no pass yet: it does not define {missing}; give a class that does")
        try:
            return item()
        except TypeError as error:
            raise SelectorError(f"{item.__name__} cannot be made without options: {error}; give an instance") from error
    name: Any = item
    options: Any = {}
    if isinstance(item, Mapping) and len(item) == 1:
        name, options = next(iter(item.items()))
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise SelectorError(f"not a pass: {item!r}; give a name, an instance, or a dict {{name: {{option: value}}}}")
    known = installed_passes()
    if name not in known and name in _BROKEN:
        raise InstallationError(str(_BROKEN[name])) from _BROKEN[name].__cause__
    if name not in known:
        others = "; a pass of another package has to be installed"
        raise SelectorError(f"unknown pass {name!r}; {suggest(name, known)}{others}")
    accepted = [f.name for f in fields(known[name])]
    for option in options:
        if option not in accepted:
            raise SelectorError(f"pass {name!r} has no option {option!r}; its options: {', '.join(accepted)}")
    try:
        return known[name](**options)
    except ValueError as error:  # the pass's own check
        raise SelectorError(f"pass {name!r}: {error}") from error
    except TypeError as error:  # a check that an option of another type broke
        raise SelectorError(f"pass {name!r}: {misfit(known[name], options) or error}") from error


def _with_plain_options(item: Pass) -> Pass:
    if problem := misfit(type(item), {f.name: getattr(item, f.name) for f in fields(item) if f.init}):
        raise SelectorError(f"pass {item.name!r}: {problem}")
    try:
        for name, value in item.options().items():
            json_value(value, f"option {name}")
    except TypeError as error:
        raise SelectorError(f"pass {item.name!r}: {error}") from None
    return item


def _ordered(passes: list[Pass]) -> list[Pass]:
    """Order by declared constraints, then by name, so that the caller's order does not matter."""
    import networkx as nx

    by_name = {item.name: item for item in passes}
    graph = nx.DiGraph()
    graph.add_nodes_from(by_name)
    graph.add_edges_from((before, item.name) for item in passes for before in item.after if before in by_name)
    try:
        return [by_name[name] for name in nx.lexicographical_topological_sort(graph)]
    except nx.NetworkXUnfeasible as error:
        circle = " → ".join(before for before, _ in nx.find_cycle(graph))
        raise SelectorError(f"each of these passes has to come after another: {circle}; leave one out") from error


def suggest(name: str, known: Iterable[str]) -> str:
    """``did you mean …?`` with similar names, or the known names if none is similar."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f"did you mean {', '.join(map(repr, near))}?" if near else f"known: {', '.join(known[:20])}"

"""Which passes there are, which were asked for, and in which order they come."""

from __future__ import annotations

import difflib
import functools
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import networkx as nx

from rewriter.errors import SelectorError
from rewriter.guideline import Pass
from rewriter.layers import PASS_GROUP


@functools.lru_cache(maxsize=1)
def installed_passes() -> dict[str, type[Pass]]:
    """Every pass that an installed package registers in the entry-point group ``rewriter.passes``, by name."""
    found = [entry_point.load() for entry_point in importlib.metadata.entry_points(group=PASS_GROUP)]
    return {cls.name: cls for cls in sorted(found, key=lambda cls: cls.name)}


def resolve_passes(passes: Any) -> list[Pass]:
    """The passes asked for, ordered by the constraints they declare.

    Args:
        passes: None for all installed passes, or a sequence of names, instances and one-key dicts
            ``{"dropout": {"p": 0.1}}``; one of these alone is taken as a sequence of one.

    Raises:
        SelectorError: an unknown pass or option, or one pass asked for twice.
    """
    if passes is None:
        passes = tuple(installed_passes())
    elif isinstance(passes, (str, Pass, Mapping, type)):
        passes = (passes,)
    if not isinstance(passes, Sequence):
        raise SelectorError(f"passes: expected a sequence of passes, found {type(passes).__name__}")
    resolved = [_resolve(item) for item in passes]
    names = [item.name for item in resolved]
    for name in names:
        if names.count(name) > 1:
            raise SelectorError(f"pass {name!r} is asked for {names.count(name)} times; give it once, with its options")
    return _ordered(resolved)


def _resolve(item: Any) -> Pass:
    if isinstance(item, Pass):
        return item
    if isinstance(item, type) and issubclass(item, Pass):
        return item()
    name: Any = item
    options: Any = {}
    if isinstance(item, Mapping) and len(item) == 1:
        name, options = next(iter(item.items()))
    if not isinstance(name, str) or not isinstance(options, Mapping):
        raise SelectorError(f"not a pass: {item!r}; give a name, an instance, or a dict {{name: {{option: value}}}}")
    known = installed_passes()
    if name not in known:
        raise SelectorError(f"unknown pass {name!r}; {suggest(name, known)}")
    accepted = [f.name for f in fields(known[name])]
    for option in options:
        if option not in accepted:
            raise SelectorError(f"pass {name!r} has no option {option!r}; its options: {', '.join(accepted)}")
    try:
        return known[name](**options)
    except (TypeError, ValueError) as error:
        raise SelectorError(f"pass {name!r}: {error}") from error


def _ordered(passes: list[Pass]) -> list[Pass]:
    """By declared constraints; among those that are free, by name, so that the caller's order does not matter."""
    by_name = {item.name: item for item in passes}
    graph = nx.DiGraph()
    graph.add_nodes_from(by_name)
    graph.add_edges_from((before, item.name) for item in passes for before in item.after if before in by_name)
    return [by_name[name] for name in nx.lexicographical_topological_sort(graph)]


def suggest(name: str, known: Iterable[str]) -> str:
    """``did you mean …?`` with near names, or the whole list if none is near."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=5, cutoff=0.5)
    return f"did you mean {', '.join(map(repr, near))}?" if near else f"known: {', '.join(known[:20])}"

"""Apply edits on every path through the user's code that leads to a place, not only on the one that ran.

``if self.fused_attn: … else: …`` runs one branch, and the plan sees that one; if the flag were changed later, the edit
would be bypassed. So each condition that led to an edit is forced the other way, on a skeleton, and what the pass finds
at the same place then becomes part of the same site. If the code there cannot be edited, the place is refused.
"""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import CodeType

from torch import nn

from rewriter.edit.alternatives import Alternative, alternatives
from rewriter.edit.classes import class_name, method_source
from rewriter.edit.edits import AddBehaviour, AddModule, Edit, EditMethod, apply_edits
from rewriter.edit.forcing import Forcing, Method, NotForcedError
from rewriter.edit.positions import Position, positions
from rewriter.edit.reading_ways import reading_ways
from rewriter.edit.receivers import Receivers
from rewriter.edit.source import code_span
from rewriter.errors import RewriterError, SourceError
from rewriter.guideline.base import Finding, Pass, Site, Skipped
from rewriter.guideline.deciding import findings_of
from rewriter.model.random_state import random_state_kept
from rewriter.planning.in_force import not_run
from rewriter.reasons import TECHNICAL, Reason
from rewriter.tracing.facts import facts
from rewriter.tracing.skeleton import shared_twin, skeleton
from rewriter.tracing.trace import Trace, trace_model


@dataclass(frozen=True)
class _Way:
    """Another path through a method.

    Attributes:
        method: the method.
        tests: the conditions that select the path.
        reads: whether the path also leads to the place, and reads more of what is computed there.
        paths: the modules whose method it is.
    """

    method: Method
    tests: Alternative
    reads: bool
    paths: frozenset[str]

    def __str__(self) -> str:
        return " and ".join(map(str, self.tests))


def on_every_way(found: Sequence[Finding], traced: Trace, passes: Iterable[Pass]) -> list[Finding]:
    """Return ``found`` with each site edited on every path that leads to its place, or skipped with the reason."""
    findings = list(found)
    by_name = {item.name: item for item in passes}
    for way, indices in _ways(findings, traced).items():
        try:
            variant = _record(way, traced, ())
        except NotForcedError as error:
            _leave(findings, {index: findings[index] for index in indices}, way, str(error))
            continue
        if variant is None:  # the model does not run on that path, for lack of what it needs
            continue
        on_original = replace(variant, model=traced.model)
        for name in sorted({findings[index].pass_name for index in indices}):
            here = findings_of(by_name[name], on_original)
            own = [index for index in indices if findings[index].pass_name == name]
            for place in dict.fromkeys(map(_place_of, (findings[index] for index in own))):
                group = [index for index in own if _place_of(findings[index]) == place]
                _extend(findings, group, here, _Run(way, traced, by_name[name]))
    return findings


@dataclass(frozen=True)
class _Run:
    """Another path, the trace of the original path, and the pass that examines it."""

    way: _Way
    traced: Trace
    item: Pass


def _extend(findings: list[Finding], group: Sequence[int], here: Sequence[Finding], run: _Run) -> None:
    """Merge what a pass finds at a place on another path into its site there; ``group`` are the sites at the place."""
    sites = {index: site for index in group if isinstance(site := findings[index], Site)}
    if not sites:
        return
    first = next(iter(sites.values()))
    at_place = [finding for finding in findings if isinstance(finding, Site) and _is_at(finding, first)]
    there = [finding for finding in here if isinstance(finding, Site) and _is_at(finding, first)]
    if run.way.reads:
        reading = next((skip for skip in here if _is_read_there(skip, first) and skip not in findings), None)
        if isinstance(reading, Skipped) and len(there) < len(at_place):
            _leave(findings, sites, run.way, reading.detail, reading.reason)
        return
    known = {replace(edit, condition="") for site in at_place for edit in _method_edits(site)}
    more = [site for site in there if not _method_edits(site) <= known]
    problem = _refused(findings, here, first, run)
    if more and not problem:
        index = next((i for i, site in sites.items() if len(sites) == 1 or site.action == more[0].action), None)
        if index is None or len(more) > 1:
            problem = "it is not known which of several places it is"
        else:
            merged = _merged(sites[index], more[0], known, str(run.way), findings, run.traced.model)
            others = {site.action for site in there if site is not more[0]}
            problem = _changed_here(more[0], sites[index], run.traced) or _why_not(merged, run, others)
            if not problem:
                findings[index] = merged
    if problem:
        _leave(findings, sites, run.way, f"other code does the same work, and {problem}")


def _is_at(finding: Finding, site: Site) -> bool:
    return finding.pass_name == site.pass_name and _place_of(finding) == _place_of(site)


def _is_read_there(finding: Finding, site: Site) -> bool:
    refused = isinstance(finding, Skipped) and finding.reason in (Reason.OTHER_READERS, Reason.WRITTEN_IN_PLACE)
    return refused and finding.pattern == site.pattern


def _leave(
    findings: list[Finding],
    sites: Mapping[int, Finding],
    way: _Way,
    problem: str,
    reason: Reason | str = Reason.ONE_BRANCH,
) -> None:
    """Skip ``sites``, given by their indices among the findings."""
    for index, site in sites.items():
        if isinstance(site, Site):
            detail = f"{site.action}: where `{way}` holds, {problem}"
            findings[index] = site.skipped(reason, detail)


def _refused(findings: Sequence[Finding], here: Iterable[Finding], site: Site, run: _Run) -> str:
    """Return why the place of ``site`` cannot be edited on another path; empty if there is no such reason."""
    for skip in here:
        refused = isinstance(skip, Skipped) and skip.reason in TECHNICAL and skip.pattern == site.pattern
        if isinstance(skip, Skipped) and refused and _is_inside(skip.path, site.path) and skip not in findings:
            called_more_often = skip.reason is Reason.SHARED_MODULE and skip.path == site.path
            if not (called_more_often and _runs_there(site, run)):
                return f"{skip.reason}: {skip.detail}"
    return ""


def _runs_there(site: Site, run: _Run) -> bool:
    """Whether everything that ``site`` edits also runs on another path, as in an encoder run tile by tile."""
    variant = _record(run.way, run.traced, site.edits)
    return variant is not None and not list(not_run([site], run.traced.model, variant.model, variant))


def _is_inside(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}.")


def _method_edits(site: Site) -> set[EditMethod]:
    return {edit for edit in site.edits if isinstance(edit, EditMethod)}


def _place_of(finding: Finding) -> tuple[str, str]:
    return finding.path, finding.pattern


def _merged(
    site: Site, other: Site, known: set[EditMethod], condition: str, findings: Sequence[Finding], model: nn.Module
) -> Site:
    """Return ``site`` with the additional edits of ``other``, under a condition."""
    layers = {(e.path, e.name): e for f in findings if isinstance(f, Site) for e in f.edits if isinstance(e, AddModule)}
    other_edits = other.edits
    for edit in other.edits:
        if isinstance(edit, AddModule) and layers.get((edit.path, edit.name), edit) != edit:
            taken = {name for path, name in layers if path == edit.path}
            module = model.get_submodule(edit.path)
            names = (f"{edit.name}_{number}" for number in itertools.count(1))
            free = next(name for name in names if name not in taken and not hasattr(module, name))
            other_edits = tuple(_renamed(each, edit.path, edit.name, free) for each in other_edits)
    added: list[Edit] = []
    for edit in other_edits:
        if isinstance(edit, EditMethod):
            added += [] if edit in known else [replace(edit, condition=condition)]
        elif edit not in site.edits:
            added.append(edit)
    return replace(site, action=f"{site.action}, also where {condition}", edits=(*site.edits, *added))


def _renamed(edit: Edit, path: str, old: str, new: str) -> Edit:
    """Rename the child ``old`` in an edit that adds or calls it on the module at ``path``."""
    if edit.path != path:
        return edit
    if isinstance(edit, AddModule):
        return replace(edit, name=new) if edit.name == old else edit
    return replace(edit, operation=edit.operation.renamed(old, new)) if isinstance(edit, EditMethod) else edit


def _changed_here(other: Site, site: Site, traced: Trace) -> str:
    """Return a module that also runs here and that the other path's edits replace entirely; empty if there is none."""
    called = {str(node.target) for node in traced.train.graph.nodes if node.op == "call_module"}
    called |= {call.path for call in traced.train.calls}
    for edit in other.edits:
        if isinstance(edit, AddBehaviour) and edit not in site.edits and edit.path in called:
            return f"{other.action} would change {edit.path!r} here, too"
    return ""


def _why_not(site: Site, run: _Run, others: set[str]) -> str:
    """Return why a site does not hold on another path too; empty if it does. ``others`` are also found at its place."""
    variant = _record(run.way, run.traced, site.edits)
    if variant is None:
        return "the model does not run with it edited there too"
    found = [finding for finding in findings_of(run.item, variant) if isinstance(finding, Site)]
    same = [finding for finding in found if _place_of(finding) == _place_of(site) and finding.action not in others]
    return f"editing it there is not enough: {same[0].action}" if same else ""


def _record(way: _Way, traced: Trace, edits: Sequence[Edit]) -> Trace | None:
    """Record another path through the model with ``edits``; None if it does not run.

    Raises:
        NotForcedError: the method is called in a way that prevents recording another path through it.
    """
    copy = skeleton(traced.model, shared_twin)
    forcing = Forcing(way.tests)
    try:
        with random_state_kept():
            apply_edits(copy, edits)
        for path in sorted(way.paths):
            forcing.force(copy, path, way.method)
        variant = trace_model(copy, traced.inputs, (traced.backend,))
        forcing.take_back(variant.train, variant.eval)
    except NotForcedError:
        raise
    except (RewriterError, RecursionError):
        return None
    return replace(variant, may_measure=False, measured=traced.measured)


def _ways(findings: Sequence[Finding], traced: Trace) -> dict[_Way, list[int]]:
    """Return alternative paths to the places of sites, with the indices of the sites."""
    sites = {index: finding for index, finding in enumerate(findings) if isinstance(finding, Site)}
    edited = {edit.path for site in sites.values() for edit in site.edits}
    chains = _Chains(traced, edited, {site.path for site in sites.values()})
    ways: dict[tuple[Method, Alternative, bool], tuple[dict[str, None], dict[int, None]]] = {}
    for index, site in sites.items():
        for edit in site.edits:
            for path, method, tests, reads in chains.around(edit):
                if reads and not _is_inside(path, site.path):  # the difference lies within the place
                    continue
                paths, indices = ways.setdefault((method, tests, reads), ({}, {}))
                paths[path] = indices[index] = None
    return {_Way(*way, frozenset(paths)): list(indices) for way, (paths, indices) in ways.items()}


_Place = tuple[str, CodeType, int]
"""Module path, code of a function and instruction."""


_Around = tuple[str, Method, Alternative, bool]
"""Module path, method, conditions, and whether that path leads to the place and reads more of its results."""


class _Chains:
    """Which methods led to which modules and methods in a recording in training mode.

    Args:
        traced: the recording.
        paths: modules that are edited.
        judged: modules that are places of sites: the passes have already examined what runs in their methods.
    """

    def __init__(self, traced: Trace, paths: set[str], judged: set[str]) -> None:
        self._model = traced.model
        self._receivers = Receivers(traced.model)
        self._methods: dict[tuple[type, CodeType], Method | None] = {}
        self._callers: dict[tuple[str, CodeType], dict[_Place, None]] = {}
        self._calls: dict[str, dict[_Place, None]] = {}
        self._around_calls: dict[_Place, list[_Around]] = {}
        self._instructions: dict[CodeType, set[int]] = {}
        self._known: dict[tuple[Method, tuple[int, ...], tuple[str, ...]], list[tuple[Alternative, bool]]] = {}
        seen: set[tuple[str, int]] = set()
        for node in traced.train.graph.nodes:
            if node.op == "call_module" and node.target in paths:
                places = filter(None, map(self._place, positions(node)))
                self._calls.setdefault(str(node.target), {}).update(dict.fromkeys(places))
            call = facts(node)["call"]
            found = list(positions(node)) if call is not None else []
            for index, position in enumerate(found):
                path = self._receivers.path(position)
                if path in paths or path in judged:
                    self._instructions.setdefault(position.frame.code, set()).add(position.frame.instruction)
                key = path, position.frame.invocation
                if path in paths and position.frame.path is not None and key not in seen:
                    seen.add(key)
                    outer = filter(None, map(self._place, found[index + 1 :]))
                    callers = self._callers.setdefault((path, position.frame.code), {})
                    callers.update(dict.fromkeys(outer))

    def around(self, edit: Edit) -> Iterator[_Around]:
        """Yield alternative paths to what ``edit`` changes: in its method, and in those that called it."""
        callers: dict[_Place, None] = {}
        if isinstance(edit, AddBehaviour):
            callers.update(self._calls.get(edit.path, {}))
        elif isinstance(edit, EditMethod):
            for (path, code), outer in self._callers.items():
                method = self._method(path, code) if path == edit.path else None
                if method is not None and _is_of(edit, method):
                    places = [method.source.find(span) for span in edit.operation.spans]
                    yield from ((path, method, *way) for way in self._through(code, method, places))
                    callers.update(outer)
        for place in callers:
            yield from self._around_call(place)

    def _around_call(self, place: _Place) -> list[_Around]:
        if place not in self._around_calls:
            path, code, _ = place
            method = self._method(path, code)
            called = None if method is None else _called(method, place)
            self._around_calls[place] = []
            if method is not None and called is not None:
                node, texts = called
                ways = self._through(code, method, [node], texts)
                self._around_calls[place] = [(path, method, *way) for way in ways]
        return self._around_calls[place]

    def _through(
        self, code: CodeType, method: Method, places: Sequence[ast.AST], called: Sequence[str] = ()
    ) -> list[tuple[Alternative, bool]]:
        """Return alternative paths through a method, which all modules of its class share."""
        key = method, tuple(map(id, places)), tuple(called)
        if key not in self._known:
            tree = method.source.tree
            found = (_expression(method, code, instruction) for instruction in self._instructions.get(code, ()))
            evaluated = {node for node in found if node is not None}
            self._known[key] = [(tests, False) for tests in alternatives(tree, places, called)]
            self._known[key] += [(tests, True) for tests in reading_ways(tree, places, evaluated)]
        return self._known[key]

    def _place(self, position: Position) -> _Place | None:
        frame = position.frame
        return None if frame.path is None else (self._receivers.path(position), frame.code, frame.instruction)

    def _method(self, path: str, code: CodeType) -> Method | None:
        cls = type(self._model.get_submodule(path))
        if (cls, code) not in self._methods:
            try:
                found = method_source(cls, code)
            except RewriterError:
                found = None
            self._methods[cls, code] = None if found is None else Method(*found)
        return self._methods[cls, code]


def _is_of(edit: EditMethod, method: Method) -> bool:
    own = class_name(method.owner), method.name, method.source.digest
    return own == (edit.owner, edit.method, edit.digest)


def _called(method: Method, place: _Place) -> tuple[ast.AST, list[str]] | None:
    """Return the expression at a place, and the source of what it calls or passes on to be called."""
    _, code, instruction = place
    node = _expression(method, code, instruction)
    if node is None:
        return None
    if not isinstance(node, ast.Call):
        return node, []
    handed_on = (argument for argument in node.args if isinstance(argument, ast.Attribute))
    return node, [ast.unparse(item) for item in (node.func, *handed_on)]


def _expression(method: Method, code: CodeType, instruction: int) -> ast.AST | None:
    """Return what an instruction of a method, or a function in it, evaluates; None if the source does not show it."""
    span = code_span(code, instruction, method.source.first_line)
    try:
        return None if span is None else method.source.find(span)
    except SourceError:
        return None

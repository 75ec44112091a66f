"""Check that the code a plan edits is the code that runs: record the edited model again before returning the plan.

A method that is edited is not always the method that is called: a subclass calls ``Parent.forward(self, x)``, an
attribute holds a bound method, a decorator holds the function itself. Then an edit changes nothing, and nothing would
show it: the output in evaluation mode is the same. So the plan is applied to a skeleton of the model, which is recorded
in both modes. Every edited function and every added layer must have run, and the pass must find nothing more to do at
its places.
"""

from __future__ import annotations

import linecache
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import CodeType
from typing import Any

from torch import fx, nn

from rewriter.edit.classes import ClassEdit, edited_code, is_generated, source_of
from rewriter.edit.edits import AddBehaviour, AddModule, Edit, EditMethod, SetAttribute, apply_edits, find_module
from rewriter.edit.operations import CallMethod
from rewriter.edit.positions import positions
from rewriter.edit.source import contains_code
from rewriter.errors import PlanError, RewriterError, TraceError
from rewriter.guideline.base import Pass, Site, Skipped
from rewriter.guideline.deciding import findings_of
from rewriter.layers.registry import layer_class
from rewriter.model.random_state import random_state_kept
from rewriter.planning.effects import behaviours_watched, is_read
from rewriter.reasons import Reason
from rewriter.tracing.facts import facts
from rewriter.tracing.frames import Frame
from rewriter.tracing.inputs import Inputs
from rewriter.tracing.skeleton import shared_twin, skeleton
from rewriter.tracing.trace import BACKENDS, Trace, trace_model


@dataclass(frozen=True)
class Recorded:
    """What a plan is recorded again on.

    Attributes:
        model: the model as given; it is not modified.
        inputs: what it is run on.
        passes: those of the plan, as far as they are known here.
        backend: the tensor backend of the first recording; the ones before it are not tried again.
        measured: see :class:`~rewriter.tracing.trace.Trace`.
        planning: whether the sites were just found on this very model. Then a site whose edit cannot be made is
            reported like one that does not run; in a plan from elsewhere it is an error.
        modes_alike: whether the model is known to run the same operations in both modes.
        left: what was found and is not in the plan, see :func:`places_left`.
    """

    model: nn.Module
    inputs: Inputs
    passes: Sequence[Pass]
    backend: str = BACKENDS[0]
    measured: dict[Hashable, Any] = field(default_factory=dict)
    planning: bool = False
    modes_alike: bool = False
    left: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    @property
    def expected_errors(self) -> tuple[type[RewriterError], ...]:
        return (RewriterError,) if self.planning else (TraceError,)


def not_in_force(sites: Sequence[Site], recorded: Recorded) -> list[tuple[Site, str]]:
    """Return the ``sites`` whose edits change nothing that runs, or with which the model does not run, and the reasons.

    Raises:
        TraceError: the original model does not run on the inputs, so that nothing can be checked.
        PlanError, SourceError: an edit cannot be made, or the model does not run with it; not raised if the sites were
            just found on this model.
    """
    if not sites:
        return []
    try:
        edited, again, behaved = _record_edited(sites, recorded)
    except recorded.expected_errors as error:
        if not recorded.planning:
            trace_model(recorded.model, recorded.inputs)
            raise PlanError(f"the model does not run with the edits of this plan: {error}") from error
        return _that_do_not_run(list(sites), recorded, _without_input(error))
    failing = dict(not_run(sites, recorded.model, edited, again, behaved))
    for site, reason in _found_again([site for site in sites if id(site) not in failing], recorded, again):
        failing[id(site)] = reason
    return [(site, failing[id(site)]) for site in sites if id(site) in failing]


def _record_edited(sites: Sequence[Site], recorded: Recorded) -> tuple[nn.Module, Trace, set[str]]:
    """Return the edited skeleton, its recording, and the paths of the modules whose behaviour ran."""
    edited = skeleton(recorded.model, shared_twin)
    edits = [edit for site in sites for edit in site.edits]
    backends = BACKENDS[BACKENDS.index(recorded.backend) :]
    with behaviours_watched(edited, edits) as behaved:
        with random_state_kept():
            apply_edits(edited, edits)
        again = trace_model(edited, recorded.inputs, backends, modes_alike=recorded.modes_alike)
    again.measured = recorded.measured
    return edited, again, behaved


def _without_input(error: Exception) -> str:
    """The message without where the input came from: the original runs on it."""
    return str(error).partition(" The input came from")[0]


def _that_do_not_run(sites: list[Site], recorded: Recorded, error: str) -> list[tuple[Site, str]]:
    """Return the sites with which the model does not run; all of them if it fails only with all together."""
    if len(sites) == 1:
        return [(sites[0], f"the model does not run with this edit: {error}")]
    found = []
    for half in (sites[: len(sites) // 2], sites[len(sites) // 2 :]):
        try:
            _record_edited(half, recorded)
        except recorded.expected_errors as of_half:
            found += _that_do_not_run(half, recorded, _without_input(of_half))
    return found or [(site, f"the model does not run with these edits together: {error}") for site in sites]


def not_run(
    sites: Sequence[Site], model: nn.Module, edited: nn.Module, again: Trace, behaved: Collection[str] | None = None
) -> Iterator[tuple[int, str]]:
    """Yield sites of which an edited function or an added layer did not run in ``again``: identity and reason.

    Args:
        model: the model as given.
        edited: a skeleton of it, with the edits.
        again: the recording of that skeleton.
        behaved: the paths of the modules whose behaviour ran; None if unknown.
    """
    ran = _Ran(edited, again, behaved)
    for site in sites:
        functions_first = sorted(site.edits, key=lambda edit: not isinstance(edit, EditMethod))
        reason = next(filter(None, (_why_not_run(edit, site, model, edited, ran) for edit in functions_first)), None)
        if reason is not None:
            yield id(site), reason


class _Ran:
    """What ran in either mode of a recording: modules, functions of modules, and where each was called."""

    def __init__(self, model: nn.Module, trace: Trace, behaved: Collection[str] | None) -> None:
        self.trace, self.behaved = trace, behaved
        self._identity = {path: id(module) for path, module in model.named_modules(remove_duplicate=False)}
        recordings = [trace.train] if trace.eval is trace.train else [trace.train, trace.eval]
        self._nodes: list[fx.Node] = [node for recording in recordings for node in recording.graph.nodes]
        self._calls = [call for recording in recordings for call in recording.calls]

    @cached_property
    def modules(self) -> set[int]:
        paths = [str(node.target) for node in self._nodes if node.op == "call_module"]
        return {self._identity[path] for path in (*paths, *(call.path for call in self._calls))}

    @cached_property
    def functions(self) -> set[tuple[int, CodeType]]:
        frames = (frame for found in (*self._nodes, *self._calls) for frame in _frames_of(found))
        return {(self._identity[frame.path], frame.code) for frame in frames if frame.path is not None}

    def module(self, path: str) -> bool:
        return self._identity.get(path) in self.modules

    def function(self, path: str, code: CodeType) -> bool:
        return (self._identity[path], code) in self.functions

    def caller_of(self, path: str, code: CodeType) -> Frame | None:
        """Return the frame that called the function ``code``, or one defined inside it, for the module at ``path``."""
        for node in self._nodes:
            inside = False
            for position in positions(node):
                frame = position.frame
                if inside:
                    return frame
                same = frame.path is not None and self._identity[frame.path] == self._identity[path]
                inside = same and contains_code(code, frame.code)
        return None


def _frames_of(found: Any) -> tuple[Frame, ...]:
    frames: tuple[Frame, ...] = facts(found)["frames"] if isinstance(found, fx.Node) else found.frames
    return frames


def _why_not_run(edit: Edit, site: Site, model: nn.Module, edited: nn.Module, ran: _Ran) -> str | None:
    match edit:
        case AddModule(path=path, name=name):
            child = f"{path}.{name}".lstrip(".")
            used = any(_calls_child(other, path, name) for other in site.edits)
            return None if not used or ran.module(child) else f"{child}, which the edit adds, is not called"
        case AddBehaviour(path=path):
            if not ran.module(path):
                return f"module {path!r}, whose call the edit changes, is not called"
            if ran.behaved is not None and path not in ran.behaved:
                return f"module {path!r} does not run the forward of its class: {_own_call(find_module(model, path))}"
            return None
        case SetAttribute(path=path, name=name):
            read = is_read(edit, model, edited, ran.trace)
            return None if read else f"{name} of module {path!r} is not what its forward computes with"
        case EditMethod(operation=CallMethod()):  # of all calls through the class, not all need to run
            return None
        case EditMethod(path=path, owner=owner, method=method, digest=digest, condition=""):
            code = edited_code(type(find_module(edited, path)), owner, method, digest)
            if code is not None and ran.function(path, code):
                return None
            return _how_called(edit, model, ran)
    return None


def _own_call(module: nn.Module) -> str:
    """Return what takes precedence over the forward of a module's class, as far as it can be seen."""
    own = module.__dict__.get("forward")
    if own is None:
        return f"{type(module).__name__} calls something else"
    return f"{getattr(own, '__qualname__', type(own).__name__)} is set on the instance"


def _calls_child(edit: Edit, path: str, name: str) -> bool:
    """Whether an edit of the module at ``path`` makes it call its child ``name`` on the recorded path."""
    if isinstance(edit, EditMethod):
        return edit.path == path and not edit.condition and name in edit.operation.modules
    return isinstance(edit, AddBehaviour) and edit.path == path


def _how_called(edit: EditMethod, model: nn.Module, ran: _Ran) -> str:
    name = f"{edit.owner.rsplit('.', 1)[-1]}.{edit.method}"
    original = source_of(type(find_module(model, edit.path)), edit.owner, edit.method, edit.digest).function.__code__
    caller = ran.caller_of(edit.path, original)
    if caller is not None:
        return f"{_shown(caller)} calls {name}() as it is written, not as it is edited"
    return f"{name}(), which is to be edited, does not run in the edited model"


def _shown(frame: Frame) -> str:
    """Return the line that a frame was at, and its location."""
    text = linecache.getline(frame.code.co_filename, frame.line).strip()
    where = f"{Path(frame.code.co_filename).name}:{frame.line}"
    return f"`{text}` ({where})" if text else f"{frame.code.co_qualname}() ({where})"


def _found_again(sites: Sequence[Site], recorded: Recorded, again: Trace) -> Iterator[tuple[Site, str]]:
    """Yield sites at whose places their pass still finds something to do.

    A rule given as a function may always find something, and so may a pass that asks for what already holds: there it
    suffices that the edits ran.
    """
    for item in recorded.passes:
        own = [site for site in sites if site.pass_name == item.name]
        if not own or any(callable(value) for value in vars(item).values()):
            continue
        sites_again = (finding for finding in findings_of(item, again) if isinstance(finding, Site))
        found = [site for site in sites_again if not all(_is_so(edit, again.model) for edit in site.edits)]
        for place in dict.fromkeys(map(place_of, own)):
            here = [site for site in own if place_of(site) == place]
            still = [site for site in found if place_of(site) == place]
            if len(still) > recorded.left[place]:
                actions = {site.action for site in still}
                for site in [site for site in here if site.action in actions] or here:
                    yield site, f"the edit ran, and {item.name} still finds the same place: {still[0].action}"


def place_of(finding: Site | Skipped) -> tuple[str, str, str]:
    """Return the key that two findings at one place have in common."""
    return finding.pass_name, finding.path, finding.pattern


def places_left(skipped: Iterable[Skipped]) -> Counter[tuple[str, str, str]]:
    """Count by kind and place the edits that were found but not made, and so will be found again."""
    return Counter(place_of(skip) for skip in skipped if skip.reason in _NOT_MADE)


_NOT_MADE = frozenset({Reason.FILTERED, Reason.HELD_BACK, Reason.CLAIMED, Reason.NOT_IN_FORCE, Reason.ONE_BRANCH})


def _is_so(edit: Edit, model: nn.Module) -> bool:
    """Whether an edit asks for what an earlier one has already done to the model."""
    module = find_module(model, edit.path)
    edits = list(_edits_of_class(type(module)))
    match edit:
        case SetAttribute(name=name, value=value):
            return bool(getattr(module, name, None) == value)
        case AddBehaviour(behaviour=behaviour):
            return any(behaviour in of_class.behaviours for of_class in edits)
        case AddModule(layer=layer):
            return any(type(child) is layer_class(layer) for child in module.children())
        case EditMethod(owner=owner, method=method, digest=digest):
            known = [of_method for of_class in edits for of_method in of_class.methods]
            own = [of_method for of_method in known if (of_method.owner, of_method.method) == (owner, method)]
            return bool(own) and all(of_method.digest != digest for of_method in own)
    return False


def _edits_of_class(cls: type) -> Iterator[ClassEdit]:
    while is_generated(cls):
        yield cls._rewriter_edit  # type: ignore[attr-defined]
        cls = cls._rewriter_base  # type: ignore[attr-defined]

"""Run another path through methods of a skeleton, and map what ran to positions in the original methods."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import CodeType

from torch import nn

from rewriter.edit.alternatives import Alternative
from rewriter.edit.classes import ClassEdit, MethodEdit, class_name, derive, edited_code, method_source
from rewriter.edit.held_methods import rebind, replaced_by_class
from rewriter.edit.source import FunctionSource, Span, code_spans
from rewriter.errors import SourceError
from rewriter.tracing.facts import facts
from rewriter.tracing.frames import Frame
from rewriter.tracing.trace import Recording


@dataclass(frozen=True)
class Method:
    """A method that modules of the model run: the class that defines it, its name there, and its text."""

    owner: type
    name: str
    source: FunctionSource


class NotForcedError(SourceError):
    """A method is called in such a way that its path cannot be forced for one module alone."""


class Forcing:
    """Methods of a skeleton whose conditions have forced outcomes; for an edited method, the edited version."""

    def __init__(self, tests: Alternative) -> None:
        self._tests = tests
        self._classes: list[tuple[nn.Module, type[nn.Module]]] = []
        self._steps_back: list[Callable[[], None]] = []
        self._plain: dict[CodeType, tuple[CodeType, FunctionSource]] = {}
        self._paths: set[str | None] = {None}

    def force(self, model: nn.Module, path: str, method: Method) -> None:
        """Make the module of ``model`` at ``path`` take the other path through ``method``.

        Raises:
            NotForcedError: a condition is of a kind that cannot be forced.
            SourceError, PlanError: the method has no such condition, or cannot be emitted.
        """
        for test in self._tests:
            if not test.forceable:
                raise NotForcedError("its other cases may do the same work, and are not looked into")
        module = model.get_submodule(path)
        cls = type(module)
        name = class_name(method.owner), method.name
        code = edited_code(cls, *name, method.source.digest) or method.source.function.__code__
        found = method_source(cls, code)
        if found is None:
            raise SourceError(f"{name[0]}.{name[1]} is not what {class_name(cls)} runs")
        owner, own_name, source = found
        edit = MethodEdit(class_name(owner), own_name, source.digest, forced=self._tests)
        module.__class__ = derive(cls, ClassEdit((), (edit,)))
        self._classes.append((module, cls))
        self._paths.add(path)
        self._steps_back += rebind(model, {module: replaced_by_class(module)})
        forced = edited_code(type(module), edit.owner, edit.method, edit.digest)
        assert forced is not None
        self._plain.update((other, (plain, source)) for plain, other in _pairs(source.function.__code__, forced))

    def take_back(self, *recordings: Recording) -> None:
        """Restore the modules' classes, and make the frames of ``recordings`` refer to the original methods.

        Raises:
            NotForcedError: the original method ran, not the forced one. Of a path without operations neither is seen.
        """
        for step in reversed(self._steps_back):
            step()
        for module, cls in reversed(self._classes):
            module.__class__ = cls
        known: dict[tuple[CodeType, int], tuple[CodeType, int]] = {}
        named = functools.cache(_named)
        nodes = (facts(node)["frames"] for recording in recordings for node in recording.graph.nodes)
        calls = (call.frames for recording in recordings for call in recording.calls)
        frames = {frame for chain in (*nodes, *calls) for frame in chain}
        originals = {code for code, _ in self._plain.values()}
        ran = any(frame.code in originals and frame.path in self._paths for frame in frames)
        if ran and not any(frame.code in self._plain for frame in frames):
            plain = ", ".join(dict.fromkeys(code.co_qualname for code in originals))
            raise NotForcedError(f"what {plain}() does cannot be seen: it is called by the name of its class")

        def of(frame: Frame) -> Frame:
            if frame.code not in self._plain:
                return frame
            key = frame.code, frame.instruction
            if key not in known:
                plain, source = self._plain[frame.code]
                known[key] = plain, _same_instruction(plain, frame.code, frame.instruction, source, named)
            code, instruction = known[key]
            return replace(frame, code=code, instruction=instruction)

        for recording in recordings:
            for node in recording.graph.nodes:
                facts(node)["frames"] = tuple(map(of, facts(node)["frames"]))
            for call in recording.calls:
                call.frames = tuple(map(of, call.frames))


def _pairs(plain: CodeType, forced: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """The two code objects, and the functions, lambdas and comprehensions inside them, in pairs."""
    yield plain, forced
    inner = ([constant for constant in c.co_consts if isinstance(constant, CodeType)] for c in (plain, forced))
    for one, other in zip(*inner, strict=True):
        yield from _pairs(one, other)


_Named = tuple[int, Span | None]
"""An instruction of byte code, and its place in the text."""


def _same_instruction(
    plain: CodeType, forced: CodeType, instruction: int, source: FunctionSource, named: _Names
) -> int:
    """The index in ``plain`` of an ``instruction`` of ``forced``: the same one at the same place of the text."""
    there, here = named(forced, source.header_lines + 1), named(plain, source.first_line)
    wanted = there[instruction // 2]
    before = there[: instruction // 2].count(wanted)
    same = [2 * index for index, name in enumerate(here) if name == wanted]
    if before >= len(same):
        raise SourceError(f"{plain.co_qualname}: what a forced condition led to is not where it was")
    return same[before]


def _named(code: CodeType, first_line: int) -> list[_Named]:
    """All instructions of ``code``, and their places in lines from ``first_line``."""
    return list(zip(code.co_code[::2], code_spans(code, first_line), strict=True))


_Names = Callable[[CodeType, int], list[_Named]]

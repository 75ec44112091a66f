"""What runs more than once in one forward: an edit there would affect all of its runs."""

from __future__ import annotations

import itertools
import types
from collections import Counter, defaultdict
from collections.abc import Collection
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn

from rewriter.analysis.naming import name_of
from rewriter.edit.positions import Position, positions
from rewriter.edit.receivers import Receivers
from rewriter.reasons import Reason, Refused
from rewriter.tracing.facts import facts
from rewriter.tracing.frames import Frame
from rewriter.tracing.module_call import ModuleCall
from rewriter.tracing.trace import Recording


class RepeatedCalls:
    """How often the modules, functions and expressions of one recording ran."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        self._model = model
        self._recording = recording
        self.receivers = Receivers(model)

    def of(self, path: str) -> int:
        """How often the module at ``path`` was called, under any of its names."""
        return len(self._calls[id(self._model.get_submodule(path))])

    def refuse_module(self, path: str) -> None:
        """Refuse to change the module at ``path`` if it is called more than once.

        Raises:
            Refused: names the module and its calls.
        """
        if self.of(path) > 1:
            raise Refused(Reason.SHARED_MODULE, self._told(path))

    def refuse(self, position: Position, node: fx.Node, among: Collection[fx.Node] = ()) -> None:
        """Refuse to edit the expression at ``position``, which leads to ``node``, if it runs for something else too.

        Args:
            among: operations that the edit is meant for; if the expression issues no others, it may run several times.

        Raises:
            Refused: the module, the function or the expression ran several times; names the module and its calls.
        """
        if among and position.direct and self._issued[self._place(position)] <= set(among):
            return
        path, frame = self.receivers.path(position), position.frame
        self.refuse_module(path)
        if len(self._invocations[path, frame.code]) > 1:
            raise Refused(Reason.SHARED_MODULE, f"{frame.code.co_qualname}() is called more than once in one forward")
        times = self._evaluations[frame.invocation, frame.instruction]
        if position.direct and times > 1:
            if node.op == "call_module" and self.of(str(node.target)) > 1:
                raise Refused(Reason.SHARED_MODULE, self._told(str(node.target)))
            module = self._model.get_submodule(path)
            if type(module).__module__.startswith("torch."):
                detail = f"the loop of {path!r}, an nn.{type(module).__name__}, calls it"
            else:
                line = f"line {frame.line} in {frame.code.co_qualname}()"
                detail = f"{line}, which issues {name_of(node)}, runs {times} times in one call; an edit acts on all"
            raise Refused(Reason.IN_A_LOOP, detail)

    def _place(self, position: Position) -> tuple[int, types.CodeType, int]:
        """The module, the code and the instruction of an expression."""
        module = self._model.get_submodule(self.receivers.path(position))
        return id(module), position.frame.code, position.frame.instruction

    @cached_property
    def _issued(self) -> dict[tuple[int, types.CodeType, int], set[fx.Node]]:
        """The operations that each expression issues itself."""
        found: dict[tuple[int, types.CodeType, int], set[fx.Node]] = defaultdict(set)
        for node in self._recording.graph.nodes:
            for position in itertools.islice(positions(node), 1):
                if position.direct:
                    found[self._place(position)].add(node)
        return found

    def _told(self, path: str) -> str:
        """Describe a module that is called several times: under which names, and on which lines."""
        module = self._model.get_submodule(path)
        names = [name for name, other in self._model.named_modules(remove_duplicate=False) if other is module]
        called = f"module {path!r} ({type(module).__name__}) is called {self.of(path)} times in one forward"
        if len(names) > 1:
            return f"{called}: it is one object under the names {', '.join(map(repr, names))}"
        lines = dict.fromkeys(_line(frames, call) for frames, call in self._calls[id(module)])
        return f"{called}: {', '.join(lines)}"

    @cached_property
    def _calls(self) -> dict[int, list[tuple[tuple[Frame, ...], ModuleCall | None]]]:
        """By ``id`` of each module, the frames of its calls, and the calls in which these were made."""
        nodes = (node for node in self._recording.graph.nodes if node.op == "call_module")
        made: list[tuple[str, tuple[Frame, ...], ModuleCall | None]] = [
            (str(node.target), facts(node)["frames"], facts(node)["call"]) for node in nodes
        ]
        made += [(call.path, call.frames, call.parent) for call in self._recording.calls]
        found: dict[int, list[tuple[tuple[Frame, ...], ModuleCall | None]]] = defaultdict(list)
        for path, frames, call in made:
            found[id(self._model.get_submodule(path))].append((frames, call))
        return found

    @cached_property
    def _invocations(self) -> dict[tuple[str, types.CodeType], set[int]]:
        """The calls of each function in each module."""
        found: dict[tuple[str, types.CodeType], set[int]] = {}
        for node in self._recording.graph.nodes:
            for position in positions(node):
                found.setdefault((self.receivers.path(position), position.frame.code), set()).add(
                    position.frame.invocation
                )
        return found

    @cached_property
    def _evaluations(self) -> Counter[tuple[int, int]]:
        """How often each expression was evaluated in one call of its function."""
        seen: dict[tuple[int, int], set[Any]] = {}
        for node in self._recording.graph.nodes:
            if node.op in ("call_module", "call_function"):
                _note_evaluations(seen, facts(node)["frames"], node)
        for call in self._recording.calls:
            _note_evaluations(seen, call.frames, call)
        return Counter({key: len(what) for key, what in seen.items()})


def _line(frames: tuple[Frame, ...], call: ModuleCall | None) -> str:
    """The innermost line outside torch's own code that led to a call of a module, made in ``call``."""
    own = (frame for frame in frames if not frame.code.co_filename.startswith(torch.__path__[0]))
    found = next((f"line {frame.line} in {frame.code.co_qualname}()" for frame in own), None)
    if found is not None or call is None:
        return found or "the model itself"
    return _line(call.frames, call.parent)


def _note_evaluations(seen: dict[tuple[int, int], set[Any]], frames: tuple[Frame, ...], what: Any) -> None:
    for index, frame in enumerate(frames):
        inner = what if index == 0 else frames[index - 1].invocation
        seen.setdefault((frame.invocation, frame.instruction), set()).add(inner)

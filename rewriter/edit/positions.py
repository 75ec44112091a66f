"""The expressions in the user's code that lead to an operation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from rewriter.tracing.facts import facts
from rewriter.tracing.frames import Frame
from rewriter.tracing.module_call import ModuleCall


@dataclass(frozen=True)
class Position:
    """One expression on the path from the model down to an operation.

    Attributes:
        frame: the frame that evaluates the expression, in ``call``.
        direct: whether the expression issues the operation itself, rather than call a function or module that does.
        arguments: what the expression passes on, as nodes, if it is not direct.
        receives: whether it is a function whose first argument is a module, or another object that it is a method of,
            followed by these arguments.
    """

    frame: Frame
    call: ModuleCall
    direct: bool
    arguments: tuple[fx.Node | None, ...]
    receives: bool = False


def positions(node: fx.Node) -> Iterator[Position]:
    """The expressions that lead to ``node``, innermost first."""
    frames = facts(node)["frames"]
    around: ModuleCall | None = facts(node)["call"]
    inner: ModuleCall | None = None
    while around is not None:
        for index, frame in enumerate(frames):
            direct = inner is None and index == 0
            callee = frames[index - 1] if index > 0 else inner
            receives = isinstance(callee, Frame) and callee.receives
            yield Position(frame, around, direct, callee.arguments if callee is not None else (), receives)
        inner, frames, around = around, around.frames, around.parent

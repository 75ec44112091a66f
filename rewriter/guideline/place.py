"""A place where a pass may apply, what can be asked about it, and the edits that can be made there."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:  # pass metadata can be read without torch
    from torch import fx, nn

    from rewriter.analysis.interference import Interference
    from rewriter.edit.editor import Editor
    from rewriter.edit.edits import Edit
    from rewriter.edit.free_names import FreeNames
    from rewriter.tracing.dataflow import Dataflow
    from rewriter.tracing.trace import Trace

Subject = TypeVar("Subject")


class Place(Generic[Subject]):
    """A place where a pass may apply.

    Args:
        trace: the trace that it was found in.
        where: an operation of the training run, or the path of a module for a place that is not an operation.
        pattern: what was recognised, such as ``"residual branch"``.
        subject: what the pass knows about it: anything that ``decide`` needs.
        path: path of the module that the change belongs to; by default the module that the operation calls, or whose
            method issues it.

    Attributes:
        node: the operation; None if the place is not one.
    """

    def __init__(
        self,
        trace: Trace,
        where: fx.Node | str,
        pattern: str,
        subject: Subject = None,  # type: ignore[assignment]
        *,
        path: str | None = None,
    ) -> None:
        self.trace, self.pattern, self.subject = trace, pattern, subject
        self.node = None if isinstance(where, str) else where
        own = where if isinstance(where, str) else _path_of(where)
        self.path = own if path is None else path
        self._names: FreeNames | None = None

    @property
    def model(self) -> nn.Module:
        """The traced model; it must not be changed."""
        return self.trace.model

    @property
    def module(self) -> nn.Module:
        """The module at :attr:`path`."""
        return self.model.get_submodule(self.path)

    @property
    def flow(self) -> Dataflow:
        """The dataflow of the training run."""
        return self.trace.train.dataflow

    @property
    def interference(self) -> Interference:
        """Other readers and writers of what an edit would change; its methods refuse edits that would affect them."""
        from rewriter.analysis.interference import interference

        return interference(self.flow, self.trace)

    @cached_property
    def edit(self) -> Editor:
        """Makes edits here; each method refuses what cannot be done."""
        from rewriter.edit.editor import Editor
        from rewriter.edit.expressions import expressions
        from rewriter.edit.free_names import FreeNames

        return Editor(expressions(self.flow, self.trace), self._names or FreeNames(self.model))

    @property
    def edits(self) -> list[Edit]:
        """The edits made here so far."""
        return self.edit.edits if "edit" in self.__dict__ else []

    def share_names(self, names: FreeNames) -> None:
        """Take the names of added modules from ``names``, so that no two places use the same one."""
        self._names = names


def _path_of(node: fx.Node) -> str:
    from rewriter.analysis.naming import path_of

    return path_of(node)

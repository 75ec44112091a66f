"""A place that looks right to a pass, and what can be asked about it and done there."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:  # what a pass is can be told without torch
    from torch import fx, nn

    from rewriter.analysis.interference import Interference
    from rewriter.edit.editor import Editor
    from rewriter.edit.edits import Edit
    from rewriter.edit.free_names import FreeNames
    from rewriter.tracing.dataflow import Dataflow
    from rewriter.tracing.trace import Trace

Subject = TypeVar("Subject")


class Place(Generic[Subject]):
    """A place that looks right to a pass.

    Args:
        trace: the trace that it was found in.
        where: an operation of the training run; or the path of a module, for a place that is no operation.
        pattern: what was recognised, such as ``"residual branch"``.
        subject: what the pass knows of it: anything that ``decide`` needs.
        path: the module that the change belongs to; else that of the operation: the module that is called, or that
            whose method issues it.

    Attributes:
        node: the operation; None for a place that is none.
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
        """The model that was traced; it is not to be changed."""
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
        """Who else reads or writes what an edit would change; its methods refuse what would reach others."""
        from rewriter.analysis.interference import interference

        return interference(self.flow, self.trace)

    @cached_property
    def edit(self) -> Editor:
        """Makes edits here; each verb refuses what cannot be done."""
        from rewriter.edit.editor import Editor
        from rewriter.edit.expressions import expressions
        from rewriter.edit.free_names import FreeNames

        return Editor(expressions(self.flow, self.trace), self._names or FreeNames(self.model))

    @property
    def edits(self) -> list[Edit]:
        """What was made here so far."""
        return self.edit.edits if "edit" in self.__dict__ else []

    def share_names(self, names: FreeNames) -> None:
        """Take names for what is added from ``names``, so that other places get others."""
        self._names = names


def _path_of(node: fx.Node) -> str:
    from rewriter.analysis.naming import path_of

    return path_of(node)

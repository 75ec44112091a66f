"""One call of a module whose inside was recorded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx

from rewriter.tracing.frames import Frame


@dataclass(eq=False)
class ModuleCall:
    """One call of a module whose inside was recorded.

    Attributes:
        path: the module's path; "" for the model itself.
        parent: the call that it was made in; None for the model itself.
        frames: where in the parent's code it was made, innermost first.
        arguments: positional arguments as nodes (None for what is not a tensor).
        outputs: nodes of the tensors that it returned.
    """

    path: str
    parent: ModuleCall | None
    frames: tuple[Frame, ...]
    arguments: tuple[fx.Node | None, ...]
    outputs: list[fx.Node] = field(default_factory=list)

    def chain(self) -> Iterable[ModuleCall]:
        """This call and those around it, innermost first."""
        call: ModuleCall | None = self
        while call is not None:
            yield call
            call = call.parent

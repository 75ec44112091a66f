"""What is recorded of each operation, with types: ``facts(node)["kind"]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, cast

if TYPE_CHECKING:  # passes say what they are without torch
    import torch
    from torch import fx

    from rewriter.tracing.frames import Frame, Owner
    from rewriter.tracing.kinds import Kind
    from rewriter.tracing.module_call import ModuleCall


class Facts(TypedDict):
    """The entries of a node's ``meta``.

    Attributes:
        kind: what the operation means.
        shape, dtype: of the first tensor that it gives; None of what gives none, of which no shape is asked.
        module_path: the module that is called, or whose method issues the operation.
        module_stack: the modules around it, the outermost first.
        owner: the module, the method and the line that issue it.
        frames: the Python frames that led to it, the innermost first.
        call: of the module around it; None at the root.
        after: what wrote to a tensor that it is a later state of.
        storage: the memory of what it gives, and ``writes`` those that it wrote to, as numbers of this recording.
        active: of a dropout, whether it dropped anything.
    """

    kind: Kind
    shape: tuple[int, ...]
    dtype: torch.dtype
    module_path: str
    module_stack: tuple[str, ...]
    owner: Owner
    frames: tuple[Frame, ...]
    call: ModuleCall
    after: tuple[fx.Node, ...]
    storage: int | None
    writes: frozenset[int]
    active: bool


def facts(node: fx.Node) -> Facts:
    """What is recorded of ``node``."""
    return cast("Facts", node.meta)

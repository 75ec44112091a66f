"""What is recorded about each operation, with types: ``facts(node)["kind"]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, cast

if TYPE_CHECKING:  # pass metadata can be read without torch
    import torch
    from torch import fx

    from rewriter.tracing.frames import Frame, Owner
    from rewriter.tracing.kinds import Kind
    from rewriter.tracing.module_call import ModuleCall


class Facts(TypedDict):
    """The entries of a node's ``meta``.

    Attributes:
        kind: the kind of the operation.
        shape, dtype: of its first output tensor; None, and never read, if it has none.
        module_path: the module that is called, or whose method issues the operation.
        module_stack: the modules around it, outermost first.
        owner: the module, the method and the line that issue it.
        frames: the Python frames that led to it, innermost first.
        call: the call of the module around it; None at the root.
        after: for the later state of a tensor, the operations that wrote to it.
        storage: the memory of its output; ``writes`` is the memory that it wrote to, as numbers of this recording.
        active: for a dropout, whether it dropped anything.
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
    """What is recorded about ``node``."""
    return cast("Facts", node.meta)

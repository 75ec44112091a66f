"""What a value is computed from."""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx


def computed_from(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """``nodes`` and all that their values are computed from, stored tensors and inputs included."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found

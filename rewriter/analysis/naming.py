"""How plans call an operation."""

from __future__ import annotations

from torch import fx


def name_of(node: fx.Node) -> str:
    """A module by its path below the module that calls it; a function by its name and where it is called."""
    if node.op == "call_module":
        return str(node.target).removeprefix(f"{node.meta['owner'].path}.")
    return f"{getattr(node.target, '__name__', node.name)}() in {node.meta['owner'].method}()"

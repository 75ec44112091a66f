"""How plans call an operation."""

from __future__ import annotations

from torch import fx


def name_of(node: fx.Node) -> str:
    """A module by its path below the module that calls it; a function by its name and where it is called."""
    owner = node.meta["owner"]
    if node.op == "call_module":
        below = str(node.target).removeprefix(f"{owner.path}.")
        return str(node.target) if below.isdigit() else below
    caller = f"{owner.path.rsplit('.', 1)[-1]}.{owner.method}".removeprefix(".")
    return f"{getattr(node.target, '__name__', node.name)}() in {caller}()"


def path_of(node: fx.Node) -> str:
    """Where the user finds it: the module's path, or the module whose method calls the function."""
    return str(node.target) if node.op == "call_module" else str(node.meta["owner"].path)

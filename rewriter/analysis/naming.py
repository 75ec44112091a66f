"""The names of operations in plans."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import fx

from rewriter.tracing.facts import facts


def name_of(node: fx.Node) -> str:
    """Name a module by its path below its caller, and a function by its name and where it is called."""
    owner = facts(node)["owner"]
    if node.op == "call_module":
        below = str(node.target).removeprefix(f"{owner.path}.")
        return str(node.target) if below.isdigit() else below
    caller = f"{owner.path.rsplit('.', 1)[-1]}.{owner.method}".removeprefix(".")
    return f"{getattr(node.target, '__name__', node.name)}() in {caller}()"


def names_apart(nodes: Sequence[fx.Node], below: str) -> dict[fx.Node, str]:
    """As :func:`name_of`, with longer names for operations that would otherwise be named alike.

    Args:
        nodes: the operations to name, in execution order.
        below: the path that is left out of longer module names.
    """
    names = {node: name_of(node) for node in nodes}
    for node in _alike(names):
        if node.op == "call_module":
            names[node] = str(node.target).removeprefix(f"{below}.")
    numbers: Counter[str] = Counter()
    for node in _alike(names):
        name = names[node]
        names[node] = f"the {_ORDINALS.get(numbers[name], f'{numbers[name] + 1}th')} {name}"
        numbers[name] += 1
    return names


_ORDINALS = {0: "first", 1: "second", 2: "third"}


def _alike(names: Mapping[fx.Node, str]) -> list[fx.Node]:
    counts = Counter(names.values())
    return [node for node, name in names.items() if counts[name] > 1]


def path_of(node: fx.Node) -> str:
    """Where the user finds an operation: the module's path, or that of the module whose method calls the function."""
    return str(node.target) if node.op == "call_module" else str(facts(node)["owner"].path)

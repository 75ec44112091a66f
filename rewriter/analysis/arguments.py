"""Arguments of a recorded call, given by position or by name."""

from __future__ import annotations

from typing import Any

from torch import fx


def argument(call: fx.Node, name: str, position: int | None, default: Any = None) -> Any:
    """The argument ``name`` of a function call, which is also taken at ``position`` (None: by name only)."""
    if name in call.kwargs:
        return call.kwargs[name]
    return call.args[position] if position is not None and len(call.args) > position else default

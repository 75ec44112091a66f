"""Dropouts of a recording, as passes other than the one that places them need to know them."""

from __future__ import annotations

from torch import fx, nn

from rewriter.analysis.arguments import argument


def drop_rate(node: fx.Node, model: nn.Module) -> float:
    """The rate that a dropout had during the trace; torch's default of 0.5 where the call does not say."""
    if node.op == "call_module":
        return float(model.get_submodule(str(node.target)).p)  # type: ignore[arg-type]
    rate = argument(node, "p", 1, 0.5)
    return float(rate) if isinstance(rate, (int, float)) else 0.5

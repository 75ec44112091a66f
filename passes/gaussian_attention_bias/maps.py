"""The map that tokens were before it was flattened, by the shapes on the way back to it."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from rewriter.authoring import Kind, Trace
from rewriter.passes.gaussian_attention_bias.grids import Grid
from rewriter.tracing.facts import facts


@dataclass(frozen=True)
class _Tokens:
    """Tokens on the way back to their map: the dimension that counts them, and how many stand before them."""

    node: fx.Node
    dimension: int
    prefix: int = 0

    @property
    def size(self) -> int:
        return facts(self.node)["shape"][self.dimension]

    @property
    def length(self) -> int:
        """The number of dimensions."""
        return len(facts(self.node)["shape"])


def grid_of_tokens(node: fx.Node, dimension: int, trace: Trace) -> Grid | None:
    """The map that was flattened to ``dimension`` of ``node``; None if none is found on the way back."""
    flow = trace.train.dataflow
    pending = [_Tokens(node, dimension % len(facts(node)["shape"]))]
    seen = set(pending)
    while pending:
        pending.sort(key=lambda tokens: flow.position(tokens.node))
        tokens = pending.pop()
        sources = [source for source in flow.sources(tokens.node) if facts(source)["shape"]]
        if facts(tokens.node)["kind"] in (Kind.VIEW, Kind.SELECT) and len(sources) == 1:
            dimensions = _viewed(tokens.node, sources[0], tokens.dimension, trace)
            if len(dimensions) == 2:
                outer, inner = dimensions
                rows, columns = (facts(sources[0])["shape"][each] for each in dimensions)
                return Grid(rows, columns, tokens.prefix, (sources[0], (outer, inner)))
            found = [_selected(tokens, sources[0], each) for each in dimensions]
        elif facts(tokens.node)["kind"] is Kind.CONCAT:
            found = _parts(tokens, sources)
        else:
            found = [each for source in sources if (each := _unmoved(tokens, source)) is not None]
        new = [each for each in found if each not in seen]
        seen.update(new)
        pending += new
    return None


def module_of_map(grid: Grid, trace: Trace) -> tuple[str, tuple[int, int]] | None:
    """The module whose output is the map of a grid, or has its rows and columns, and the dimensions of these there."""
    if grid.map is None:
        return None
    node, dimensions = grid.map
    while node.op != "call_module":
        sources = [source for source in trace.train.dataflow.sources(node) if facts(source)["shape"]]
        if len(sources) != 1:
            return None
        if facts(node)["kind"] in (Kind.VIEW, Kind.SELECT):
            found = [_viewed(node, sources[0], each, trace) for each in dimensions]
            if any(len(each) != 1 for each in found):
                return None
            dimensions = found[0][0], found[1][0]
        elif facts(node)["shape"] != facts(sources[0])["shape"]:
            return None
        node = sources[0]
    return str(node.target), dimensions


def _viewed(view: fx.Node, source: fx.Node, dimension: int, trace: Trace) -> tuple[int, ...]:
    """The dimensions of ``source`` that became a dimension of ``view``: a view of a contiguous tensor keeps strides."""
    if view.target is operator.getitem and facts(view)["shape"] == facts(source)["shape"]:  # one of several results
        return (dimension,)
    before = torch.empty(facts(source)["shape"], device="meta")
    args, kwargs = fx.map_arg((view.args, view.kwargs), lambda node: before if node is source else None)
    try:
        function = trace.model.get_submodule(str(view.target)).forward if view.op == "call_module" else view.target
        result = function(*args, **kwargs)  # type: ignore[operator]
    except Exception:  # an index that is a tensor
        return ()
    after = result if isinstance(result, torch.Tensor) else result[0]
    size, stride = after.shape[dimension], after.stride(dimension)
    sizes = [(each, length, before.stride(each)) for each, length in enumerate(before.shape) if length > 1]
    for each, length, step in sizes:
        if step == stride and (length == size or facts(view)["kind"] is Kind.SELECT):
            return (each,)
    for (outer, rows, _), (inner, columns, step) in itertools.pairwise(sizes):
        if step == stride and rows * columns == size:
            return outer, inner
    return ()


def _selected(tokens: _Tokens, source: fx.Node, dimension: int) -> _Tokens:
    """The tokens in what they were selected from: of all tokens, those behind the first ones have a prefix there."""
    more = facts(source)["shape"][dimension] - tokens.size
    return _Tokens(source, dimension, tokens.prefix - more)


def _parts(tokens: _Tokens, sources: Sequence[fx.Node]) -> list[_Tokens]:
    """The tokens in the last part of a concatenation of tokens, or in every part of another one."""
    parts = tokens.node.args[0] if isinstance(tokens.node.args[0], (tuple, list)) else ()
    sizes = [facts(part)["shape"][tokens.dimension] for part in parts if isinstance(part, fx.Node)]
    if len(sizes) == 1 or (any(size != tokens.size for size in sizes) and sum(sizes) != tokens.size):
        return []
    if sum(sizes) != tokens.size:
        return [_Tokens(source, tokens.dimension, tokens.prefix) for source in sources]
    last = [source for source in sources if source is parts[-1]]  # none: tokens stand behind the positions
    return [_Tokens(source, tokens.dimension, tokens.prefix + tokens.size - sizes[-1]) for source in last]


def _unmoved(tokens: _Tokens, source: fx.Node) -> _Tokens | None:
    """The tokens in a source of an operation that leaves dimensions where they are, counted from the last one."""
    shape = facts(source)["shape"]
    dimension = len(shape) - tokens.length + tokens.dimension
    return _Tokens(source, dimension, tokens.prefix) if dimension >= 0 and shape[dimension] == tokens.size else None

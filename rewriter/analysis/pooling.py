"""The average poolings of a model: what each one averages, and what it is for."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from torch import fx, nn

from rewriter.analysis.heads import find_heads, first_step, pooled_dims
from rewriter.analysis.norms import find_norms
from rewriter.analysis.residual import find_branches
from rewriter.analysis.weights import has_weight
from rewriter.analysis.windows import covers_map, per_dim, pooling_arguments, spatial_dims_of
from rewriter.renamed import forward_names
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind


class PoolingRole(enum.Enum):
    """What an average pooling is for.

    HEAD: it is on every path to an output. PYRAMID: its output is upsampled again and fused. SQUEEZE: its output
    becomes weights by which a feature map is multiplied. SHORTCUT: it is on the shortcut of a residual block.
    ANTI_ALIASING: it provides the stride of the convolution or max pooling before it. INSIDE_BRANCH: it is inside a
    residual branch for another purpose (token mixers, pooled attention). LOCAL: it down-samples the main path to an
    output (transitions). OTHER: none of these.
    """

    HEAD = "head"
    PYRAMID = "pyramid pool"
    SQUEEZE = "squeeze pool"
    SHORTCUT = "shortcut pool"
    ANTI_ALIASING = "anti-aliasing pool"
    INSIDE_BRANCH = "pool inside a branch"
    LOCAL = "local pool"
    OTHER = "pool"


@dataclass(frozen=True, eq=False)
class Pooling:
    """One average pooling.

    Attributes:
        node: the operation; ``source`` is its input.
        role: what it is for.
        elements: number of elements that one output averages; the fewest, if bins differ in size.
        side_by_side: whether its windows do not overlap and are all full.
        in_steps: whether it averages over one dimension after the other; ``node`` is the first step.
    """

    node: fx.Node
    source: fx.Node
    role: PoolingRole
    elements: int
    side_by_side: bool
    in_steps: bool = False


@once
def find_poolings(flow: Dataflow, model: nn.Module) -> list[Pooling]:
    """Every average pooling over positions or tokens, in execution order; means over channels do not count."""
    roles, statistics = _Roles(flow, model), _statistics(flow, model)
    found = []
    for node in flow.nodes(Kind.AVG_POOL, Kind.MEAN):
        window = None if node in statistics else _window(node, flow, model)
        if window is not None:
            first = first_step(node, flow)
            found.append(Pooling(first, flow.sources(first)[0], roles.of(first), *window, first is not node))
    return [pooling for pooling in found if pooling.role is not PoolingRole.OTHER or not _may_be_statistics(pooling)]


def _statistics(flow: Dataflow, model: nn.Module) -> set[fx.Node]:
    """The statistics computed by norms that are written as arithmetic."""
    written_out = [(norm.normalised, norm.node) for norm in find_norms(flow, model) if norm.normalised is not None]
    return set[fx.Node]().union(*(flow.region(start, end) for start, end in written_out))


def _may_be_statistics(pooling: Pooling) -> bool:
    """Whether the reduced one of three dimensions may be channels: the mean of a hand-written normalisation."""
    return facts(pooling.node)["kind"] is Kind.MEAN and len(facts(pooling.source)["shape"]) == 3


def _window(node: fx.Node, flow: Dataflow, model: nn.Module) -> tuple[int, bool] | None:
    """The number of elements of a window, and whether windows are adjacent; None if it does not pool positions."""
    sources = flow.sources(node)
    if len(sources) != 1 or facts(sources[0])["shape"] is None or facts(node)["shape"] is None:
        return None
    before, after = facts(sources[0])["shape"], facts(node)["shape"]
    if facts(node)["kind"] is Kind.MEAN:
        dims = pooled_dims(node, flow, model)
        whole_shape = flow.sources(first_step(node, flow))[0].meta["shape"]
        return None if dims is None else (math.prod(whole_shape[dim] for dim in dims), True)
    arguments, spatial_dims = pooling_arguments(node, model), spatial_dims_of(node, model)
    before, after = before[-spatial_dims:], after[-spatial_dims:]
    if "kernel_size" not in arguments:  # adaptive
        return math.prod(_smallest_bin(size, bins) for size, bins in zip(before, after, strict=True) if bins), True
    kernel, stride, padding = (per_dim(arguments[name], spatial_dims) for name in ("kernel_size", "stride", "padding"))
    one_window = covers_map(node, before, after, model)
    whole = one_window or not arguments["ceil_mode"] or all(s % k == 0 for s, k in zip(before, kernel, strict=True))
    side_by_side = (kernel == stride or one_window) and not any(padding) and whole and not arguments["divisor_override"]
    return math.prod(map(min, kernel, before)), side_by_side


def _smallest_bin(size: int, bins: int) -> int:
    """The size of torch's smallest adaptive bin; bins overlap if ``bins`` does not divide ``size``."""
    return min(-(-(bin + 1) * size // bins) - bin * size // bins for bin in range(bins))


class _Roles:
    """Determines roles; what applies to all poolings of a recording is computed once."""

    def __init__(self, flow: Dataflow, model: nn.Module) -> None:
        self._flow, self._model = flow, model
        self._heads = {head.pool for head in find_heads(flow, model)}
        self._path: dict[fx.Node, PoolingRole] = {}  # role according to the innermost residual block around a node
        regions = []
        for branch in find_branches(flow, model):
            if branch.form == "residual":
                regions.append((branch.nodes, PoolingRole.INSIDE_BRANCH))
                if branch.shortcut is not branch.fork:
                    regions.append((flow.region(branch.fork, branch.shortcut), PoolingRole.SHORTCUT))
        for nodes, role in sorted(regions, key=lambda region: len(region[0]), reverse=True):
            self._path.update(dict.fromkeys(nodes, role))

    def of(self, node: fx.Node) -> PoolingRole:
        if node in self._heads:
            return PoolingRole.HEAD
        of_windows = facts(node)["kind"] is Kind.AVG_POOL and bool(pooling_arguments(node, self._model))
        if not of_windows:
            use = self._use(node)
            if use is not None:
                return use
        if not of_windows and (facts(node)["kind"] is Kind.MEAN or all(size == 1 for size in facts(node)["shape"][2:])):
            return PoolingRole.OTHER
        if self._makes_a_stride(node):
            return PoolingRole.ANTI_ALIASING
        return self._path.get(node, PoolingRole.LOCAL if self._flow.leads_to_output(node) else PoolingRole.OTHER)

    def _use(self, node: fx.Node) -> PoolingRole | None:
        """Follow what is computed from the pooling alone to where it meets a larger map: the role it has there.

        If it is added to every position, or concatenated, it is context, like an upsampled level of a pyramid.
        """
        flow, made, weights, upsampled = self._flow, {node}, 0, False
        positions = _positions(node)
        pending = flow.users(node)
        while pending:
            current = min(pending, key=flow.position)
            pending = [other for other in pending if other is not current]
            others = [source for source in flow.sources(current) if source not in made]
            if any(_positions(other) > positions for other in others):
                kind = facts(current)["kind"]
                if kind is Kind.MULTIPLY and weights:
                    return PoolingRole.SQUEEZE
                return PoolingRole.PYRAMID if kind in (Kind.CONCAT, Kind.ADD) else None
            made.add(current)
            weights += has_weight(current, flow) and not upsampled
            upsampled |= facts(current)["kind"] is Kind.INTERPOLATE
            if weights > _MOST_WEIGHTS:
                return None
            pending += flow.users(current)
        return None

    def _makes_a_stride(self, node: fx.Node) -> bool:
        """Whether the pooling down-samples what a max pooling, or in a branch a convolution, left at full size."""
        before = self._flow.sources(node)[0]
        if _positions(before) <= _positions(node) or self._flow.users(before) != [node]:
            return False
        if facts(before)["kind"] is Kind.MAX_POOL:
            return _positions(before) == _positions(self._flow.sources(before)[0])
        passed = 0
        while facts(before)["kind"] in _BETWEEN and self._path.get(before) is PoolingRole.INSIDE_BRANCH:
            before, passed = self._flow.sources(before)[0], passed + 1
        inside = self._path.get(node) is self._path.get(before) is PoolingRole.INSIDE_BRANCH
        return inside and passed > 0 and facts(before)["kind"] is Kind.CONV


_BETWEEN = frozenset({Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT, Kind.IDENTITY})
"""What may lie between a convolution and the pooling that provides its stride."""

_MOST_WEIGHTS = 4
"""The most weights between a pooling and its use as a pyramid level or gate; more form a network of their own."""


def _positions(node: fx.Node) -> int:
    """Number of positions of a map ``(N, C, …)``; 1 for a vector."""
    shape = facts(node)["shape"] or ()
    return math.prod(shape[2:]) if len(shape) > 2 else 1


__getattr__ = forward_names(__name__, {"Role": "PoolingRole"})

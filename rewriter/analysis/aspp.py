"""Atrous spatial pyramid pooling (ASPP): one tensor read by parallel atrous convolutions whose results are joined.

A *branch* is a convolution with a dilation above 1, optionally after padding, and followed only by norms, activations,
dropouts and pointwise convolutions up to the join. Dilated stages, cascades and stacks do not count: their convolutions
read different tensors, or other convolutions lie between them and the join.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rewriter.analysis.arguments import argument
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name


@dataclass(frozen=True)
class AtrousConv:
    """One call of a convolution.

    Attributes:
        node: the call.
        path: the module whose attributes define its dilation and padding; None for a function call.
        kernel: size of the kernel in each spatial dimension.
        dilation: dilation in each spatial dimension.
        padded_before: whether a separate operation pads the tensor first.
    """

    node: fx.Node
    path: str | None
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    padded_before: bool


@dataclass(frozen=True)
class AtrousPyramid:
    """Parallel atrous convolutions.

    Attributes:
        source: the tensor that all of them read, ``(N, C, H, W)``.
        join: the concatenation or sum of their results.
        convs: the convolutions in execution order; at least two different dilations.
    """

    source: fx.Node
    join: fx.Node
    convs: tuple[AtrousConv, ...]

    @property
    def concatenated(self) -> bool:
        """Whether the results are concatenated, not summed."""
        return not _is_sum(self.join)


@once
def find_pyramids(flow: Dataflow, model: nn.Module) -> list[AtrousPyramid]:
    """Every group of at least two convolutions of one tensor with equal kernels and different dilations above 1 whose
    results meet in one concatenation or, failing that, in one sum; in execution order of the joins."""
    parallel: dict[tuple[fx.Node, tuple[int, ...]], list[AtrousConv]] = {}
    for node in flow.nodes(Kind.CONV):
        conv = _read(node, flow, model)
        if conv is not None and max(conv.dilation) > 1 and max(conv.kernel) >= 3:
            source, _ = _before_padding(node, flow, model)
            parallel.setdefault((source, conv.kernel), []).append(conv)
    found = [
        AtrousPyramid(source, join, tuple(convs))
        for (source, _), together in parallel.items()
        if _differ(together)
        for join, convs in _by_join(together, flow, model).items()
    ]
    return sorted(found, key=lambda pyramid: flow.position(pyramid.join))


def _by_join(convs: list[AtrousConv], flow: Dataflow, model: nn.Module) -> dict[fx.Node, list[AtrousConv]]:
    """Assign each convolution to one join: concatenations before sums, then the one with the most convolutions."""
    joins: dict[fx.Node, list[AtrousConv]] = {}
    for conv in convs:
        reached = flow.reachable(conv.node, stop=lambda node: not _belongs_to_branch(node, flow, model))
        for join in {_outermost(node, flow) for node in reached if _is_join(node, flow)}:
            if facts(join)["shape"][2:] == facts(conv.node)["shape"][2:]:  # channels are joined, not positions
                joins.setdefault(join, []).append(conv)
    found: dict[fx.Node, list[AtrousConv]] = {}
    free = dict.fromkeys(convs)
    for join in sorted(joins, key=lambda join: (_is_sum(join), -len(joins[join]), flow.position(join))):
        together = [conv for conv in joins[join] if conv in free]
        if _differ(together):
            found[join] = together
            free = {conv: None for conv in free if conv not in together}
    return found


def _differ(convs: Iterable[AtrousConv]) -> bool:
    return len({conv.dilation for conv in convs}) > 1


_PASSED = frozenset({Kind.NORM, Kind.ACTIVATION, Kind.DROPOUT, Kind.IDENTITY, Kind.MULTIPLY})
"""What may lie between an atrous convolution and the join; products may be written-out activations or scales."""


def _belongs_to_branch(node: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    if facts(node)["kind"] is Kind.CONV:
        conv = _read(node, flow, model)
        return conv is not None and max(conv.kernel) == 1
    one_source = _is_sum(node) and len(flow.sources(node)) == 1
    return one_source or facts(node)["kind"] in _PASSED


def _is_join(node: fx.Node, flow: Dataflow) -> bool:
    return facts(node)["kind"] is Kind.CONCAT or (_is_sum(node) and len(flow.sources(node)) > 1)


def _is_sum(node: fx.Node) -> bool:
    return facts(node)["kind"] is Kind.ADD


def _outermost(join: fx.Node, flow: Dataflow) -> fx.Node:
    """The last of nested concatenations: ``cat(cat(a, b), c)`` counts as one of three."""
    while facts(join)["kind"] is Kind.CONCAT:
        users = flow.users(join)
        if len(users) != 1 or facts(users[0])["kind"] is not Kind.CONCAT:
            break
        join = users[0]
    return join


def _read(node: fx.Node, flow: Dataflow, model: nn.Module) -> AtrousConv | None:
    """Read the dilation of a convolution; None if it is transposed, or its dilation or kernel is unknown."""
    module = model.get_submodule(str(node.target) if node.op == "call_module" else facts(node)["owner"].path)
    _, padded = _before_padding(node, flow, model)
    if node.op == "call_module":
        if isinstance(module, _ConvTransposeNd) or not isinstance(module, _ConvNd):
            return None
        return AtrousConv(node, str(node.target), tuple(module.kernel_size), tuple(module.dilation), padded)
    weight = argument(node, "weight", 1)
    shape = facts(weight)["shape"] if isinstance(weight, fx.Node) else None
    dilation = argument(node, "dilation", 5, 1)
    if "transpose" in function_name(node.target) or shape is None:  # type: ignore[arg-type]
        return None
    kernel = tuple(shape[2:])
    given = dilation if isinstance(dilation, tuple | list) else (dilation,)
    rates = tuple(rate for rate in given if isinstance(rate, int))
    rates = rates * len(kernel) if len(rates) == 1 else rates
    if len(rates) != len(kernel) or not kernel:
        return None
    held = isinstance(module, _ConvNd) and tuple(module.dilation) == rates  # the module calls the function itself
    return AtrousConv(node, str(facts(node)["owner"].path) if held else None, kernel, rates, padded)


def _before_padding(node: fx.Node, flow: Dataflow, model: nn.Module) -> tuple[fx.Node, bool]:
    """What a convolution reads, before any separate padding operation, and whether there is one."""
    padded = False
    source = flow.sources(node)[0]
    while len(flow.sources(source)) == 1 and (facts(source)["kind"] is Kind.IDENTITY or _is_padding(source, model)):
        padded |= facts(source)["kind"] is not Kind.IDENTITY
        source = flow.sources(source)[0]
    return source, padded


def _is_padding(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        classes = type(model.get_submodule(str(node.target))).__mro__
        return any(cls.__module__ == "torch.nn.modules.padding" for cls in classes)
    return node.op == "call_function" and function_name(node.target) in ("pad", "constant_pad_nd")  # type: ignore[arg-type]

"""Fusions: concatenations and sums of feature maps, at least one of which was upsampled bilinearly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from rewriter.analysis.arguments import argument
from rewriter.analysis.layout import followed
from rewriter.analysis.residual import find_branches
from rewriter.analysis.sums import summed_stack
from rewriter.analysis.weights import has_weight, is_pointwise
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name

_SAME_POSITION = frozenset({Kind.ACTIVATION, Kind.DROPOUT, Kind.IDENTITY, Kind.VIEW})
"""Operations whose results keep the scale differences of their input maps."""


@dataclass(eq=False)
class Operand:
    """One input map of a fusion.

    Attributes:
        node: the map; ``reader`` is the operation that reads it.
        upsampling: the bilinear upsampling that it comes from, if any.
    """

    node: fx.Node
    reader: fx.Node
    upsampling: fx.Node | None


@dataclass(eq=False)
class Fusion:
    """A place where feature maps of several levels are fused.

    Attributes:
        form: ``"concatenation"`` or ``"sum"``.
        join: the operation whose result is the fused map.
        operands: the maps.
        weights: the weights that read the fused map, directly or through scale-preserving operations.
        norms: the norms that read it before any weight does.
    """

    form: str
    join: fx.Node
    operands: list[Operand]
    weights: list[fx.Node]
    norms: list[fx.Node]

    @property
    def stacked(self) -> bool:
        """Whether the operands are passed as one sequence, to ``cat`` or ``stack``."""
        return facts(self.operands[0].reader)["kind"] is not Kind.ADD


@once
def find_fusions(flow: Dataflow, model: nn.Module) -> list[Fusion]:
    """Every fusion with a bilinearly upsampled operand, in execution order.

    The upsampling may be followed by position-wise operations, such as 1x1 convolutions, which commute with it, but not
    by a norm, after which maps have one scale. A concatenation is one along the channels, wherever permutations have
    put them.
    """
    branches = {branch.join for branch in find_branches(flow, model)}
    fusions = []
    for join, form, read in _joins(flow):
        if join in branches:
            continue
        joined = _joined_dimension(join, [node for node, _ in read]) if form == "concatenation" else None
        if form == "concatenation" and joined is None:
            continue
        operands = [Operand(node, reader, _upsampling(flow, model, node, joined)) for node, reader in read]
        if any(operand.upsampling is not None for operand in operands):
            fusions.append(Fusion(form, join, operands, *_readers(flow, join)))
    return fusions


def _enlarges(node: fx.Node) -> bool:
    """Whether the output of an interpolation has more positions than its input."""
    before, after = (facts(other)["shape"] for other in (node.all_input_nodes[0], node))
    return before is not None and after is not None and len(before) == 4 and _area(after) > _area(before)


def _interpolation_mode(node: fx.Node, model: nn.Module) -> str:
    """``"bilinear"``, ``"nearest"``, …, for a call or a module; empty if it is not given."""
    if node.op == "call_module":
        return str(getattr(model.get_submodule(str(node.target)), "mode", ""))
    name = function_name(node.target)  # type: ignore[arg-type]
    if name == "upsample_bilinear":
        return "bilinear"
    if name not in ("interpolate", "upsample"):
        return ""
    return str(argument(node, "mode", 3, "nearest"))


def _joins(flow: Dataflow) -> Iterator[tuple[fx.Node, str, list[tuple[fx.Node, fx.Node]]]]:
    """Each join with its form and its operands, each of which comes with the operation that reads it."""
    for node in flow.nodes():
        sources = flow.sources(node)
        if facts(node)["kind"] is Kind.CONCAT and len(sources) > 1:
            yield node, "concatenation", [(source, node) for source in _sequence(node)]
        elif (stack := summed_stack(flow, node)) is not None:
            yield node, "sum", [(source, stack) for source in _sequence(stack)]
        elif facts(node)["kind"] is Kind.ADD and len(sources) == 2 and not _added_on(flow, node):
            yield node, "sum", list(_addends(flow, node))


def _addends(flow: Dataflow, node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The operands of a chain of additions in one method."""
    for source in flow.sources(node):
        if facts(source)["kind"] is Kind.ADD and len(flow.sources(source)) == 2 and _added_on(flow, source):
            yield from _addends(flow, source)
        else:
            yield source, node


def _added_on(flow: Dataflow, node: fx.Node) -> bool:
    """Whether a sum is only used as an operand of another addition in the same method."""
    users = flow.users(node)
    return (
        len(users) == 1
        and facts(users[0])["kind"] is Kind.ADD
        and len(flow.sources(users[0])) == 2
        and facts(users[0])["call"] is facts(node)["call"]
    )


def _sequence(node: fx.Node) -> list[fx.Node]:
    first = argument(node, "tensors", 0)
    return [item for item in first if isinstance(item, fx.Node)] if isinstance(first, (list, tuple)) else []


def _joined_dimension(join: fx.Node, operands: list[fx.Node]) -> int | None:
    """The dimension of a concatenation; None if maps differ in other dimensions too."""
    shapes, joined = [facts(operand)["shape"] for operand in operands], facts(join)["shape"]
    if joined is None or any(shape is None or len(shape) != len(joined) for shape in shapes):
        return None
    differing = [d for d in range(len(joined)) if any(shape[d] != joined[d] for shape in shapes)]
    return differing[0] if len(differing) == 1 else None


def _upsampling(flow: Dataflow, model: nn.Module, node: fx.Node, channels: int | None) -> fx.Node | None:
    """The bilinear upsampling that ``node`` comes from, if dimension ``channels`` of ``node`` holds its channels.

    ``channels`` is None if that does not matter.
    """
    passed: list[fx.Node] = []
    while len(flow.sources(node)) == 1:
        if (
            facts(node)["kind"] is Kind.INTERPOLATE
            and _interpolation_mode(node, model) == "bilinear"
            and _enlarges(node)
        ):
            return node if channels in (None, followed(1, passed[::-1], model)) else None
        if not _keeps_scale(flow, node) and not (has_weight(node, flow) and is_pointwise(node, model)):
            return None
        passed.append(node)
        node = flow.sources(node)[0]
    return None


def _keeps_scale(flow: Dataflow, node: fx.Node) -> bool:
    """Whether ``node`` acts position-wise and has no weight: activations, dropouts, constant factors."""
    sources = flow.sources(node)
    constant_factor = facts(node)["kind"] in (Kind.ADD, Kind.MULTIPLY) and len(sources) == 1
    same_size = facts(node)["kind"] is Kind.INTERPOLATE and facts(node)["shape"] == facts(sources[0])["shape"]
    return facts(node)["kind"] in _SAME_POSITION or constant_factor or same_size


def _readers(flow: Dataflow, join: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
    """The first weights and norms on the paths from ``join``."""

    def stops(node: fx.Node) -> bool:
        return has_weight(node, flow) or facts(node)["kind"] is Kind.NORM

    found = flow.in_order(filter(stops, flow.reachable(join, stop=stops)))
    return [n for n in found if has_weight(n, flow)], [n for n in found if facts(n)["kind"] is Kind.NORM]


def _area(shape: tuple[int, ...]) -> int:
    return shape[-1] * shape[-2]

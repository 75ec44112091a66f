"""Absolute positions: sums of what comes from the input and a table that differs from one position to the next.

The table depends on no input. It may be a parameter, a buffer, rows of an embedding, sines and cosines, and be
resampled on the way::

    image ─ … ─ projection ─ flatten ─[concat]─ sum ─ …
                           class token ────┘     │
                    table ─[select]─[resample]───┘

A bias is the same at every position and no table; a bias of attention scores (a relative position) is added to what a
softmax reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx, nn

from rewriter.analysis.ancestors import computed_from
from rewriter.analysis.layout import channel_dimension
from rewriter.analysis.norms import find_norms
from rewriter.analysis.weights import has_weight
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name

_STORED = "get_attr"
_BUILT = frozenset({"sin", "cos"})
_RANDOM = frozenset({"rand", "randn", "randint", "normal", "uniform", "bernoulli"})
_OF_A_BATCH = frozenset({"batch_norm", "local_response_norm"})


@dataclass(frozen=True, eq=False)
class AbsolutePosition:
    """One sum of features and positions.

    Attributes:
        sum: the operation.
        features: its operand that depends on the input.
        position: its operand that does not.
        constants: every operation that ``position`` is computed from, and itself, in execution order.
        images: the images that the features are computed from; not the numbers of words.
        norm: where a norm of each sample stands on every way from the images to the sum, the last of these; None if
            the scale of an image reaches the sum.
    """

    sum: fx.Node
    features: fx.Node
    position: fx.Node
    constants: tuple[fx.Node, ...]
    images: tuple[fx.Node, ...]
    norm: fx.Node | None

    @property
    def resamplings(self) -> list[fx.Node]:
        """The operations that resample the table in forward, in execution order."""
        return [node for node in self.constants if facts(node)["kind"] is Kind.INTERPOLATE]


@once
def find_absolute_positions(flow: Dataflow, model: nn.Module) -> list[AbsolutePosition]:
    """Every sum with a table of positions, in execution order."""
    norms = _norms_of_samples(flow, model)
    found = []
    for node in flow.nodes(Kind.ADD):
        sources = flow.sources(node)
        others = [operand for operand in node.all_input_nodes if operand not in flow]
        if len(sources) != 1 or len(others) != 1 or not _varies(others[0], node, flow, model) or _scores(node, flow):
            continue
        behind = computed_from(others)
        constants = tuple(each for each in node.graph.nodes if each in behind)
        if not _is_table(constants):
            continue
        images, passed = _back_to_images(sources[0], flow, norms)
        if images or passed:
            norm = None if images or not passed else max(passed, key=flow.position)
            everything = images or _back_to_images(sources[0], flow, frozenset())[0]
            if everything:
                found.append(AbsolutePosition(node, sources[0], others[0], constants, tuple(everything), norm))
    return found


def _varies(constant: fx.Node, total: fx.Node, flow: Dataflow, model: nn.Module) -> bool:
    """Whether ``constant`` differs between positions and channels, for all samples alike."""
    full, own = facts(total)["shape"], facts(constant)["shape"]
    if full is None or own is None or len(full) < 3 or len(own) > len(full):
        return False
    aligned = (1,) * (len(full) - len(own)) + tuple(own)
    channels = channel_dimension(flow, flow.sources(total)[0], model)
    channels = len(full) - 1 if channels is None else channels
    positions = [size for d, size in enumerate(aligned) if d not in (0, channels)]
    return aligned[channels] > 1 and math.prod(positions) > 1


def _scores(total: fx.Node, flow: Dataflow) -> bool:
    """Whether the sum is of scores of an attention, before its softmax or behind: the table is a relative position."""

    def ends(node: fx.Node) -> bool:
        return has_weight(node, flow) or facts(node)["kind"] in (Kind.NORM, Kind.SOFTMAX, Kind.MATMUL)

    *_, first = way_back(flow.sources(total)[0], flow)
    products = facts(first)["kind"] is Kind.MATMUL and not has_weight(first, flow)  # of queries and keys
    around = (*way_back(flow.sources(total)[0], flow), *flow.reachable(total, ends))
    return products or any(facts(node)["kind"] is Kind.SOFTMAX for node in around)


def _is_table(constants: tuple[fx.Node, ...]) -> bool:
    """Whether it is stored or computed, and not drawn as noise is."""
    names = {function_name(node.target) for node in constants if callable(node.target)}
    stored = any(node.op == _STORED or facts(node)["kind"] is Kind.EMBEDDING for node in constants)
    drawn = any(name.removesuffix("_like") in _RANDOM for name in names)
    return (stored or not names.isdisjoint(_BUILT)) and not drawn


def _norms_of_samples(flow: Dataflow, model: nn.Module) -> frozenset[fx.Node]:
    """Norms that take out the scale of each sample; those of a batch keep the ratio between its samples."""
    return frozenset(norm.node for norm in find_norms(flow, model) if not _is_of_batch(norm.node, model))


def _is_of_batch(node: fx.Node, model: nn.Module) -> bool:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        if isinstance(module, (nn.LocalResponseNorm, nn.CrossMapLRN2d)):
            return True
        return not isinstance(module, nn.modules.instancenorm._InstanceNorm) and "running_mean" in module._buffers
    return callable(node.target) and function_name(node.target) in _OF_A_BATCH


def _back_to_images(node: fx.Node, flow: Dataflow, stop: frozenset[fx.Node]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The images that ``node`` depends on without passing ``stop``, and the members of that which were met."""
    images, met = [], []
    seen: set[fx.Node] = set()
    pending = [node]
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        if current in stop:
            met.append(current)
        elif current.op == "placeholder":
            images += [current] if _is_image(current) else []
        else:
            pending += flow.graph.predecessors(current)
    return flow.in_order(images), flow.in_order(met)


def _is_image(node: fx.Node) -> bool:
    shape, dtype = facts(node)["shape"], facts(node)["dtype"]
    return shape is not None and len(shape) >= 3 and bool(dtype.is_floating_point)


def way_back(node: fx.Node, flow: Dataflow) -> Iterator[fx.Node]:
    """``node`` and the operations before it, back to the first weight, as long as one of them reads one other.

    What is joined on the way (class tokens, further tables) depends on no input.
    """
    while True:
        yield node
        sources = flow.sources(node)
        if has_weight(node, flow) or len(sources) != 1:
            return
        (node,) = sources

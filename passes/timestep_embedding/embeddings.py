"""Where an embedding that is constant over space joins a map: it is added to it, or concatenated with it.

An *embedding* is computed from an input of the model that the map does not show, on a way without maps of what it does
show. So neither a gate or a context pooled from the map is one, nor a bias::

    image ─ … ─ map ──────────────────────────┐
    timestep ─ … ─ (B, C, 1, 1), or expanded ─┴─ sum or concatenation
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import fx

from rewriter.passes.timestep_embedding.numbers import Made
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, function_name


@dataclass(frozen=True, eq=False)
class Joining:
    """An embedding that joins a map.

    Attributes:
        node: the sum or concatenation.
        embedding: the operand that is constant over space.
        map: the first operand that is not.
        inputs: the inputs of the model that the embedding is computed from and the map does not show.
    """

    node: fx.Node
    embedding: fx.Node
    map: fx.Node
    inputs: tuple[fx.Node, ...]

    @property
    def concatenates(self) -> bool:
        return facts(self.node)["kind"] is Kind.CONCAT

    @property
    def in_space(self) -> bool:
        """Whether it joins a map ``(B, C, …)``; else it joins tokens ``(B, L, C)``."""
        own, shape = facts(self.embedding)["shape"], facts(self.node)["shape"]
        return self.concatenates or len(shape) > 3 or _aligned(own, 3)[2] == 1 or own == shape

    @property
    def differs_between_channels(self) -> bool:
        """Whether it has several values, for the channels of the map; or gets them from the next convolution."""
        shape = _aligned(facts(self.embedding)["shape"], len(facts(self.node)["shape"]))
        return self.concatenates or shape[1] > 1


def find_joinings(flow: Dataflow, made: Made) -> list[Joining]:
    """Every place where an embedding joins a map, in execution order.

    Args:
        flow: of a recording.
        made: what is computed from inputs that are numbers.
    """
    from_numbers = set().union(*made.values())
    found = []
    for node in flow.nodes(Kind.ADD, Kind.CONCAT):
        if len(facts(node)["shape"] or ()) < 3:
            continue
        operands = [source for source in node.all_input_nodes if source in flow or source in from_numbers]
        operands = [source for source in operands if facts(source)["shape"] is not None]
        constant = [operand for operand in operands if _is_constant(operand, node, flow)]
        maps = [operand for operand in operands if operand not in constant]
        if not constant or not maps:
            continue
        shown = _shown(flow, maps)
        for operand in constant:
            inputs = _inputs_behind(flow, operand, shown) if operand in flow else _numbers_behind(operand, made)
            if inputs:
                found.append(Joining(node, operand, maps[0], inputs))
    return found


def _is_constant(operand: fx.Node, join: fx.Node, flow: Dataflow) -> bool:
    """Whether ``operand`` has one value at all positions of ``join``, which has maps ``(B, C, …)`` or tokens."""
    shape, own = facts(join)["shape"], facts(operand)["shape"]
    if facts(join)["kind"] is Kind.CONCAT:
        along_channels = len(own) == len(shape) and own[2:] == shape[2:] and own[1] < shape[1]
        return along_channels and constant_over_space(operand, flow, len(shape))
    if len(shape) == 3 and _aligned(own, 3)[1] == 1 < shape[1]:  # (B, 1, C) and tokens (B, L, C)
        return True
    return any(size > 1 for size in shape[2:]) and constant_over_space(operand, flow, len(shape))


def constant_over_space(node: fx.Node, flow: Dataflow, dimensions: int) -> bool:
    """Whether ``node`` is the same at all positions of a map ``(B, C, …)`` with so many dimensions.

    It has one position, was expanded from one, was filled with a number, or is computed from such tensors element by
    element.
    """
    shape = facts(node)["shape"]
    if shape is None:
        return False
    if all(size == 1 for size in _aligned(shape, dimensions)[2:]):
        return True
    if node.op != "call_function" and facts(node)["kind"] is not Kind.ACTIVATION:
        return False
    name = function_name(node.target) if callable(node.target) else ""
    if name in _FILLED:
        return True
    read = node.all_input_nodes[:1] if name.endswith("_as") else node.all_input_nodes
    elementwise = facts(node)["kind"] in _ELEMENTWISE or name in _EXPANDED or name in _FUNCTIONS
    return elementwise and bool(read) and all(constant_over_space(operand, flow, dimensions) for operand in read)


def _aligned(shape: Iterable[int], dimensions: int) -> tuple[int, ...]:
    """The shape as broadcast to so many dimensions, without expansion."""
    shape = tuple(shape)
    return (1,) * (dimensions - len(shape)) + shape


_ELEMENTWISE = frozenset({Kind.ADD, Kind.MULTIPLY, Kind.ACTIVATION, Kind.IDENTITY, Kind.DROPOUT})
_FUNCTIONS = frozenset(["sub", "rsub", "isub", "neg", "sin", "cos", "exp", "log", "sqrt", "pow"])
_EXPANDED = frozenset(["expand", "expand_as", "broadcast_to", "repeat", "tile"])
_FILLED = frozenset(
    ["ones", "zeros", "full", "ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full"]
)


def is_map(node: fx.Node) -> bool:
    """Whether ``node`` has positions: it is neither ``(B, C)``, nor ``(B, C, 1, 1)``, nor ``(B, 1, C)``."""
    shape = facts(node)["shape"]
    if shape is None or len(shape) < 3:
        return False
    return any(size > 1 for size in shape[2:]) and not (len(shape) == 3 and shape[1] == 1)


def _shown(flow: Dataflow, maps: list[fx.Node]) -> frozenset[fx.Node]:
    """The inputs that ``maps`` show: those that reach them as maps all the way, and images that reach them at all."""
    as_maps = _behind(flow, maps, is_map)
    images = {node for node in flow.inputs if is_map(node) and len(facts(node)["shape"]) > 3}
    reaching = {node for node in images if any(node in _ancestors(flow, each) for each in maps)}
    return frozenset(node for node in flow.inputs if node in as_maps) | reaching


def _inputs_behind(flow: Dataflow, embedding: fx.Node, shown: frozenset[fx.Node]) -> tuple[fx.Node, ...]:
    """The inputs that ``embedding`` is computed from, on ways without maps of what is ``shown``."""
    depending = _depending(flow, shown)
    found = _behind(flow, [embedding], lambda node: node not in depending or not is_map(node))
    return tuple(node for node in flow.inputs if node in found and node not in shown)


def _numbers_behind(embedding: fx.Node, made: Made) -> tuple[fx.Node, ...]:
    return tuple(number for number, nodes in made.items() if embedding in nodes)


def _behind(flow: Dataflow, nodes: Iterable[fx.Node], follow: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """``nodes`` and what they are computed from, through operations for which ``follow`` holds."""
    found = set(nodes)
    pending = list(found)
    while pending:
        for source in flow.graph.predecessors(pending.pop()):
            if source not in found and follow(source):
                found.add(source)
                pending.append(source)
    return found


@once
def _depending(flow: Dataflow, inputs: frozenset[fx.Node]) -> set[fx.Node]:
    return set(inputs).union(*(flow.reachable(node) for node in inputs))


@once
def _ancestors(flow: Dataflow, node: fx.Node) -> set[fx.Node]:
    return _behind(flow, [node], lambda _: True)

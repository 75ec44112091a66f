"""Which operations compute cosine similarities: products of vectors that are normalised, however that is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import fx

from rewriter.analysis.ancestors import computed_from
from rewriter.passes.temperature_free.vectors import (
    function_of,
    is_detached,
    nodes_in,
    normalised_length,
    scaled,
    size,
)
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Trace

_KEEPS = frozenset({Kind.VIEW, Kind.IDENTITY, Kind.SELECT, Kind.CONCAT})
_TOLERANCE = 1e-2  # of half precision


@dataclass
class Operand:
    """One side of a product.

    Attributes:
        why_not: why its vectors are not known to be of unit length; empty if they are.
        scales: multiplications by one number on the way to it, with the operand of each that is a vector.
        given: whether it, or a part, is as the caller or a buffer gives it, and only its values tell.
        learned: whether a parameter is in its place, as in a classifier.
        detached: whether no gradient reaches its vectors.
    """

    why_not: str = ""
    scales: dict[fx.Node, fx.Node] = field(default_factory=dict)
    given: bool = False
    learned: bool = False
    detached: bool = False


@dataclass
class Cosine:
    """A similarity of vectors: the operation, and its two operands."""

    node: fx.Node
    operands: tuple[Operand, Operand]

    @property
    def scales(self) -> dict[fx.Node, fx.Node]:
        """Multiplications by one number before the product."""
        return {**self.operands[0].scales, **self.operands[1].scales}

    @property
    def is_trained(self) -> bool:
        """Whether a gradient reaches a side."""
        return not all(operand.detached for operand in self.operands)

    @property
    def is_another_product(self) -> bool:
        """Whether a side is certainly not normalised."""
        return any(operand.why_not and not operand.given for operand in self.operands)

    @property
    def why_not(self) -> str:
        """Why it is no cosine similarity; empty if it is one."""
        return next((operand.why_not for operand in self.operands if operand.why_not), "")


@dataclass(eq=False)
class Scale:
    """A multiplication of similarities by a temperature, or by its inverse.

    Attributes:
        node: the multiplication, or division; ``kept`` is its operand that stays.
        cosines: the similarities that it scales.
        inside: whether it scales an operand of the product, before that is made.
        filled: whether masked values are filled in between the product and it.
        others: what it scales that is no similarity.
    """

    node: fx.Node
    kept: fx.Node
    cosines: list[Cosine]
    inside: bool = False
    filled: bool = False
    others: list[fx.Node] = field(default_factory=list)


def find_cosines(trace: Trace) -> dict[fx.Node, Cosine]:
    """The products of the training run of which both sides are normalised, or may be, since they come from outside.

    Those that no gradient passes are left out: weights of samples, say.
    """
    found = {}
    finder = _Finder(trace)
    for node in trace.flow.nodes():
        cosine = finder.cosine(node)
        if cosine is not None and cosine.is_trained and not cosine.is_another_product:
            found[node] = cosine
    return found


class _Finder:
    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._inputs = _values_of_inputs(trace)

    def cosine(self, node: fx.Node) -> Cosine | None:
        if function_of(node) == "cosine_similarity":
            given = [Operand(detached=is_detached(side)) for side in nodes_in((*node.args, *node.kwargs.values()))]
            return Cosine(node, (given[0], given[-1]))
        sides = product(node)
        if sides is None:
            return None
        first, second, length = sides
        operands = self._operand(first, length), self._operand(second, length)
        return Cosine(node, operands)

    def _operand(self, node: fx.Node, length: int) -> Operand:
        """What is known about vectors of this ``length``."""
        if node.op in ("placeholder", "get_attr"):
            return self._given(node, length)
        if facts(node)["kind"] in _KEEPS or function_of(node) == "stack":
            found = _merged([self._operand(source, length) for source in _data_sources(node)])
            found.detached |= function_of(node) == "detach"
            return found
        if facts(node)["kind"] is Kind.FACTORY and node.all_input_nodes:
            return self._operand(node.all_input_nodes[0], length)  # filled with what other processes have of this kind
        if (kept := scaled(node)) is not None:
            below = self._operand(kept, length)
            below.scales[node] = kept
            return below
        if normalised_length(node) == length:
            return Operand(learned=self._is_learned(node), detached=is_detached(node.all_input_nodes[0]))
        return Operand(why_not="its vectors are not normalised")

    def _is_learned(self, node: fx.Node) -> bool:
        """Whether it depends on parameters and on no input."""
        return node not in self._trace.flow and bool(parameters_behind(node, self._trace))

    def _given(self, node: fx.Node, length: int) -> Operand:
        name = str(node.target)
        if node.op == "get_attr":
            parameters = dict(self._trace.model.named_parameters(remove_duplicate=False))
            if name in parameters:
                return Operand(why_not=f"{name} is a learned weight", learned=True)
            values = dict(self._trace.model.named_buffers(remove_duplicate=False)).get(name)
        else:
            values = self._inputs.get(name)
        return Operand(why_not=_why_not_unit(name, values, length), given=True)


def parameters_behind(node: fx.Node, trace: Trace) -> set[str]:
    """The names of the parameters that ``node`` is computed from."""
    names = {name for name, _ in trace.model.named_parameters(remove_duplicate=False)}
    return {str(one.target) for one in computed_from([node]) if one.op == "get_attr"} & names


def _merged(operands: Sequence[Operand]) -> Operand:
    scales = {node: kept for operand in operands for node, kept in operand.scales.items()}
    why_not = next((operand.why_not for operand in operands if operand.why_not), "" if operands else "it is constant")
    given, learned = all(o.given or not o.why_not for o in operands), any(o.learned for o in operands)
    return Operand(why_not, scales, given, learned, bool(operands) and all(o.detached for o in operands))


def _why_not_unit(name: str, values: torch.Tensor | None, length: int) -> str:
    """Why a given tensor does not hold vectors of this ``length`` whose norm is 1; empty if it does."""
    if values is None or values.device.type == "meta" or not values.is_floating_point():
        return f"whether {name} is normalised is not known: it has no values here"
    dims = [dim for dim, size in enumerate(values.shape) if size == length]
    norms = [values.detach().double().norm(dim=dim) for dim in dims]
    if any(bool(((norm - 1).abs() < _TOLERANCE).all()) for norm in norms):
        return ""
    if not norms:
        return f"{name} has no vectors of length {length}"
    low, high = norms[-1].min().item(), norms[-1].max().item()
    return f"the vectors of {name} have norms of {low:.3g} to {high:.3g}"


def _values_of_inputs(trace: Trace) -> dict[str, torch.Tensor]:
    named = {f"input_{index}": value for index, value in enumerate(trace.inputs.args)} | trace.inputs.kwargs
    return {name: value for name, value in named.items() if isinstance(value, torch.Tensor)}


def _data_sources(node: fx.Node) -> list[fx.Node]:
    sources = node.all_input_nodes
    return sources if facts(node)["kind"] is Kind.CONCAT or function_of(node) == "stack" else sources[:1]


def product(node: fx.Node) -> tuple[fx.Node, fx.Node, int] | None:
    """Both sides of a product of vectors, and the vectors' length; None for anything else."""
    name, sides = function_of(node), [arg for arg in node.args if isinstance(arg, fx.Node)]
    if name == "einsum":
        return _of_einsum(node)
    if name in _PRODUCTS and len(sides) == 2 and not node.kwargs.get("bias"):
        return sides[0], sides[1], facts(sides[0])["shape"][-1]
    if name == "sum" and sides and facts(sides[0])["kind"] is Kind.MULTIPLY and "mul" in function_of(sides[0]):
        factors = [arg for arg in sides[0].args if isinstance(arg, fx.Node)]
        if len(factors) == 2:
            return factors[0], factors[1], _reduced(sides[0], node)
    return None


_PRODUCTS = frozenset(
    {"matmul", "mm", "bmm", "mv", "dot", "inner", "linear", "vecdot", "linalg_vecdot", "linalg_matmul"}
)


def _of_einsum(node: fx.Node) -> tuple[fx.Node, fx.Node, int] | None:
    equation, *rest = node.args
    given = nodes_in(rest[0] if rest and isinstance(rest[0], (list, tuple)) else rest)
    if not isinstance(equation, str) or len(given) != 2:
        return None
    inputs, _, output = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    summed = [letter for letter in names[0] if letter in names[1] and letter not in output]
    if len(summed) != 1 or "." in equation or "->" not in equation:
        return None
    return given[0], given[1], facts(given[0])["shape"][names[0].index(summed[0])]


def _reduced(before: fx.Node, after: fx.Node) -> int:
    """The size of the dimension that a reduction removes, or -1 if it removes several."""
    wide, narrow = size(before), size(after)
    removed = wide // narrow if narrow > 0 and wide % narrow == 0 else -1
    return removed if removed in facts(before)["shape"] else -1

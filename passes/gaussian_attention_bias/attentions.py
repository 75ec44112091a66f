"""Attentions in the dataflow: the scores that a softmax normalises, and what is added to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from torch import fx

from rewriter.analysis.arguments import argument
from rewriter.authoring import Kind, Trace
from rewriter.passes.gaussian_attention_bias.layers import GaussianBias
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import function_name

_SAME_SCORES = frozenset({Kind.VIEW, Kind.IDENTITY, Kind.SELECT})


@dataclass(eq=False)
class Attention:
    """One attention.

    Attributes:
        node: the softmax, or the call of ``scaled_dot_product_attention``.
        product: what multiplies queries and keys; ``node`` itself if that does.
        biases: what is added to the scores, of parameters alone; a table of relative positions is one. With the
            operation that reads it.
        edited: the layer that adds a Gaussian already.
    """

    node: fx.Node
    product: fx.Node
    biases: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    edited: GaussianBias | None = None

    @property
    def fused(self) -> bool:
        return self.node is self.product

    @property
    def tokens(self) -> tuple[int, int]:
        """The numbers of queries and keys."""
        if self.fused:
            query, key = (argument(self.node, name, index) for index, name in enumerate(("query", "key")))
            return facts(query)["shape"][-2], facts(key)["shape"][-2]
        queries, keys = facts(self.node)["shape"][-2:]
        return queries, keys

    @property
    def query(self) -> fx.Node:
        """The queries, as they are multiplied."""
        given = argument(self.node, "query", 0) if self.fused else self.product.all_input_nodes[0]
        assert isinstance(given, fx.Node)
        return given

    @property
    def token_dimension(self) -> int:
        """Which dimension of :attr:`query` counts queries."""
        return -2 if facts(self.query)["shape"][-2] == self.tokens[0] else -1


def find_attentions(trace: Trace) -> list[Attention]:
    """All attentions of the training run whose queries and keys depend on the input, in order."""
    flow, reader = trace.train.dataflow, _Reader(trace)
    found = []
    for node in flow.nodes(Kind.SOFTMAX, Kind.MATMUL):
        attention = Attention(node, node)
        if facts(node)["kind"] is Kind.SOFTMAX:
            product = reader.product(flow.sources(node)[0], attention)
            if product is None:
                continue
            attention.product = product
        elif _is_fused(node):
            reader.note_layer(node, attention)
            mask = argument(node, "attn_mask", 3)
            if isinstance(mask, fx.Node):
                reader.note(mask, node, attention)
        else:
            continue
        found.append(attention)
    return found


class _Reader:
    """Reads what is added to scores, and notes it in the attention."""

    def __init__(self, trace: Trace) -> None:
        self._trace, self._flow = trace, trace.train.dataflow

    def product(self, node: fx.Node, attention: Attention) -> fx.Node | None:
        """Go back from the scores to the product of queries and keys; None if they come from elsewhere."""
        added: list[tuple[fx.Node, fx.Node]] = []
        scaled = False
        while facts(node)["kind"] is not Kind.MATMUL:
            kind, sources = facts(node)["kind"], self._flow.sources(node)
            self.note_layer(node, attention)
            if not sources:
                return None
            onwards = sources[0]
            if kind is Kind.ADD:
                onwards = next((source for source in sources if self._is_product(source)), onwards)
                if not scaled:  # else a table added there would be scaled
                    added += [(term, node) for term in node.all_input_nodes if term is not onwards]
            elif kind is Kind.MULTIPLY and len(sources) == 1:
                scaled = True
            elif kind not in _SAME_SCORES and not _masks(node):
                return None
            node = onwards
        if len(self._flow.sources(node)) != 2 or _is_fused(node):
            return None
        for term, reader in added:
            self.note(term, reader, attention)
        return node

    def _is_product(self, node: fx.Node) -> bool:
        """Whether a product of two tensors leads to ``node``, rather than a mask."""
        *_, first = self._flow.back_through(node, _SAME_SCORES | {Kind.ADD, Kind.MULTIPLY})
        return facts(first)["kind"] in (Kind.MATMUL, Kind.ADD)

    def note(self, term: fx.Node, reader: fx.Node, attention: Attention) -> None:
        """Note the parts of a term of the scores that are biases, and the operations that read them."""
        part = self._sum_behind(term)
        if self.note_layer(term, attention) or (part is not None and self.note_layer(part, attention)):
            return
        if part is not None:
            for source in part.all_input_nodes:
                self.note(source, part, attention)
        elif term not in self._flow and self._has_parameters(term):
            attention.biases.append((term, reader))

    def note_layer(self, node: fx.Node, attention: Attention) -> bool:
        """Whether a layer of this pass issues ``node``, which is noted."""
        owner = self._trace.owner_of(node)
        if not isinstance(owner, GaussianBias):
            return False
        attention.edited = owner
        return True

    def _sum_behind(self, node: fx.Node) -> fx.Node | None:
        """The sum of which ``node`` is a view."""
        while facts(node)["kind"] in (Kind.VIEW, Kind.IDENTITY) and len(node.all_input_nodes) == 1:
            (node,) = node.all_input_nodes
        return node if facts(node)["kind"] is Kind.ADD else None

    def _has_parameters(self, node: fx.Node) -> bool:
        pending, seen = [node], {node}
        while pending:
            current = pending.pop()
            if current.op in ("get_attr", "call_module") and str(current.target) in self._parametric:
                return True
            new = [each for each in current.all_input_nodes if each not in seen and each not in self._flow]
            pending += new
            seen.update(new)
        return False

    @cached_property
    def _parametric(self) -> set[str]:
        """The parameters, and the modules that have some of their own."""
        names = [name for name, _ in self._trace.model.named_parameters(remove_duplicate=False)]
        return {*names, *(name.rpartition(".")[0] for name in names)}


def _is_fused(node: fx.Node) -> bool:
    return function_name(node.target) == "scaled_dot_product_attention"  # type: ignore[arg-type]


def _masks(node: fx.Node) -> bool:
    """Whether an operation only takes positions out."""
    return function_name(node.target) in ("masked_fill", "where", "tril", "triu")  # type: ignore[arg-type]

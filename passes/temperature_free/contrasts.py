"""Where cosine similarities become logits by a temperature, and what belongs together: all logits of one loss."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import networkx as nx
from torch import fx, nn

from rewriter.passes.temperature_free.cosines import Cosine, Scale, find_cosines, parameters_behind
from rewriter.passes.temperature_free.gradients import is_attention, passed_by_gradients
from rewriter.passes.temperature_free.layers import LogOdds
from rewriter.passes.temperature_free.terms import NEGATIONS, Terms
from rewriter.passes.temperature_free.vectors import FILLS, function_of, normalised_length, places, scaled, size
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, is_in_place
from rewriter.tracing.trace import Trace

_SOFTMAX = frozenset({"cross_entropy", "softmax", "log_softmax", "logsumexp", "nll_loss", "kl_div", "log"})
_SIGMOID = frozenset({"sigmoid", "logsigmoid", "softplus", "binary_cross_entropy", "binary_cross_entropy_with_logits"})


@dataclass(eq=False)
class Contrast:
    """All scales of one loss, or of one learned temperature.

    Attributes:
        scales: the scales, in execution order.
        parameters: the learned temperatures.
        normalised: whether a softmax follows; otherwise they are logits that the model returns.
        bias: what makes it a loss of sigmoids, which is no contrast of many; empty if nothing does.
        mixed: whether several temperatures, learned or given, meet in it or are applied by one line.
        term: what else is a term of the loss and cannot be edited, so that it is left alone; empty if nothing is.
    """

    scales: list[Scale]
    parameters: list[str]
    normalised: bool
    bias: str = ""
    mixed: bool = False
    term: str = ""

    @property
    def cosines(self) -> dict[fx.Node, Cosine]:
        """Its similarities, each once."""
        return {cosine.node: cosine for scale in self.scales for cosine in scale.cosines}


def find_contrasts(trace: Trace) -> list[Contrast]:
    """The contrastive losses and logits of the training run whose similarities a temperature scales."""
    cosines = find_cosines(trace)
    trained = passed_by_gradients(trace.flow)
    scales = [one for one in _scales(trace, cosines) if one.node in trained and not is_attention(one, trace.flow)]
    reached = {scale: _reached(scale, trace.flow) for scale in scales}
    terms = Terms(scales, reached, trace.flow)
    behind = {scale: terms.temperatures[scale].behind for scale in scales}
    alike = nx.Graph()
    alike.add_nodes_from(scales)
    for one, other in itertools.combinations(scales, 2):
        meet = (reached[one] & reached[other]) - {trace.flow.output} or terms.meet(one, other)
        if meet or behind[one] & behind[other] or _line(one) == _line(other):
            alike.add_edge(one, other)
    groups = (sorted(group, key=lambda s: trace.flow.position(s.node)) for group in nx.connected_components(alike))
    found = [_contrast(group, terms, cosines, trained, trace) for group in groups]
    return sorted((one for one in found if one is not None), key=lambda one: trace.flow.position(one.scales[0].node))


def find_done(trace: Trace) -> Iterator[tuple[fx.Node, LogOdds]]:
    """Similarities that a layer of the pass turns into logits, and the layer."""
    seen: set[nn.Module] = set()
    for node in trace.flow.nodes():
        owner = trace.owner_of(node) if node.op == "call_function" else None
        if isinstance(owner, LogOdds) and owner not in seen:
            seen.add(owner)
            yield node, owner


def find_returned(trace: Trace) -> Iterator[list[str]]:
    """The learned numbers, read by nothing else, that a model returns beside normalised vectors: CLIP, for a loss."""
    returned = trace.flow.output.all_input_nodes
    vectors = [node for node in returned if node in trace.flow and _is_normalised(node)]
    if len(vectors) < 2:
        return
    names = [name for node in returned if node not in trace.flow and size(node) == 1 for name in _sorted(node, trace)]
    found = [name for name in dict.fromkeys(names) if not other_uses(name, trace, set())]
    if found:
        yield found


def other_uses(name: str, trace: Trace, gone: set[fx.Node]) -> list[fx.Node]:
    """The operations on data that read a parameter, apart from those that are ``gone`` and from the output."""
    pending = [node for node in trace.train.graph.nodes if node.op == "get_attr" and str(node.target) == name]
    seen: set[fx.Node] = set()
    found: list[fx.Node] = []
    while pending:
        for user in pending.pop().users:
            if user in trace.flow and user not in gone and user is not trace.flow.output:
                found.append(user)
            elif user not in trace.flow and user not in seen:
                seen.add(user)
                pending.append(user)
    return found


def _scales(trace: Trace, cosines: Mapping[fx.Node, Cosine]) -> Iterator[Scale]:
    for cosine in cosines.values():
        for node, kept in cosine.scales.items():
            yield Scale(node, kept, [cosine], inside=True)
    for node in trace.flow.nodes(Kind.MULTIPLY):
        operand = scaled(node)
        if operand is None:
            continue
        scale = Scale(node, operand, [])
        leaves = _back(scale, trace.flow)
        if all(detached for _, detached in leaves):
            continue
        for leaf, _ in leaves:
            if leaf in cosines:
                scale.cosines.append(cosines[leaf])
            else:
                scale.others.append(leaf)
        if scale.cosines:
            yield scale


def _back(scale: Scale, flow: Dataflow) -> list[tuple[fx.Node, bool]]:
    """What ``scale`` scales, through operations that only place values, and whether it is cut off from the gradient.

    Notes whether values are filled in.
    """
    found = []
    pending, seen = [(scale.kept, False)], {scale.kept}
    scale.filled = any(function_of(writer) in FILLS for writer in facts(scale.node)["after"])
    while pending:
        node, detached = pending.pop()
        detached |= function_of(node) == "detach"
        scale.filled |= function_of(node) in FILLS
        scale.filled |= any(function_of(writer) in FILLS for writer in facts(node)["after"])
        if not places(node) and function_of(node) not in NEGATIONS:  # atanh(-s) is -atanh(s)
            found.append((node, detached))
            continue
        for source in flow.sources(node):
            if source not in seen and facts(source)["dtype"].is_floating_point:
                seen.add(source)
                pending.append((source, detached))
    return found


def _reached(scale: Scale, flow: Dataflow) -> set[fx.Node]:
    """What depends on the logits, up to the first softmax, and that."""
    return flow.reachable(scale.node, stop=lambda node: function_of(node) in _SOFTMAX)


def _line(scale: Scale) -> tuple[object, ...]:
    """The expression that issues a scale: an edit of it acts on all that it issues."""
    frame = facts(scale.node)["frames"][0]
    return facts(scale.node)["owner"].path, frame.code, frame.instruction


def _contrast(
    scales: list[Scale], terms: Terms, cosines: Mapping[fx.Node, Cosine], trained: set[fx.Node], trace: Trace
) -> Contrast | None:
    parameters = dict.fromkeys(name for scale in scales for name in _temperatures(scale, trace))
    behind = set().union(*(trace.flow.reachable(scale.node) & trained for scale in scales))
    names = {function_of(node) for node in behind}
    normalised, bias = bool(names & _SOFTMAX), _bias(behind, trace)
    if not normalised and not bias and not any(_is_returned(scale.node, trace.flow) for scale in scales):
        return None
    given = [behind_it for scale in scales if (behind_it := terms.temperatures[scale].behind)]
    mixed = any(one.isdisjoint(other) for one, other in itertools.combinations(given, 2))
    term = terms.why_not_whole(scales, cosines)
    return Contrast(scales, list(parameters), normalised, bias, mixed, term)


def _temperatures(scale: Scale, trace: Trace) -> list[str]:
    numbers = [node for node in scale.node.all_input_nodes if node is not scale.kept]
    return sorted(set().union(*(parameters_behind(node, trace) for node in numbers)))


def _is_returned(node: fx.Node, flow: Dataflow) -> bool:
    """Whether logits are returned as they are, or after a product that makes them and masks."""
    passes = flow.reachable(node, stop=lambda other: not places(other) and facts(other)["kind"] is not Kind.MATMUL)
    return flow.output in passes


def _bias(behind: set[fx.Node], trace: Trace) -> str:
    """What shows that each logit goes into a sigmoid of its own; empty if nothing does."""
    for node in trace.flow.in_order(behind):
        module = trace.module_of(node)
        if function_of(node) in _SIGMOID or isinstance(module, (nn.Sigmoid, nn.LogSigmoid, nn.Softplus)):
            return "a sigmoid reads the logits one by one"
        added = [one for one in node.all_input_nodes if one not in behind and size(one) == 1]
        learned = [one for one in added if one.op == "placeholder" or parameters_behind(one, trace)]
        if facts(node)["kind"] is Kind.ADD and learned and size(node) > 1:
            return "a bias is added to the logits, which a softmax would not see"
    return ""


def _is_normalised(node: fx.Node) -> bool:
    while facts(node)["kind"] in (Kind.VIEW, Kind.IDENTITY) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return normalised_length(node) is not None


def _sorted(node: fx.Node, trace: Trace) -> list[str]:
    return sorted(parameters_behind(node, trace))


def works_in_place(scale: Scale) -> bool:
    """Whether a scale writes its result to its operand: ``x /= t``, ``x.div_(t)``."""
    return callable(scale.node.target) and is_in_place(scale.node.target)

"""Logarithms and cross entropies of what a sigmoid gave.

Dataflow::

    x ─ sigmoid ─ [1 - ] ─ log ─ …                      x ─ sigmoid ─ binary cross entropy ─ …
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from rewriter.analysis.arguments import argument
from rewriter.authoring import Change, Place, Refused
from rewriter.passes.numeric_safety.layers import BinaryCrossEntropy, LogSigmoid
from rewriter.passes.numeric_safety.refusals import ARITHMETIC, coded, refuse_steps, refuse_what_guards_nothing
from rewriter.passes.numeric_safety.replay import NotReplayable, name_of_function, replay, replay_exactly
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Trace

EDGES = (-200.0, -20.0, 20.0, 200.0)
"""Logits at which a sigmoid is 0 or 1, in single or in half precision."""

_LOGARITHMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "log": lambda p: p, "log2": lambda p: p, "log10": lambda p: p, "log1p": lambda p: 1 + p,
}  # fmt: skip
_BASES = {"log2": 2, "log10": 10}
_CONSTANTS = frozenset({"ones_like", "zeros_like", "full_like", "new_ones", "new_zeros", "new_full"})
_STEPS = ARITHMETIC | {"clamp", "clamp_min", "clamp_max", "clip", "nan_to_num", "div", "truediv"}


@dataclass(frozen=True)
class OfSigmoid:
    """An operation on what a sigmoid gave.

    Attributes:
        sigmoid: the sigmoid; ``logits`` is its input.
        steps: the operations in between, in order.
        complement: whether it is on ``1 - sigmoid``; None if it is on something else, such as a value that is clamped.
        constants: the operations that make tensors of one number, which the steps use: ``torch.ones_like(p) - p``.
    """

    sigmoid: fx.Node
    logits: fx.Node
    steps: tuple[fx.Node, ...]
    complement: bool | None
    constants: tuple[fx.Node, ...] = ()


def find_logarithms(trace: Trace) -> Iterator[Place[OfSigmoid]]:
    """Every logarithm of a sigmoid that overflows."""
    for node in trace.operations():
        name = name_of_function(node)
        operand = argument(node, "input", 0) if name in _LOGARITHMS else None
        if isinstance(operand, fx.Node) and len(node.args) + len(node.kwargs) == 1:
            found = _of_sigmoid(operand, trace, _LOGARITHMS[name])
            if found is not None and not _is_finite(node, found, trace):
                yield Place(trace, node, "logarithm of a sigmoid", found)


def find_cross_entropies(trace: Trace) -> Iterator[Place[OfSigmoid]]:
    """Every binary cross entropy that is given probabilities of a sigmoid."""
    for node in trace.operations():
        given = argument(node, "input", 0) if name_of_function(node) == "binary_cross_entropy" else None
        found = _of_sigmoid(given, trace, lambda p: p) if isinstance(given, fx.Node) else None
        if found is not None and found.complement is not None and _is_blind(facts(found.sigmoid)["dtype"]):
            yield Place(trace, node, "cross entropy of a sigmoid", found)


def mend_logarithm(place: Place[OfSigmoid]) -> Change:
    """Compute it by ``logsigmoid``, from the input of the sigmoid."""
    found, node = place.subject, place.node
    assert node is not None
    if found.complement is None:
        refuse_what_guards_nothing(found.steps)
        detail = (
            "what is added, or the bound, does not change 0 or 1 in this precision: give a larger one, or clamp to it"
        )
        raise Refused("numeric-safety/guard-too-small", detail, code="RW0701")
    refuse_steps(found.steps, "RW0701")
    sign = "-" if found.complement else ""
    base = _BASES.get(name_of_function(node))
    options: dict[str, Any] = {} if base is None else {"base": base}
    with coded("RW0701", "torch.nn.functional.logsigmoid of the logits"):
        place.edit.compute_instead(
            node, LogSigmoid, found.logits, all_calls=True, complement=found.complement, **options
        )
    per = "" if base is None else f" / ln {base}"
    return Change(
        f"logsigmoid({sign}x){per} instead of the logarithm of {'1 - ' if sign else ''}sigmoid(x)",
        f"it is -inf, and its gradient nan, where sigmoid(x) is {int(found.complement)} in this precision",
        code="RW0701",
    )


def mend_cross_entropy(place: Place[OfSigmoid]) -> Change:
    """Compute it with logits, from the input of the sigmoid."""
    found, node = place.subject, place.node
    assert node is not None and found.complement is not None
    refuse_steps(found.steps, "RW0702")
    operand = argument(node, "input", 0)
    around = facts(node)["call"].path
    loss = place.model.get_submodule(around)
    with coded("RW0702", "torch.nn.functional.binary_cross_entropy_with_logits"):
        if isinstance(loss, nn.BCELoss) and type(loss).forward is nn.BCELoss.forward:
            target = argument(node, "target", 1)
            place.edit.compute_instead(
                node, BinaryCrossEntropy, found.logits, target, around=around, references={"loss": around},
                all_calls=True, complement=found.complement,
            )  # fmt: skip
        else:
            place.edit.compute_instead(
                node, BinaryCrossEntropy, found.logits, operand=operand, all_calls=True, complement=found.complement
            )
    return Change(
        "binary cross entropy with logits instead of one of a sigmoid",
        "where the sigmoid is 0 or 1, the loss stays at 100 and its gradient is 0, or nan in half precision",
        code="RW0702",
    )


def _of_sigmoid(node: fx.Node, trace: Trace, then: Callable[[torch.Tensor], torch.Tensor]) -> OfSigmoid | None:
    """The sigmoid that ``node`` is computed from by itself, element by element; None if there is none."""
    steps: list[fx.Node] = []
    constants: list[fx.Node] = []
    while not _is_sigmoid(node, trace):
        made = [given for given in node.all_input_nodes if name_of_function(given) in _CONSTANTS]
        sources = [source for source in trace.flow.sources(node) if source not in made]
        plain = name_of_function(node) in _STEPS or facts(node)["kind"] in (Kind.VIEW, Kind.IDENTITY, Kind.SELECT)
        if not plain or len(sources) != 1 or facts(node)["after"]:
            return None
        constants += made
        steps.insert(0, node)
        node = sources[0]
    complement = _complement(node, [*constants, *steps], trace, then)
    return OfSigmoid(node, trace.flow.sources(node)[0], tuple(steps), complement, tuple(constants))


def _is_sigmoid(node: fx.Node, trace: Trace) -> bool:
    of_module = isinstance(trace.module_of(node), nn.Sigmoid)
    return (of_module or name_of_function(node) in ("sigmoid", "expit", "special_expit")) and not facts(node)["writes"]


def _complement(
    sigmoid: fx.Node, steps: list[fx.Node], trace: Trace, then: Callable[[torch.Tensor], torch.Tensor]
) -> bool | None:
    """Whether the steps make of every p (False) p, or (True) 1 - p; None if they make something else."""
    shape = facts(sigmoid)["shape"]
    p = torch.linspace(0.0, 1.0, max(1, _numel(shape)), dtype=torch.float64).reshape(shape)
    try:
        # in double precision, so that a change of the type is no other value
        result = then(replay_exactly(steps, _with_masks(steps, {sigmoid: p}), trace)[steps[-1]] if steps else p)
    except NotReplayable:
        return None
    if result.shape != p.shape or result.dtype != p.dtype:
        result = result.flatten().double()
        p = p.flatten()
    if result.shape == p.shape:
        if torch.equal(result, p):
            return False
        if torch.allclose(result, 1 - p, rtol=0, atol=1e-15):
            return True
    return None


def _with_masks(nodes: Sequence[fx.Node], values: dict[fx.Node, torch.Tensor]) -> dict[fx.Node, torch.Tensor]:
    """``values``, with masks and indices that ``nodes`` select by, of everything, or of what comes first.

    What a constant only has the shape of gets a value, too.
    """
    inside = {*nodes, *values}
    others = {source for node in nodes for source in node.all_input_nodes if source not in inside}
    masks = {each: facts(each) for each in others if each.op != "get_attr" and facts(each)["dtype"] is not None}
    shapes = {source for node in nodes if name_of_function(node) in _CONSTANTS for source in node.all_input_nodes}
    likes = {each: torch.zeros(fact["shape"], dtype=fact["dtype"]) for each, fact in masks.items() if each in shapes}
    values = likes | values
    return values | {
        each: torch.full(fact["shape"], fact["dtype"] is torch.bool, dtype=fact["dtype"])
        for each, fact in masks.items()
        if not fact["dtype"].is_floating_point
    }


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _is_finite(node: fx.Node, found: OfSigmoid, trace: Trace) -> bool:
    """Whether the logarithm and its gradient are finite at the edges."""
    nodes = [found.sigmoid, *found.constants, *found.steps, node]
    dtype = facts(found.logits)["dtype"]
    for edge in EDGES:
        x = torch.full(facts(found.logits)["shape"], edge, dtype=dtype, requires_grad=True)
        try:
            value = replay(nodes, _with_masks(nodes, {found.logits: x}), trace)[node]
        except NotReplayable:
            return True
        if not value.isfinite().all():
            return False
        if value.requires_grad:
            (gradient,) = torch.autograd.grad(value.sum(), x)
            if not gradient.isfinite().all():
                return False
    return True


@functools.cache
def _is_blind(dtype: torch.dtype) -> bool:
    """Whether the cross entropy of a sigmoid that is as wrong as can be gives no gradient, or nan."""
    x = torch.tensor([EDGES[0], EDGES[-1]], dtype=dtype, requires_grad=True)
    with torch.enable_grad():
        loss = F.binary_cross_entropy(torch.sigmoid(x), torch.tensor([1.0, 0.0], dtype=dtype), reduction="sum")
        (gradient,) = torch.autograd.grad(loss, x)
    return not bool((gradient.abs() > 0.5).all())  # with logits it is 1

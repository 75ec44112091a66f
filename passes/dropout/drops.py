"""The dropouts of a model, what their rates are, and how one is moved, removed or inserted."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx, nn

from rewriter.analysis.carrying import holds_attention_weights
from rewriter.analysis.dropouts import Mask, always_on, drop_rate, mask_of
from rewriter.analysis.interference import interference
from rewriter.analysis.naming import name_of, path_of
from rewriter.analysis.weights import has_weight
from rewriter.edit.conditions import refuse_unless_always
from rewriter.edit.edits import AddBehaviour, AddModule, Edit, SetAttribute
from rewriter.edit.placement import placement
from rewriter.guideline.base import Rate, Skipped
from rewriter.passes.dropout.layers import Bypassed
from rewriter.reasons import Reason, Refused
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Trace

Put = Callable[..., list[Edit]]
"""Puts a layer somewhere, with these options."""

BECOMES_RANDOM = "become random in training"
NO_LONGER_DROPPED = "no longer be dropped"
KEPT_ON_ATTENTION = "it drops attention weights, not activations, and is kept"


class Drops:
    """The dropouts that ran in training mode. Every one is claimed by the place that decided about it."""

    name = "dropout"

    def __init__(self, trace: Trace) -> None:
        self.model = trace.model
        self.flow = trace.train.dataflow
        self.place = placement(self.flow, trace)
        self.interference = interference(self.flow, trace)
        self._always_on = always_on(self.flow, trace)
        self._nodes = list(self.flow.nodes(Kind.DROPOUT))
        self._claimed: set[fx.Node] = set()

    def claim(self, nodes: set[fx.Node]) -> list[fx.Node]:
        """The dropouts among ``nodes`` that no inner place has claimed, in the order they ran."""
        found = [n for n in self._nodes if n in nodes and n not in self._claimed and not self.is_bypassed(n)]
        self._claimed.update(found)
        return found

    def unclaimed(self) -> list[fx.Node]:
        """Dropouts that belong to no place."""
        return [n for n in self._nodes if n not in self._claimed and not self.is_bypassed(n)]

    def outside(self) -> list[Skipped]:
        """Findings for dropouts that belong to no place, each once."""
        return list(dict.fromkeys(map(self._outside, self.unclaimed())))

    def _outside(self, node: fx.Node) -> Skipped:
        if self.on_attention(node):
            return Skipped(self.name, path_of(node), "dropout", Reason.ATTENTION_DROPOUT, KEPT_ON_ATTENTION)
        read = bool(self.flow.users(node))
        detail = "in no residual branch and no pooled head" if read else "nothing reads what it returns"
        return Skipped(self.name, path_of(node), "dropout", Reason.OUTSIDE, detail)

    def module(self, node: fx.Node) -> nn.Module | None:
        """The dropout's module; None for a function call."""
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def rate(self, node: fx.Node) -> float:
        """Its drop rate during the trace."""
        return drop_rate(node, self.model)

    def rate_at(self, node: fx.Node, asked_for: float | None = None) -> str:
        """The rate after the rewrite, and where it is read from."""
        module = self.module(node)
        where = f"{path_of(node)}.p" if module is not None else f"as before, read in {node.meta['owner'].method}()"
        rate = asked_for if asked_for is not None and self.switch_on(node, asked_for) else self.rate(node)
        return f"{rate:g} ({where})"

    def rates(self, nodes: list[fx.Node], kept: fx.Node, asked_for: float | None) -> tuple[Rate, ...]:
        """The rates that a change of ``nodes`` depends on; ``kept`` may be switched on."""
        found = []
        for node in nodes:
            value = asked_for if node is kept and asked_for and self.switch_on(node, asked_for) else self.rate(node)
            if self.module(node) is not None:
                found.append(Rate(path_of(node), "p", value))
            else:
                found.append(Rate(*(self.place.attribute_of(node, "p", 1) or ("", "")), value))
        return tuple(found)

    def inserted_rates(self, edits: list[Edit]) -> tuple[Rate, ...]:
        """The rate of a dropout that ``edits`` insert."""
        added = next(edit for edit in edits if isinstance(edit, AddModule))
        return (Rate(f"{added.path}.{added.name}".lstrip("."), "p", added.options["p"]),)

    def switch_on(self, node: fx.Node, rate: float | None) -> list[Edit]:
        """Edits that give a dropout module whose rate is 0 the ``rate`` asked for; none if there is nothing to do."""
        if not rate or self.module(node) is None or self.rate(node) > 0:
            return []
        return [SetAttribute(path_of(node), "p", rate)]

    def inserted_rate_at(self, edits: list[Edit]) -> str:
        """Where the rate of a dropout that ``edits`` insert will be found."""
        added = next(edit for edit in edits if isinstance(edit, AddModule))
        return f"{added.options['p']:g} ({f'{added.path}.{added.name}'.lstrip('.')}.p)"

    def is_bypassed(self, node: fx.Node) -> bool:
        """Whether an earlier rewrite has already taken the effect of this dropout away."""
        return isinstance(self.module(node), Bypassed)

    def on_attention(self, node: fx.Node) -> bool:
        """Whether it drops attention weights: of a softmax, perhaps normalised again or mixed over heads."""
        return holds_attention_weights(node, self.flow)

    def on_predictions(self, node: fx.Node) -> bool:
        """Whether it drops what the model predicts: a weight lies before it, and none behind it."""
        reached = self.flow.reachable(node)
        return self.flow.output in reached and not any(has_weight(other, self.flow) for other in reached)

    def left_as_it_is(self, nodes: list[fx.Node], pattern: str) -> list[Skipped]:
        """Findings for those of a place's dropouts that do not follow the mode; such a place is left alone."""
        found = []
        for node in nodes:
            if node in self._always_on:
                detail = f"{name_of(node)} drops in evaluation mode too; moved, it would change the output there"
                found.append(Skipped(self.name, path_of(node), pattern, Reason.ALWAYS_ON, detail))
            elif not node.meta["active"]:
                detail = f"{name_of(node)} is kept from dropping in training mode"
                found.append(Skipped(self.name, path_of(node), pattern, Reason.FROZEN, detail))
        return found

    def kind_of(self, node: fx.Node) -> str:
        """In brackets, what it drops if not single elements; else nothing."""
        mask = mask_of(node, self.model)
        return "" if mask is Mask.ELEMENTS else f" ({mask})"

    def refuse_other_kinds(self, kept: fx.Node, moved: bool, removed: list[fx.Node]) -> None:
        """Refuse to exchange dropouts of different kinds: only element-wise ones are moved.

        Raises:
            Refused: ``kept`` is to be moved and is not element-wise, or one of the ``removed`` is of another kind.
        """
        mask = mask_of(kept, self.model)
        if moved and mask is not Mask.ELEMENTS:
            raise Refused(Reason.DROPOUT_KIND, f"{name_of(kept)} {mask}; only element-wise dropout is moved")
        for node in removed:
            other = mask_of(node, self.model)
            if other is not mask or mask is Mask.OWN:
                raise Refused(
                    Reason.DROPOUT_KIND,
                    f"{name_of(kept)} {mask} and {name_of(node)} {other}: one does not stand for the other",
                )

    def move_before(self, node: fx.Node, consumer: fx.Node, operand: fx.Node) -> list[Edit]:
        """Edits that make ``node`` act on ``operand`` where ``consumer`` reads it.

        Within one method the call itself is moved. Otherwise, and if it is channel dropout by class or works in place,
        the module stays as the holder of its rate, does nothing, and an element-wise dropout that reads that rate is
        put before the consumer.

        Raises:
            Refused: neither is possible.
        """
        return self._move(
            node,
            consumer,
            lambda: self.place.move_before(node, consumer, operand),
            lambda **origin: self._put_before(consumer, operand, "dropout/moved", **origin),
        )

    def move_after(self, node: fx.Node, producer: fx.Node, join: fx.Node) -> list[Edit]:
        """Edits that make ``node`` act on what ``producer`` gives, as :meth:`move_before`.

        Raises:
            Refused: neither is possible.
        """
        return self._move(
            node,
            producer,
            lambda: self.place.move_after(node, producer),
            lambda **origin: self._put_after(producer, join, "dropout/moved", **origin),
        )

    def _move(self, node: fx.Node, beside: fx.Node, call: Callable[[], list[Edit]], put: Put) -> list[Edit]:
        module = self.module(node)
        in_place = node.kwargs.get("inplace", False) if module is None else getattr(module, "inplace", False)
        try:
            if in_place:
                raise Refused(Reason.IN_PLACE, "it works in place; the tensor before the new place has other readers")
            if not self._element_wise(node):
                raise Refused(Reason.DROPOUT_KIND, "where a channel has several elements it drops whole channels")
            return call()
        except Refused as refused:
            if module is None or refused.reason is Reason.SHARED_MODULE:
                raise
            refuse_unless_always(node, beside, self.model)
            return [*self.remove(node), *put(references={"origin": path_of(node)})]

    def remove(self, node: fx.Node) -> list[Edit]:
        """Edits that take the effect of ``node`` away.

        Raises:
            Refused: it is a function call in a place that cannot be edited.
        """
        if node.op == "call_module" and self.place.calls_of(path_of(node)) == 1:
            return [AddBehaviour(path_of(node), "dropout/bypassed")]
        return self.place.remove(node)

    def insert_before(self, rate: float, consumer: fx.Node, operand: fx.Node) -> list[Edit]:
        """Edits that put a new dropout before ``consumer``.

        Raises:
            Refused: the place cannot be edited.
        """
        return self._put_before(consumer, operand, "dropout/dropout", options={"p": rate})

    def insert_after(self, rate: float, producer: fx.Node, join: fx.Node) -> list[Edit]:
        """Edits that put a new dropout behind ``producer``, in the method that sums if it can be there.

        Raises:
            Refused: the place cannot be edited.
        """
        return self._put_after(producer, join, "dropout/dropout", options={"p": rate})

    def _element_wise(self, node: fx.Node) -> bool:
        module = self.module(node)
        name = getattr(node.target, "__name__", "")
        return isinstance(module, nn.Dropout) if module is not None else name.strip("_") == "dropout"

    def _put_before(self, consumer: fx.Node, operand: fx.Node, layer: str, **add: object) -> list[Edit]:
        return self.place.insert_before(consumer, operand, "dropout", layer, "dropout/drops-input", **add)

    def _put_after(self, producer: fx.Node, join: fx.Node, layer: str, **add: object) -> list[Edit]:
        return self.place.insert_after(producer, join, "dropout", layer, "dropout/drops-output", **add)

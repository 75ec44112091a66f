"""Move, remove, switch on or insert a dropout."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx, nn

from rewriter.authoring import Place, Rate, Reason, Refused, path_of
from rewriter.edit.conditions import refuse_unless_always
from rewriter.edit.edits import AddModule
from rewriter.passes.dropout.drops import Drops
from rewriter.passes.dropout.layers import MovedDropout


class Moves:
    """The edits at one place.

    Args:
        place: where they are made.
        drops: the dropouts of the model.
    """

    def __init__(self, place: Place[Any], drops: Drops) -> None:
        self.edit, self.drops = place.edit, drops

    def switch_on(self, node: fx.Node, rate: float | None) -> None:
        """Give a dropout module of rate 0 the requested ``rate``, if there is one."""
        if self.drops.switches_on(node, rate):
            self.edit.set(path_of(node), "p", rate, all_calls=True)

    def rates(self, nodes: list[fx.Node], kept: fx.Node, asked_for: float | None) -> tuple[Rate, ...]:
        """Return the rates that a change of ``nodes`` depends on; ``kept`` may be switched on."""
        found = []
        for node in nodes:
            switched = node is kept and self.drops.switches_on(node, asked_for)
            value = asked_for if switched and asked_for else self.drops.rate(node)
            if self.drops.module(node) is not None:
                found.append(Rate(path_of(node), "p", value))
            else:
                found.append(Rate(*(self.edit.attribute_of(node, "p", 1) or ("", "")), value))
        return tuple(found)

    def inserted(self) -> tuple[str, tuple[Rate, ...]]:
        """Return where the rate of the inserted dropout is found, and that rate."""
        added = next(edit for edit in self.edit.edits if isinstance(edit, AddModule))
        path, rate = f"{added.path}.{added.name}".lstrip("."), added.options["p"]
        return f"{rate:g} ({path}.p)", (Rate(path, "p", rate),)

    def move_before(self, node: fx.Node, consumer: fx.Node, operand: fx.Node) -> None:
        """Make ``node`` act on ``operand`` where ``consumer`` reads it.

        Within one method the call itself is moved. Otherwise, and if it is channel dropout by class or works in place,
        the module stays as the holder of its rate and becomes the identity, and an element-wise dropout that reads that
        rate is inserted before the consumer.

        Raises:
            Refused: neither is possible.
        """
        self._move(
            node,
            consumer,
            lambda: self.edit.move_before(node, consumer, operand),
            lambda **origin: self._put_before(consumer, operand, MovedDropout, **origin),
        )

    def move_after(self, node: fx.Node, producer: fx.Node, join: fx.Node) -> None:
        """Make ``node`` act on the output of ``producer``, as :meth:`move_before` does.

        Raises:
            Refused: neither is possible.
        """
        self._move(
            node,
            producer,
            lambda: self.edit.move_after(node, producer),
            lambda **origin: self._put_after(producer, join, MovedDropout, **origin),
        )

    def _move(self, node: fx.Node, beside: fx.Node, call: Callable[[], object], put: Callable[..., object]) -> None:
        module = self.drops.module(node)
        in_place = node.kwargs.get("inplace", False) if module is None else getattr(module, "inplace", False)
        try:
            if in_place:
                raise Refused(Reason.IN_PLACE, "it works in place; the tensor before the new place has other readers")
            if not self.drops.is_plain(node):
                raise Refused(Reason.DROPOUT_KIND, "where a channel has several elements it drops whole channels")
            call()
        except Refused as refused:
            if module is None or refused.reason is Reason.SHARED_MODULE:
                raise
            refuse_unless_always(node, beside, self.drops.model)
            self.remove(node)
            put(references={"origin": path_of(node)})

    def remove(self, node: fx.Node) -> None:
        """Remove the effect of ``node``.

        Raises:
            Refused: it is a function call in code that cannot be edited.
        """
        if node.op == "call_module" and self.edit.calls_of(path_of(node)) == 1:
            self.edit.behave(path_of(node), "dropout/bypassed")
        else:
            self.edit.remove(node)

    def insert_before(self, rate: float, consumer: fx.Node, operand: fx.Node) -> None:
        """Put a new dropout before ``consumer``.

        Raises:
            Refused: the place cannot be edited.
        """
        self._put_before(consumer, operand, nn.Dropout, p=rate)

    def insert_after(self, rate: float, producer: fx.Node, join: fx.Node) -> None:
        """Put a new dropout after ``producer``, in the method that computes the sum if possible.

        Raises:
            Refused: the place cannot be edited.
        """
        self._put_after(producer, join, nn.Dropout, p=rate)

    def _put_before(self, consumer: fx.Node, operand: fx.Node, layer: type[nn.Module], **add: Any) -> None:
        self.edit.insert_before(consumer, operand, layer, name="dropout", behaviour="dropout/drops-input", **add)

    def _put_after(self, producer: fx.Node, join: fx.Node, layer: type[nn.Module], **add: Any) -> None:
        self.edit.insert_after(producer, layer, join=join, name="dropout", behaviour="dropout/drops-output", **add)

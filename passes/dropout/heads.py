"""The rule for heads: dropout before global average pooling, not after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.nn.modules.batchnorm import _BatchNorm

from rewriter.analysis.heads import Head, noise_claim
from rewriter.analysis.naming import name_of, names_apart
from rewriter.authoring import Change, Kind, Outcome, Place, Reason, Refused, path_of
from rewriter.passes.dropout.drops import BECOMES_RANDOM, NO_LONGER_DROPPED, Drops
from rewriter.passes.dropout.moves import Moves
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import function_name

PATTERN = "head"
WHY = "the pooling averages the noise of a mask on the feature map; a mask on pooled features stays"


@dataclass(frozen=True, eq=False)
class InHead:
    """A head with global average pooling.

    Attributes:
        drops: the dropouts of the model.
        head: the head.
        all_before, behind: its dropouts before the pooling, and between the pooling and the classifier.
        later: those after a weight that follows the pooling.
    """

    drops: Drops
    head: Head
    all_before: list[fx.Node]
    behind: list[fx.Node]
    later: list[fx.Node]

    @property
    def before(self) -> list[fx.Node]:
        """Return those before the pooling that no batch norm follows there."""
        return [node for node in self.all_before if self._batch_norm_after(node) is None]

    @property
    def after(self) -> list[fx.Node]:
        """Return those after the pooling that may move before it: with no batch norm in between."""
        return [node for node in self.behind if self._batch_norm_before(node) is None]

    @property
    def path(self) -> str:
        """The path of the module that the change belongs to."""
        nearest = [*self.after[:1], *self.before[-1:], self.head.pool][0]
        return str(facts(nearest)["owner"].path)

    def decide(self, place: Place[Any], p: float | None) -> Iterator[Outcome]:
        """Yield one dropout before the pooling, and a reason for each other that is left.

        Raises:
            Refused: there is nothing to do, or the edit is not possible.
        """
        head, after = self.head, self.after
        for node in self.later:
            if self.drops.on_predictions(node):
                yield on_predictions(node)
                continue
            detail = f"{name_of(head.classifier)} lies between the pooling and the dropout" if head.classifier else ""
            yield Refused(Reason.WEIGHT_BETWEEN, detail, path=path_of(node))
        for node in self.behind:
            if (norm := self._batch_norm_before(node)) is not None:
                detail = f"before the pooling it would shift the statistics of {name_of(norm)}, which lies between them"
                yield Refused(Reason.NORM_BETWEEN, detail, path=path_of(node))
        for node in self.all_before:
            if (norm := self._batch_norm_after(node)) is not None:
                detail = f"it shifts the statistics of {name_of(norm)}, which follows it: its place is after that norm"
                yield Refused(Reason.NORM_BETWEEN, detail, path=path_of(node))
        if left := list(self.drops.left_as_it_is([*self.before, *after])):
            yield from left
            return
        try:
            yield from self._changed(place, after, p)
        except Refused as refused:
            path = path_of(after[0]) if after else None
            yield Refused(refused.reason, refused.detail, path=refused.path or path)

    def _changed(self, place: Place[Any], after: list[fx.Node], p: float | None) -> Iterator[Outcome]:
        head = self.head
        if after:
            yield self._clear_after_pooling(place, after, p)
        elif self.before:
            yield self._already_before_pooling(place, self.before[-1], p)
        elif p and head.classifier is not None and not self.all_before:
            yield self._insert(place, p)
        elif not self.later and not self.behind and not self.all_before:
            option = "p" if p is None else "head_p"
            detail = (
                f"no dropout ran after {_where(head)} (a rate of 0 may hide it); give {option}= to insert one before it"
            )
            if head.classifier is None:
                detail = f"{_where(head)} is followed by no classifier"
            yield Refused(Reason.NOTHING_TO_MOVE, detail)

    def _clear_after_pooling(self, place: Place[Any], after: list[fx.Node], p: float | None) -> Change:
        """Move one dropout before the pooling, unless one is there already, and remove the others."""
        drops, head, before = self.drops, self.head, self.before
        moves, interference = Moves(place, drops), place.interference
        kept = before[-1] if before else max(after, key=drops.rate)
        removed = [node for node in after if node is not kept]
        interference.refuse_parallel([*before, *after], head.weights)
        drops.refuse_other_kinds(kept, not before, removed)
        if not before:
            interference.refuse_other_readers([head.pool], after, BECOMES_RANDOM)
        if head.weights:
            interference.refuse_other_readers(after, head.weights, NO_LONGER_DROPPED)
        interference.refuse_writes(after)
        names = names_apart(after, place.path)
        actions = [] if before else [f"move {names[kept]} before {_where(head)}"]
        moves.switch_on(kept, p)
        if not before:
            moves.move_before(kept, head.pool, head.source)
        if drops.switches_on(kept, p):
            actions.append(f"set its rate to {p:g}")
        for node in removed:
            moves.remove(node)
            actions.append(f"remove {names[node]}")
        rates = moves.rates([*before, *after], kept, p)
        return Change(", ".join(actions), WHY, drops.rate_at(kept, p), self._claim(kept, p), rates)

    def _already_before_pooling(self, place: Place[Any], node: fx.Node, p: float | None) -> Change:
        drops, moves = self.drops, Moves(place, self.drops)
        if not drops.switches_on(node, p):
            detail = f"{name_of(node)}{drops.kind_of(node)} is before {_where(self.head)}"
            raise Refused(Reason.ALREADY_DONE, detail, path=place.path)
        moves.switch_on(node, p)
        rates = moves.rates([node], node, p)
        action = f"set the rate of {name_of(node)} to {p:g}"
        return Change(action, WHY, drops.rate_at(node, p), self._claim(node, p), rates)

    def _insert(self, place: Place[Any], p: float) -> Change:
        head, moves = self.head, Moves(place, self.drops)
        place.interference.refuse_other_readers([head.pool], head.weights, BECOMES_RANDOM)
        moves.insert_before(p, head.pool, head.source)
        setting, rates = moves.inserted()
        return Change(f"insert dropout before {_where(head)}", WHY, setting, noise_claim(head.pool), rates)

    def _claim(self, dropout: fx.Node, p: float | None) -> str:
        """Return the claim on the pooling; a dropout that is switched off makes none."""
        active = self.drops.rate(dropout) > 0 or self.drops.switches_on(dropout, p)
        return noise_claim(self.head.pool) if active else ""

    def _batch_norm_before(self, node: fx.Node) -> fx.Node | None:
        """Return a norm with batch statistics between the pooling and a dropout after it."""
        flow = self.drops.flow
        norms = [n for n in self.head.after if facts(n)["kind"] is Kind.NORM and flow.is_ancestor(n, node)]
        return next((norm for norm in norms if self._uses_the_batch(norm)), None)

    def _batch_norm_after(self, node: fx.Node) -> fx.Node | None:
        """Return a norm with batch statistics between a dropout and the pooling after it."""
        flow, pool = self.drops.flow, self.head.pool
        between = flow.in_order(flow.region(node, pool))
        return next((n for n in between if facts(n)["kind"] is Kind.NORM and self._uses_the_batch(n)), None)

    def _uses_the_batch(self, norm: fx.Node) -> bool:
        if norm.op == "call_module":
            return isinstance(self.drops.model.get_submodule(str(norm.target)), _BatchNorm)
        return function_name(norm.target) == "batch_norm"  # type: ignore[arg-type]


def on_predictions(node: fx.Node) -> Refused:
    """Return the reason that it drops the model's predictions."""
    detail = (
        "no weight follows: it drops predictions, and a dropped logit makes a large loss of a right prediction "
        "(H6 and H7 in the paper)"
    )
    return Refused(Reason.ON_PREDICTIONS, detail, path=path_of(node))


def _where(head: Head) -> str:
    return str(head.pool.target) if head.pool.op == "call_module" else name_of(head.pool)

"""The rule for heads: dropout before global average pooling, not after it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from rewriter.analysis.heads import Head, noise_claim
from rewriter.analysis.naming import name_of, names_apart
from rewriter.authoring import Change, Outcome, Place, Reason, Refused, path_of
from rewriter.passes.dropout.drops import BECOMES_RANDOM, NO_LONGER_DROPPED, Drops
from rewriter.passes.dropout.moves import Moves
from rewriter.tracing.facts import facts

PATTERN = "head"
WHY = "the pooling averages the noise of a mask on the feature map; a mask on pooled features stays"
ONE = "the rule is one dropout in the head; two masks in a row keep less than either rate says"


@dataclass(frozen=True, eq=False)
class InHead:
    """A head with global average pooling.

    Attributes:
        drops: the dropouts of the model.
        head: the head.
        before: its dropouts before the pooling, with no batch norm between.
        behind: those between the pooling and the classifier.
        later: those after a weight that follows the pooling.
        before_norm: those before a batch norm that precedes the pooling, and on no trunk.
    """

    drops: Drops
    head: Head
    before: list[fx.Node]
    behind: list[fx.Node]
    later: list[fx.Node]
    before_norm: list[fx.Node]

    @property
    def after(self) -> list[fx.Node]:
        """Return those after the pooling that may move before it: with no batch norm between."""
        return [node for node in self.behind if self._norm_before(node) is None]

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
        yield from self._out_of_place()
        if left := list(self.drops.left_as_it_is([*self.before, *self.after])):
            yield from left
            return
        try:
            yield from self._changed(place, p)
        except Refused as refused:
            dropouts = [*self.after, *self.before]
            path = refused.path or (path_of(self.after[0]) if self.after else None)
            refused.path, refused.inactive = path, self.drops.all_off(dropouts, p)
            refused.code, refused.at = self._fault()
            yield refused

    def _out_of_place(self) -> Iterator[Refused]:
        """Yield a reason for each dropout that cannot move before the pooling, or stands too far before it."""
        head, drops = self.head, self.drops
        for node in self.later:
            if drops.on_predictions(node):
                yield on_predictions(drops, node)
                continue
            detail = f"{name_of(head.classifier)} lies between the pooling and the dropout" if head.classifier else ""
            yield drops.left(Reason.WEIGHT_BETWEEN, detail, node)
        for node in self.behind:
            if (norm := self._norm_before(node)) is not None:
                detail = f"before the pooling it would shift the statistics of {name_of(norm)}, which lies between them"
                yield drops.left(Reason.NORM_BETWEEN, detail, node)
        for node in self.before_norm:
            norm = drops.batch_norm_between(node, head.pool) or head.pool
            detail = f"it shifts the statistics of {name_of(norm)}, which follows it: its place is after that norm"
            yield drops.left(Reason.NORM_BETWEEN, detail, node, code="RW0206")

    def _changed(self, place: Place[Any], p: float | None) -> Iterator[Outcome]:
        head, elsewhere = self.head, [*self.later, *self.behind, *self.before_norm]
        if self.before or self.after:
            yield self._one_before_pooling(place, p)
        elif p and head.classifier is not None and not any(map(self._is_of_head, elsewhere)):
            yield self._insert(place, p)
        elif not elsewhere:
            detail = (
                f"no dropout ran after {_where(head)} (a rate of 0 may hide it); give {_option(p)}= to insert one "
                "before it"
            )
            if head.classifier is None:
                detail = f"{_where(head)} is followed by no classifier"
            yield Refused(Reason.NOTHING_TO_MOVE, detail)

    def _fault(self) -> tuple[str, fx.Node | None]:
        """The code of what is wrong with the dropouts that may be edited, and the first that is at fault."""
        if self.after:
            return "RW0202", self.after[0]
        return ("RW0205", self.before[0]) if len(self.before) > 1 else ("", None)

    def _is_of_head(self, node: fx.Node) -> bool:
        """Whether a dropout that cannot be moved acts as the one of the head, so that a second is too many."""
        return self.drops.acts(node) and not self.drops.on_attention(node) and not self.drops.on_predictions(node)

    def _one_before_pooling(self, place: Place[Any], p: float | None) -> Change:
        """Keep one dropout before the pooling, of the highest rate, and remove the others.

        Raises:
            Refused: one is there and no other, or the edit is not possible.
        """
        drops, head, dropouts = self.drops, self.head, [*self.before, *self.after]
        kept = max(dropouts, key=lambda node: (drops.rate(node), node in self.before, dropouts.index(node)))
        moved, removed = kept in self.after, [node for node in dropouts if node is not kept]
        switched_on = drops.switches_on(kept, p)
        if not moved and not removed and not switched_on:
            detail = f"{name_of(kept)}{drops.kind_of(kept)} is before {_where(head)}"
            raise Refused(Reason.ALREADY_DONE, detail, path=place.path)
        self._refuse_interference(place, kept, moved, removed)
        names, moves = names_apart(dropouts, place.path), Moves(place, drops)
        actions = [f"move {names[kept]} before {_where(head)}" if moved else f"keep {names[kept]}{drops.kind_of(kept)}"]
        moves.switch_on(kept, p)
        if switched_on:
            actions = [*actions, f"set its rate to {p:g}"] if moved else [f"set the rate of {names[kept]} to {p:g}"]
        if moved:
            moves.move_before(kept, head.pool, head.source)
        for node in removed:
            moves.remove(node)
            actions.append(f"remove {names[node]}")
        rates = moves.rates(dropouts, kept, p)
        why = WHY if self.after or not removed else ONE
        setting, claim = drops.rate_at(kept, p, _option(p)), self._claim(kept, p)
        return Change(", ".join(actions), why, setting, claim, rates, *self._fault())

    def _refuse_interference(self, place: Place[Any], kept: fx.Node, moved: bool, removed: list[fx.Node]) -> None:
        """Refuse a change that would affect anything but what reads the head.

        Raises:
            Refused: dropouts act on parallel paths or are of different kinds; another operation reads a value that
                changes, or writes to the result of a dropout that is removed.
        """
        others, head = place.interference, self.head
        gone = [kept, *removed] if moved else removed
        others.refuse_parallel([*self.before, *self.after], head.weights)
        self.drops.refuse_other_kinds(kept, moved, removed)
        if moved:
            others.refuse_other_readers([head.pool], self.after, BECOMES_RANDOM)
        if head.weights:
            others.refuse_other_readers(gone, head.weights, NO_LONGER_DROPPED)
        others.refuse_writes(gone)

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

    def _norm_before(self, node: fx.Node) -> fx.Node | None:
        """Return a norm with batch statistics between the pooling and a dropout after it."""
        return self.drops.batch_norm_between(self.head.pool, node)


def on_predictions(drops: Drops, node: fx.Node) -> Refused:
    """Return the reason that it drops the model's predictions."""
    detail = (
        "no weight follows: it drops predictions, and a dropped logit makes a large loss of a right prediction "
        "(H6 and H7 in the paper)"
    )
    return drops.left(Reason.ON_PREDICTIONS, detail, node, code="RW0204")


def _option(p: float | None) -> str:
    """The option that sets the rate of heads, where ``p`` is the present one: one that was given stands above p."""
    return "p" if p is None else "head_p"


def _where(head: Head) -> str:
    return str(head.pool.target) if head.pool.op == "call_module" else name_of(head.pool)

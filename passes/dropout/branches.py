"""The rule for residual branches and dense layers: one dropout, before the last weight or at the end of the branch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from rewriter.analysis.naming import name_of, names_apart
from rewriter.analysis.residual import Branch, find_branches
from rewriter.authoring import Change, Outcome, Place, Reason, Refused
from rewriter.passes.dropout.drops import BECOMES_RANDOM, KEPT_ON_ATTENTION, NO_LONGER_DROPPED, Drops
from rewriter.passes.dropout.moves import Moves
from rewriter.passes.dropout.places import BeforeWeight, CompliantPlace, EndOfBranch
from rewriter.passes.dropout.trunk import WORST, left_on_trunk
from rewriter.tracing.facts import facts
from rewriter.tracing.frames import Owner
from rewriter.tracing.kinds import Kind


@dataclass(frozen=True, eq=False)
class InBranch:
    """A residual branch or dense layer that contains a weight.

    Attributes:
        drops: the dropouts of the model.
        branch: the branch.
        dropouts: those that belong to it, in execution order.
        on_trunk: those of them that are on the trunk beside it.
    """

    drops: Drops
    branch: Branch
    dropouts: list[fx.Node]
    on_trunk: list[fx.Node]

    @property
    def pattern(self) -> str:
        return "residual branch" if self.branch.form == "residual" else "dense layer"

    @property
    def path(self) -> str:
        """The module that the branch belongs to."""
        return facts(self.branch.join)["owner"].path if self.branch.form == "residual" else _dense_path(self.branch)

    def decide(self, place: Place[Any], p: float | None) -> Iterator[Outcome]:
        """Yield one dropout at the compliant place, and a reason for each other that is left.

        Raises:
            Refused: there is no such place, or no edit achieves it.
        """
        for node in self.dropouts:
            if self.drops.on_attention(node):
                yield self.drops.left(Reason.ATTENTION_DROPOUT, KEPT_ON_ATTENTION, node)
        dropouts = [node for node in self.dropouts if not self.drops.on_attention(node)]
        left = list(self.drops.left_as_it_is(dropouts))
        yield from left
        try:
            compliant = self._compliant_place()
        except Refused as refused:
            why = f"{self.pattern} {self.path or '(root)'} has no place for it: {refused.detail}"
            yield refused
            yield from (left_on_trunk(self.drops, node, why) for node in self.on_trunk)
            return
        if left:
            return
        rule = _Rule(self, place, compliant, p)
        try:
            yield rule.change(dropouts)
        except Refused as refused:
            refused.inactive = self.drops.all_off(dropouts, p)
            if not self.on_trunk:
                refused.code, refused.at = rule.fault(dropouts)
            yield refused
            yield from (left_on_trunk(self.drops, node, refused.detail) for node in self.on_trunk)

    def _compliant_place(self) -> CompliantPlace:
        """Return where the one dropout of the branch belongs.

        Raises:
            Refused: there is no such place.
        """
        end, branch = self.branch.end, self.branch
        if end.norms and branch.form == "residual":
            return EndOfBranch(branch)
        if end.norms:
            norm = name_of(end.norms[0])
            raise Refused(
                Reason.POST_ACTIVATION,
                f"the last norm ({norm}) comes after the last weight; the next one reads the layer",
            )
        if end.weight is None:
            detail = f"paths merge after the last weight, at {name_of(end.stopped_at)}"
            raise Refused(Reason.NO_SINGLE_LAST_WEIGHT, detail)
        if not branch.norms_before_last_weight:
            raise Refused(Reason.NO_NORM, "the branch has no norm before its last weight")
        if facts(end.weight)["kind"] is Kind.ATTENTION:
            detail = f"the last weight is computed inside {name_of(end.weight)}, in one call"
            raise Refused(Reason.FUSED_ATTENTION, detail)
        return BeforeWeight(branch, end.weight)


class _Rule:
    def __init__(self, subject: InBranch, place: Place[Any], compliant: CompliantPlace, p: float | None) -> None:
        self.drops, self.branch, self.on_trunk = subject.drops, subject.branch, subject.on_trunk
        self.place, self.compliant, self.p = place, compliant, p
        self.moves, self.interference = Moves(place, subject.drops), place.interference

    def change(self, dropouts: list[fx.Node]) -> Change:
        """Keep one of ``dropouts`` at the compliant place, or insert one there if a rate is given.

        Raises:
            Refused: there is nothing to do, or the edit is not possible.
        """
        drops, compliant = self.drops, self.compliant
        if not dropouts:
            if not self.p:
                raise Refused(
                    Reason.NOTHING_TO_MOVE,
                    f"compliant place {compliant.where}; give p= to use it (the paper's rate is 0.2)",
                )
            self.interference.refuse_other_readers([compliant.node], self._joins(), BECOMES_RANDOM)
            compliant.insert(self.moves, self.p)
            setting, rates = self.moves.inserted()
            return Change(f"insert dropout {compliant.where}", compliant.why, setting, rates=rates)
        at_place = next((node for node in dropouts if compliant.holds(drops.flow, node)), None)
        kept = max(dropouts, key=lambda n: (drops.rate(n), n is at_place, dropouts.index(n)))
        others = [node for node in dropouts if node is not kept]
        switched_on = drops.switches_on(kept, self.p)
        if kept is at_place and not others and not switched_on:
            where = "at the end of the branch" if compliant.node is kept else compliant.where
            detail = f"{name_of(kept)}{drops.kind_of(kept)} is where it belongs, {where}"
            raise Refused(Reason.ALREADY_DONE, detail)
        self._refuse_interference(dropouts, kept, kept is not at_place)
        self.moves.switch_on(kept, self.p)
        if kept is not at_place:
            compliant.move(self.moves, kept)
        for node in others:
            self.moves.remove(node)
        return Change(
            self._action(dropouts, kept, at_place=kept is at_place, switched_on=switched_on),
            f"{compliant.why}; {WORST}" if self._from_trunk(dropouts) else compliant.why,
            drops.rate_at(kept, self.p, "p"),
            "",
            self.moves.rates(dropouts, kept, self.p),
            *self.fault(dropouts),
        )

    def fault(self, dropouts: list[fx.Node]) -> tuple[str, fx.Node | None]:
        """Return the code of what is wrong with those that act, or else with all, and the first that is at fault."""
        acting = list(filter(self.drops.acts, dropouts)) or dropouts
        on_trunk = [node for node in acting if node in self.on_trunk]
        misplaced = [node for node in acting if not self.compliant.holds(self.drops.flow, node)]
        if on_trunk or misplaced:
            return ("RW0203", on_trunk[0]) if on_trunk else ("RW0201", misplaced[0])
        return ("RW0205", acting[0]) if len(acting) > 1 else ("", None)

    def _from_trunk(self, dropouts: list[fx.Node]) -> bool:
        return any(node in self.on_trunk and self.drops.acts(node) for node in dropouts)

    def _action(self, dropouts: list[fx.Node], kept: fx.Node, *, at_place: bool, switched_on: bool) -> str:
        names = names_apart(dropouts, self.place.path)
        names |= {node: f"{names[node]} from the trunk" for node in self.on_trunk}
        removed = [names[node] for node in dropouts if node is not kept]
        done = (
            f"keep {names[kept]}{self.drops.kind_of(kept)}"
            if at_place
            else f"move {names[kept]} {self.compliant.where}"
        )
        done += f" and set its rate to {self.p:g}" if switched_on else ""
        return done + (f", remove {', '.join(removed)}" if removed else "")

    def _refuse_interference(self, dropouts: list[fx.Node], kept: fx.Node, moved: bool) -> None:
        """Refuse a change that would affect anything but what reads the branch.

        Raises:
            Refused: dropouts act on parallel paths or are of different kinds; another operation reads a value that
                changes, or writes to the result of a dropout that is removed.
        """
        others, flow, target = self.interference, self.drops.flow, self.compliant.node
        removed = [node for node in dropouts if node is not kept]
        gone = dropouts if moved else removed
        others.refuse_parallel(dropouts)
        self.drops.refuse_other_kinds(kept, moved, removed)
        if moved and kept not in self.on_trunk and flow.is_ancestor(kept, target):
            others.refuse_detour(kept, self.branch.fork, target)
            others.refuse_other_readers([kept], [target], NO_LONGER_DROPPED)
        elif moved:
            others.refuse_other_readers([target], [kept, *self._joins()], BECOMES_RANDOM)
        others.refuse_other_readers(set(gone) - set(self.on_trunk), self._joins(), NO_LONGER_DROPPED)
        for node in set(gone).intersection(self.on_trunk):
            inside = [user for user in flow.users(node) if user is not flow.output]
            others.refuse_other_readers([node], inside, NO_LONGER_DROPPED)
        others.refuse_writes(gone)

    def _joins(self) -> list[fx.Node]:
        """Return where the branch is read: for a dense layer, all concatenations that follow."""
        if self.branch.form == "residual":
            return [*self.branch.readers, *self._joins_of_dense_layer()]
        return list(self.drops.flow.nodes(Kind.CONCAT))

    def _joins_of_dense_layer(self) -> list[fx.Node]:
        """Return where the rest of the last weight's output is appended, if one weight ends both paths (dual path)."""
        branches = find_branches(self.drops.flow, self.drops.model)
        return [b.join for b in branches if b.form == "dense" and b.end.weight is self.branch.end.weight]


def _dense_path(branch: Branch) -> str:
    owner: Owner = (branch.end.weight or branch.join).meta["owner"]
    return owner.path

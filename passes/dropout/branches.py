"""The rule for residual branches and dense layers: one dropout, before the last weight or at the end of the branch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from rewriter.analysis.naming import name_of, names_apart, path_of
from rewriter.analysis.residual import Branch, find_branches
from rewriter.analysis.weights import has_weight
from rewriter.edit.edits import Edit
from rewriter.guideline.base import Rate, Site, Skipped
from rewriter.passes.dropout.drops import BECOMES_RANDOM, KEPT_ON_ATTENTION, NO_LONGER_DROPPED, Drops
from rewriter.passes.dropout.places import BeforeWeight, EndOfBranch, Place
from rewriter.passes.dropout.trunk import WORST, find_on_trunk
from rewriter.reasons import Reason, Refused
from rewriter.tracing.frames import Owner
from rewriter.tracing.kinds import Kind


def find_in_branches(drops: Drops, p: float | None) -> Iterator[Site | Skipped]:
    """A site or a reason for every branch with a weight. A dropout belongs to the innermost branch around it."""
    flow = drops.flow
    branches = [b for b in find_branches(flow, drops.model) if any(has_weight(node, flow) for node in b.nodes)]
    on_trunk = find_on_trunk(drops, branches)
    findings = {
        b: list(_Rule(drops, b, p, on_trunk.of(b)).apply()) for b in sorted(branches, key=lambda b: len(b.nodes))
    }
    for branch in branches:
        yield from findings[branch]
    yield from on_trunk.left(drops)


class _Rule:
    def __init__(self, drops: Drops, branch: Branch, p: float | None, on_trunk: list[fx.Node]) -> None:
        self.drops, self.branch, self.p, self.on_trunk = drops, branch, p, on_trunk
        self.pattern = "residual branch" if branch.form == "residual" else "dense layer"
        self.path = branch.join.meta["owner"].path if branch.form == "residual" else _dense_path(branch)

    def apply(self) -> Iterator[Site | Skipped]:
        claimed = self.drops.claim(self.branch.nodes)
        for node in claimed:
            if self.drops.on_attention(node):
                yield self._skipped(Reason.ATTENTION_DROPOUT, KEPT_ON_ATTENTION, path_of(node))
        dropouts = [node for node in claimed if not self.drops.on_attention(node)]
        dropouts += self.drops.claim(set(self.on_trunk))
        left = self.drops.left_as_it_is(dropouts, self.pattern)
        yield from left
        place = self._place()
        if left and not isinstance(place, Skipped):
            return
        if isinstance(place, Skipped):
            yield place
            yield from self._left_on_trunk(
                f"{self.pattern} {self.path or '(root)'} has no place for it: {place.detail}"
            )
            return
        try:
            yield self._decide(dropouts, place)
        except Refused as refused:
            yield self._skipped(refused.reason, refused.detail)
            yield from self._left_on_trunk(refused.detail)

    def _left_on_trunk(self, why: str) -> Iterator[Skipped]:
        for node in self.on_trunk:
            yield Skipped(self.drops.name, path_of(node), "trunk", Reason.ON_TRUNK, f"{WORST}. It is left here: {why}")

    def _place(self) -> Place | Skipped:
        end, branch = self.branch.end, self.branch
        if end.norms and branch.form == "residual":
            return EndOfBranch(branch)
        if end.norms:
            norm = name_of(end.norms[0])
            return self._skipped(
                Reason.POST_ACTIVATION,
                f"the last norm ({norm}) comes after the last weight; the next one reads the layer",
            )
        if end.weight is None:
            detail = f"paths merge after the last weight, at {name_of(end.stopped_at)}"
            return self._skipped(Reason.NO_SINGLE_LAST_WEIGHT, detail)
        if not branch.norms_before_last_weight:
            return self._skipped(Reason.NO_NORM, "the branch has no norm before its last weight")
        if end.weight.meta["kind"] is Kind.ATTENTION:
            detail = f"the last weight is computed inside {name_of(end.weight)}, in one call"
            return self._skipped(Reason.FUSED_ATTENTION, detail)
        return BeforeWeight(branch, end.weight)

    def _decide(self, dropouts: list[fx.Node], place: Place) -> Site | Skipped:
        drops = self.drops
        if not dropouts:
            if not self.p:
                return self._skipped(
                    Reason.NOTHING_TO_MOVE,
                    f"compliant place {place.where}; give p= to use it (the paper's rate is 0.2)",
                )
            drops.interference.refuse_other_readers([place.node], self._joins(), BECOMES_RANDOM)
            edits = place.insert(drops, self.p)
            action, rate_at = f"insert dropout {place.where}", drops.inserted_rate_at(edits)
            return self._site(action, place.why, edits, rate_at, drops.inserted_rates(edits))
        at_place = next((node for node in dropouts if place.holds(drops, node)), None)
        kept = max(dropouts, key=lambda n: (drops.rate(n), n is at_place, dropouts.index(n)))
        others = [node for node in dropouts if node is not kept]
        switched_on = drops.switch_on(kept, self.p)
        if kept is at_place and not others and not switched_on:
            detail = f"{name_of(kept)}{drops.kind_of(kept)} is where it belongs, {place.where}"
            return self._skipped(Reason.ALREADY_DONE, detail)
        self._refuse_interference(dropouts, kept, kept is not at_place, place)
        edits = [*switched_on, *([] if kept is at_place else place.move(drops, kept))]
        for node in others:
            edits += drops.remove(node)
        return self._site(
            self._action(dropouts, kept, place, at_place=kept is at_place, switched_on=bool(switched_on)),
            f"{place.why}; {WORST}" if self._from_trunk(dropouts) else place.why,
            edits,
            drops.rate_at(kept, self.p),
            drops.rates(dropouts, kept, self.p),
        )

    def _from_trunk(self, dropouts: list[fx.Node]) -> bool:
        return not set(dropouts).isdisjoint(self.on_trunk)

    def _action(
        self, dropouts: list[fx.Node], kept: fx.Node, place: Place, *, at_place: bool, switched_on: bool
    ) -> str:
        names = names_apart(dropouts, self.path)
        names |= {node: f"{names[node]} from the trunk" for node in self.on_trunk}
        removed = [names[node] for node in dropouts if node is not kept]
        done = f"keep {names[kept]}{self.drops.kind_of(kept)}" if at_place else f"move {names[kept]} {place.where}"
        done += f" and set its rate to {self.p:g}" if switched_on else ""
        return done + (f", remove {', '.join(removed)}" if removed else "")

    def _refuse_interference(self, dropouts: list[fx.Node], kept: fx.Node, moved: bool, place: Place) -> None:
        """Refuse where the change would reach others than the reader of the branch.

        Raises:
            Refused: dropouts act on parallel paths or are of different kinds; somebody reads a value that changes, or
                writes to the result of a dropout that goes.
        """
        others, flow = self.drops.interference, self.drops.flow
        removed = [node for node in dropouts if node is not kept]
        gone = dropouts if moved else removed
        others.refuse_parallel(dropouts)
        self.drops.refuse_other_kinds(kept, moved, removed)
        if moved and kept not in self.on_trunk and flow.is_ancestor(kept, place.node):
            others.refuse_detour(kept, self.branch.fork, place.node)
            others.refuse_other_readers([kept], [place.node], NO_LONGER_DROPPED)
        elif moved:
            others.refuse_other_readers([place.node], [kept, *self._joins()], BECOMES_RANDOM)
        others.refuse_other_readers(set(gone) - set(self.on_trunk), self._joins(), NO_LONGER_DROPPED)
        for node in set(gone).intersection(self.on_trunk):
            inside = [user for user in flow.users(node) if user is not flow.output]
            others.refuse_other_readers([node], inside, NO_LONGER_DROPPED)
        others.refuse_writes(gone)

    def _joins(self) -> list[fx.Node]:
        """Where the branch is read: of a dense layer by all concatenations that follow."""
        if self.branch.form == "residual":
            return [*self.branch.readers, *self._joins_of_dense_layer()]
        return list(self.drops.flow.nodes(Kind.CONCAT))

    def _joins_of_dense_layer(self) -> list[fx.Node]:
        """Where the rest of what the last weight computes is appended: one weight that ends both (dual path)."""
        branches = find_branches(self.drops.flow, self.drops.model)
        return [b.join for b in branches if b.form == "dense" and b.end.weight is self.branch.end.weight]

    def _site(self, action: str, reason: str, edits: list[Edit], rate_at: str, rates: tuple[Rate, ...]) -> Site:
        return Site(self.drops.name, self.path, self.pattern, action, reason, tuple(edits), rate_at, rates=rates)

    def _skipped(self, reason: Reason, detail: str, path: str | None = None) -> Skipped:
        return Skipped(self.drops.name, self.path if path is None else path, self.pattern, reason, detail)


def _dense_path(branch: Branch) -> str:
    owner: Owner = (branch.end.weight or branch.join).meta["owner"]
    return owner.path

"""The rule for residual branches and dense layers: one dropout, directly before the last weight."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from passes.dropout.drops import BECOMES_RANDOM, KEPT_ON_ATTENTION, NO_LONGER_DROPPED, Drops
from rewriter.analysis.naming import name_of, names_apart, path_of
from rewriter.analysis.residual import Branch, find_branches
from rewriter.analysis.weights import has_weight
from rewriter.edit.edits import Edit
from rewriter.guideline import Rate, Site, Skipped
from rewriter.reasons import Reason, Refused
from rewriter.tracing.frames import Owner
from rewriter.tracing.kinds import Kind


def find_in_branches(drops: Drops, p: float | None) -> Iterator[Site | Skipped]:
    """A site or a reason for every branch with a weight. A dropout belongs to the innermost branch around it."""
    flow = drops.flow
    branches = [b for b in find_branches(flow, drops.model) if any(has_weight(node, flow) for node in b.nodes)]
    findings = {b: list(_Rule(drops, b, p).apply()) for b in sorted(branches, key=lambda b: len(b.nodes))}
    for branch in branches:
        yield from findings[branch]


class _Rule:
    def __init__(self, drops: Drops, branch: Branch, p: float | None) -> None:
        self.drops, self.branch, self.p = drops, branch, p
        self.pattern = "residual branch" if branch.form == "residual" else "dense layer"
        self.path = branch.join.meta["owner"].path if branch.form == "residual" else _dense_path(branch)

    def apply(self) -> Iterator[Site | Skipped]:
        claimed = self.drops.claim(self.branch.nodes)
        for node in claimed:
            if self.drops.on_attention(node):
                yield self._skipped(Reason.ATTENTION_DROPOUT, KEPT_ON_ATTENTION, path_of(node))
        dropouts = [node for node in claimed if not self.drops.on_attention(node)]
        left = self.drops.left_as_it_is(dropouts, self.pattern)
        yield from left
        refusal = self._no_compliant_place()
        weight = self.branch.end.weight
        if left and refusal is None:
            return
        if refusal is not None or weight is None:
            yield refusal or self._skipped(Reason.NO_SINGLE_LAST_WEIGHT, "paths merge after the last weight")
            return
        try:
            yield self._decide(dropouts, weight, self.drops.flow.sources(weight)[0])
        except Refused as refused:
            yield self._skipped(refused.reason, refused.detail)

    def _no_compliant_place(self) -> Skipped | None:
        weight, norm = self.branch.end.weight, self.branch.norm_after_last_weight
        if weight is None:
            stopped = self.branch.end.stopped_at
            return self._skipped(
                Reason.NO_SINGLE_LAST_WEIGHT, f"paths merge after the last weight, at {name_of(stopped)}"
            )
        if norm is not None:
            return self._skipped(
                Reason.POST_ACTIVATION,
                f"the last norm ({name_of(norm)}) comes after the last weight ({name_of(weight)}): no compliant place",
            )
        if not self.branch.norms_before_last_weight:
            return self._skipped(Reason.NO_NORM, "the branch has no norm before its last weight")
        if weight.meta["kind"] is Kind.ATTENTION:
            return self._skipped(
                Reason.FUSED_ATTENTION, f"the last weight is computed inside {name_of(weight)}, in one call"
            )
        return None

    def _decide(self, dropouts: list[fx.Node], weight: fx.Node, operand: fx.Node) -> Site | Skipped:
        drops, reason = self.drops, f"{name_of(weight)} is the last weight, after the last norm of the branch"
        if not dropouts:
            if not self.p:
                return self._skipped(
                    Reason.NOTHING_TO_MOVE, f"compliant place before {name_of(weight)}; give p= to use it"
                )
            drops.interference.refuse_other_readers([weight], self._joins(), BECOMES_RANDOM)
            edits = drops.insert(self.p, weight, operand)
            action, rate_at = f"insert dropout before {name_of(weight)}", drops.inserted_rate_at(edits)
            return self._site(action, reason, edits, rate_at, drops.inserted_rates(edits))
        at_place = next((node for node in dropouts if drops.feeds_directly(node, operand)), None)
        kept = max(dropouts, key=lambda n: (drops.rate(n), n is at_place, dropouts.index(n)))
        others = [node for node in dropouts if node is not kept]
        switched_on = drops.switch_on(kept, self.p)
        if kept is at_place and not others and not switched_on:
            detail = f"{name_of(kept)}{drops.kind_of(kept)} is directly before {name_of(weight)}"
            return self._skipped(Reason.ALREADY_DONE, detail)
        self._refuse_interference(dropouts, kept, kept is not at_place, weight)
        edits = [*switched_on, *([] if kept is at_place else drops.move(kept, weight, operand))]
        for node in others:
            edits += drops.remove(node)
        names = names_apart(dropouts, self.path)
        action = (
            f"keep {names[kept]}{drops.kind_of(kept)}"
            if kept is at_place
            else f"move {names[kept]} before {name_of(weight)}"
        )
        action += f" and set its rate to {self.p:g}" if switched_on else ""
        action += f", remove {', '.join(names[node] for node in others)}" if others else ""
        return self._site(action, reason, edits, drops.rate_at(kept, self.p), drops.rates(dropouts, kept, self.p))

    def _refuse_interference(self, dropouts: list[fx.Node], kept: fx.Node, moved: bool, weight: fx.Node) -> None:
        """Refuse where the change would reach others than the reader of the branch.

        Raises:
            Refused: dropouts act on parallel paths or are of different kinds; somebody reads a value that changes, or
                writes to the result of a dropout that goes.
        """
        others = self.drops.interference
        removed = [node for node in dropouts if node is not kept]
        gone = dropouts if moved else removed
        others.refuse_parallel(dropouts)
        self.drops.refuse_other_kinds(kept, moved, removed)
        if moved and self.drops.flow.is_ancestor(kept, weight):
            others.refuse_detour(kept, self.branch.fork, weight)
            others.refuse_other_readers([kept], [weight], NO_LONGER_DROPPED)
        elif moved:
            others.refuse_other_readers([weight], [kept], BECOMES_RANDOM)
        others.refuse_other_readers(gone, self._joins(), NO_LONGER_DROPPED)
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

"""Dropouts on the trunk (P0): after a sum or before a block, where branch and shortcut both read them.

The worst place in the paper. A dropout belongs to the block whose method calls it; one between two blocks could belong
to either, and is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import fx

from rewriter.analysis.residual import Branch
from rewriter.analysis.weights import PASS_THROUGH
from rewriter.authoring import Reason, Refused
from rewriter.passes.dropout.drops import Drops
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind

WORST = (
    "on the trunk a dropout reaches all later blocks, the worst place in the paper: PreResNet-50 on CIFAR-10 93.66 % "
    "without and 84.25 % with it, PreResNet-110 on CIFAR-100 73.54 % and 18.35 %"
)


@dataclass
class OnTrunk:
    """The dropouts on the trunk.

    Attributes:
        of_branches: those that can only belong to one block.
        between: the others.
    """

    of_branches: dict[Branch, list[fx.Node]] = field(default_factory=dict)
    between: list[fx.Node] = field(default_factory=list)

    def of(self, branch: Branch) -> list[fx.Node]:
        """Return those that belong to the block of ``branch``."""
        return self.of_branches.get(branch, [])


def left_on_trunk(drops: Drops, node: fx.Node, why: str) -> Refused:
    """Return that the dropout is left where it is, and ``why``."""
    worst = WORST if drops.acts(node) else f"at its rate of 0 it does nothing; switched on, {WORST}"
    detail = f"{worst}. It is left here: {why}"
    return drops.left(Reason.ON_TRUNK, detail, node, pattern="trunk", code="RW0203")


def find_on_trunk(drops: Drops, nodes: Iterable[fx.Node], branches: list[Branch]) -> OnTrunk:
    """Return the ``nodes`` in no branch that are after a sum or before a block."""
    residual = [branch for branch in branches if branch.form == "residual"]
    inside = set[fx.Node]().union(*(branch.nodes for branch in branches))
    found = OnTrunk()
    for node in nodes:
        if node in inside or drops.on_attention(node):
            continue
        passed = set(drops.flow.back_through(node, _ON_TRUNK))
        behind = [branch for branch in residual if branch.join in passed]
        before = [branch for branch in residual if node in drops.flow.back_through(branch.fork, _ON_TRUNK)]
        own = [b for b in (*behind, *before) if facts(b.join)["owner"].path == facts(node)["owner"].path]
        if len(set(own)) == 1:
            found.of_branches.setdefault(own[0], []).append(node)
        elif behind:
            found.between.append(node)
    return found


_ON_TRUNK = PASS_THROUGH | {Kind.ACTIVATION, Kind.NORM, Kind.DROPOUT}
"""What passes the stream on, as a view of it or normalised."""

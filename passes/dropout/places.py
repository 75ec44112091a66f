"""The place in a residual branch where dropout belongs: before the last weight, or at the end of the branch."""

from __future__ import annotations

from typing import Protocol

from torch import fx

from rewriter.analysis.dropouts import is_stochastic_depth
from rewriter.analysis.naming import name_of
from rewriter.analysis.residual import Branch
from rewriter.analysis.weights import PASS_THROUGH
from rewriter.passes.dropout.moves import Moves
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind


class CompliantPlace(Protocol):
    """Where the one dropout of a branch acts.

    Attributes:
        where, why: in words, for reports.
        node: the operation beside it.
    """

    where: str
    why: str
    node: fx.Node

    def holds(self, flow: Dataflow, dropout: fx.Node) -> bool:
        """Whether ``dropout`` acts here."""

    def insert(self, moves: Moves, rate: float) -> None:
        """Put a new dropout here."""

    def move(self, moves: Moves, dropout: fx.Node) -> None:
        """Make ``dropout`` act here."""


class BeforeWeight:
    """Between the last norm and the last weight: P6, or before the activation of a pre-activation block, P5."""

    def __init__(self, branch: Branch, weight: fx.Node) -> None:
        self.node, self.operand = weight, branch.flow.sources(weight)[0]
        self.where = f"before {name_of(weight)}"
        self.why = f"{name_of(weight)} is the last weight, after the last norm of the branch"

    def holds(self, flow: Dataflow, dropout: fx.Node) -> bool:
        return dropout in flow.back_through(self.operand, _UNCHANGED)

    def insert(self, moves: Moves, rate: float) -> None:
        moves.insert_before(rate, self.node, self.operand)

    def move(self, moves: Moves, dropout: fx.Node) -> None:
        moves.move_before(dropout, self.node, self.operand)


class EndOfBranch:
    """After the last norm and any gate or scale, before stochastic depth and the sum."""

    def __init__(self, branch: Branch) -> None:
        self.join, self.operand, norm = branch.join, branch.operand, branch.end.norms[0]
        self.node = _before_stochastic_depth(branch)
        self.where = f"after {_name(self.node, branch)}"
        self.why = f"the last norm ({name_of(norm)}) comes after the last weight: the end of the branch is behind it"

    def holds(self, flow: Dataflow, dropout: fx.Node) -> bool:
        return dropout in flow.back_through(self.operand, _UNCHANGED | {Kind.MULTIPLY})

    def insert(self, moves: Moves, rate: float) -> None:
        moves.insert_after(rate, self.node, self.join)

    def move(self, moves: Moves, dropout: fx.Node) -> None:
        moves.move_after(dropout, self.node, self.join)


def _before_stochastic_depth(branch: Branch) -> fx.Node:
    """Return the end of the branch before stochastic depth, or before the identity that replaces it at rate 0."""
    flow, found, node = branch.flow, branch.operand, branch.operand
    while node is not branch.fork and len(flow.sources(node)) == 1:
        noise = is_stochastic_depth(node, flow) or (node is found and _does_nothing(node, branch))
        if not noise and facts(node)["kind"] not in PASS_THROUGH | {Kind.DROPOUT}:
            break
        node = flow.sources(node)[0]
        found = node if noise else found
    return found


def _does_nothing(node: fx.Node, branch: Branch) -> bool:
    """Whether ``node`` is a layer of the block itself that returns its input unchanged."""
    of_block = facts(node)["owner"].path == facts(branch.join)["owner"].path
    return node.op == "call_module" and facts(node)["kind"] is Kind.IDENTITY and of_block


def _name(node: fx.Node, branch: Branch) -> str:
    """Return the largest module below the block that returns the value of ``node``; else the operation itself."""
    block = facts(branch.join)["owner"].path
    below = f"{block}.".removeprefix(".")
    found = name_of(node)
    for call in facts(node)["call"].chain():
        if call.outputs != [node] or call.path == block or not call.path.startswith(below):
            break
        found = call.path.removeprefix(below)
    return found


_UNCHANGED = PASS_THROUGH | {Kind.ACTIVATION, Kind.DROPOUT}
"""What a mask commutes with: ReLU (proposition 1), and the paper counts P5 and P6 alike."""

"""Where each gamma acts: at the end of a residual branch, inside one, on a shortcut, or on the main path.

The innermost block around a norm decides. In a residual block the *last* norm is the one whose output reaches the sum
without passing another norm; gates (``x * gate(x)``) and attention weights do not count as such paths, so a norm that
only feeds them is inside the branch. A norm that feeds both branch and shortcut (the first norm of a pre-activation
block with a projection) is on the main path, and so is one after the sum (post-norm transformers).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx, nn

from rewriter.analysis.carrying import carried, carrying, handed_on
from rewriter.analysis.gamma_positions import Category, GammaPosition
from rewriter.analysis.naming import path_of
from rewriter.analysis.norms import Norm, find_norms, parameter_role
from rewriter.analysis.residual import Branch, find_branches, find_long_skips
from rewriter.analysis.weights import PASS_THROUGH, find_features
from rewriter.renamed import forward_names
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, is_norm
from rewriter.tracing.trace import Trace


@dataclass(frozen=True)
class Gamma:
    """The scale of a norm.

    Attributes:
        name: the parameter's name in the model; None for a norm without one (``affine=False``, a frozen buffer).
        path: the module that holds it.
        position: where the norm acts.
        uses: number of places in which it acts; if they disagree, the most cautious category wins.
    """

    name: str | None
    path: str
    position: GammaPosition
    uses: int = 1

    @property
    def category(self) -> Category:
        """The category of its position."""
        return self.position.category


def find_gammas(trace: Trace) -> list[Gamma]:
    """Every norm's gamma once, in execution order of the norms, followed by those of norms that ran in neither mode.

    If a norm ran in training, its positions there count, otherwise those in evaluation mode.
    """
    names = canonical_names(trace.model)
    places: dict[tuple[str | None, str], list[GammaPosition]] = {}
    for recording in (trace.train, trace.eval):
        found: dict[tuple[str | None, str], list[GammaPosition]] = {}
        for norm, position in _positions(recording.dataflow, trace.model):
            for name in dict.fromkeys(names[gamma] for gamma in norm.gammas) or (None,):
                path = _holder(name) if name is not None else path_of(norm.node)
                found.setdefault((name, path), []).append(position)
        for key, positions in found.items():
            places.setdefault(key, positions)
    for name in _unseen(trace.model, names):
        places.setdefault((name, _holder(name)), [GammaPosition.UNSEEN])
    order = list(Category)
    return [
        Gamma(name, path, min(positions, key=lambda p: order.index(p.category)), len(positions))
        for (name, path), positions in places.items()
    ]


def canonical_names(model: nn.Module) -> dict[str, str]:
    """Map each name of a parameter to its first name; shared parameters have several."""
    first = {id(parameter): name for name, parameter in model.named_parameters()}
    return {name: first[id(parameter)] for name, parameter in model.named_parameters(remove_duplicate=False)}


def _holder(name: str) -> str:
    """Path of the module that holds the parameter, without the modules of a parametrization."""
    parts = name.split(".")
    return ".".join(parts[: parts.index("parametrizations")] if "parametrizations" in parts else parts[:-1])


def _unseen(model: nn.Module, names: dict[str, str]) -> list[str]:
    """Gammas of all norm modules; for most of them, which ran, the graph gives a better position."""
    return [
        names[f"{path}.{name}".lstrip(".")]
        for path, module in model.named_modules()
        if is_norm(module)
        for name, _ in module.named_parameters()
        if parameter_role(name) == "weight"
    ]


@once
def _positions(flow: Dataflow, model: nn.Module) -> list[tuple[Norm, GammaPosition]]:
    norms = find_norms(flow, model)
    applied = {norm.node for norm in norms}
    branches = [branch for branch in find_branches(flow, model) if not _of_other_channels(branch)]
    joins = {branch.join for branch in branches}
    blocks = sorted(((_shortcut(b, joins), b) for b in branches), key=lambda item: len(item[0]) + len(item[1].nodes))
    decided: dict[fx.Node, GammaPosition] = {}
    for shortcut, branch in blocks:
        last = _last(branch, applied) if branch.form == "residual" else set()
        gate = branch.nodes - carried(flow, branch.operand, branch.nodes, model)
        for node in applied & (branch.nodes | shortcut):
            if node in decided or (node in shortcut and node in branch.nodes):  # both read it: the block around them
                continue
            if node in shortcut:
                decided[node] = GammaPosition.SHORTCUT
            elif branch.form == "dense":
                decided[node] = GammaPosition.DENSE
            elif node in last:
                decided[node] = GammaPosition.LAST
            else:
                decided[node] = GammaPosition.GATE if node in gate else GammaPosition.INSIDE
    for skip in find_long_skips(flow, model):
        decided |= dict.fromkeys((applied & _shortcut(skip, joins)) - decided.keys(), GammaPosition.SHORTCUT)
    dense = [branch for branch in branches if branch.form == "dense"]
    inside = set[fx.Node]().union(*(branch.nodes for branch in branches))
    return [
        (norm, decided.get(norm.node) or _outside(norm.node, flow, model, dense=dense, inside=inside)) for norm in norms
    ]


def _outside(
    node: fx.Node, flow: Dataflow, model: nn.Module, *, dense: list[Branch], inside: set[fx.Node]
) -> GammaPosition:
    if node not in flow:
        joined = _joined_by(node, flow)
        return GammaPosition.GATE if joined and joined <= inside - _handed_on(flow, model) else GammaPosition.CONSTANT
    if node not in _handed_on(flow, model) and flow.output in flow.reachable(node):
        return GammaPosition.GATE
    behind = any(flow.dominates(branch.join, node) for branch in dense)
    before = any(flow.dominates(node, branch.fork) for branch in dense)
    return GammaPosition.TRANSITION if behind and before else GammaPosition.MAIN


def _joined_by(node: fx.Node, flow: Dataflow) -> set[fx.Node]:
    """Where input data first meets what is computed from ``node``, which depends on none."""
    found: set[fx.Node] = set()
    pending = list(node.users)
    while pending:
        user = pending.pop()
        if user in flow:
            found.add(user)
        else:
            pending += user.users
    return found


@once
def _handed_on(flow: Dataflow, model: nn.Module) -> set[fx.Node]:
    """What reaches an output other than through a gate or as attention weights.

    Factors of the image itself do not count as gates: they are the network's whole output.
    """
    features = find_features(flow)
    found: set[fx.Node] = set()
    pending = [flow.output]
    while pending:
        node = pending.pop()
        if node in found:
            continue
        found.add(node)
        on = carrying(flow, node, model)
        pending += handed_on(flow, node, on if features.issuperset(on) else flow.sources(node))
    return found


def _shortcut(branch: Branch, joins: set[fx.Node]) -> set[fx.Node]:
    """The operations on the shortcut; none if it is an earlier sum with the same fork: ``x + f(x) + g(x)``."""
    node, flow = branch.shortcut, branch.flow
    while node is not branch.fork and facts(node)["kind"] in PASS_THROUGH and len(flow.sources(node)) == 1:
        node = flow.sources(node)[0]
    return set() if node in joins or node is branch.fork else flow.region(branch.fork, branch.shortcut)


def _last(branch: Branch, norms: set[fx.Node]) -> set[fx.Node]:
    """The norms whose output reaches the end of the branch without passing another norm."""
    found: set[fx.Node] = set()
    pending, seen = [branch.operand], set()
    while pending:
        node = pending.pop()
        if node in seen or node not in branch.nodes:
            continue
        seen.add(node)
        if node in norms:
            found.add(node)
        else:
            pending += carrying(branch.flow, node, branch.model)
    return found


def _of_other_channels(branch: Branch) -> bool:
    """Whether the sum adds another part of a split tensor than the branch read (Res2Net), so nothing is skipped."""
    if branch.form == "dense":
        return False
    node, flow = branch.shortcut, branch.flow
    while node is not branch.fork and len(flow.sources(node)) == 1:
        source = flow.sources(node)[0]
        if facts(node)["kind"] is Kind.SELECT:
            others = [user for user in flow.users(source) if user in branch.nodes]
            return bool(others) and all(facts(user)["kind"] is Kind.SELECT and not _same(user, node) for user in others)
        node = source
    return False


def _same(one: fx.Node, other: fx.Node) -> bool:
    """Whether two operations select the same part of the same tensor."""
    return one is other or (one.target, one.args, one.kwargs) == (other.target, other.args, other.kwargs)


__getattr__ = forward_names(__name__, {"Position": "GammaPosition"})

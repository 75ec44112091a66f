"""The rule for heads: dropout before global average pooling, not after it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx
from torch.nn.modules.batchnorm import _BatchNorm

from rewriter.analysis.heads import Head, find_heads, missing_heads, noise_claim
from rewriter.analysis.naming import name_of, names_apart, path_of
from rewriter.analysis.residual import Branch, find_branches
from rewriter.guideline.base import Site, Skipped
from rewriter.passes.dropout.drops import BECOMES_RANDOM, NO_LONGER_DROPPED, Drops
from rewriter.reasons import Reason, Refused
from rewriter.tracing.kinds import Kind, function_name

PATTERN = "head"
WHY = "the pooling averages the noise of a mask on the feature map; a mask on pooled features stays"


def find_in_heads(drops: Drops, p: float | None) -> Iterator[Site | Skipped]:
    """A site or a reason for every pooled head, and for a dropout before a classifier without one."""
    heads = find_heads(drops.flow, drops.model)
    branches = find_branches(drops.flow, drops.model)
    for head in heads:
        behind = {head.pool, *head.after, *head.weights, *head.later}
        blocks = [branch for branch in branches if branch.fork in behind and not branch.has_projection]
        yield from _one_head(drops, head, _nodes(blocks), p)
    if not heads:
        yield from _without_average_pooling(drops, _nodes(branches))


def _nodes(branches: list[Branch]) -> set[fx.Node]:
    return {node for branch in branches for node in branch.nodes}


def _one_head(drops: Drops, head: Head, in_branches: set[fx.Node], p: float | None) -> Iterator[Site | Skipped]:
    """The finding for one head; dropouts ``in_branches`` behind its pooling are left to the rule for branches."""
    path = head.pool.meta["owner"].path
    later = drops.claim(set(head.later) - in_branches)
    for node in later:
        if drops.on_predictions(node):
            yield _on_predictions(drops, node)
            continue
        detail = f"{name_of(head.classifier)} lies between the pooling and the dropout" if head.classifier else ""
        yield Skipped(drops.name, path_of(node), PATTERN, Reason.WEIGHT_BETWEEN, detail)
    before, after = drops.claim(set(head.before)), drops.claim(set(head.after) - in_branches)
    for node in list(after):
        if (norm := _batch_norm_before(drops, head, node)) is not None:
            after.remove(node)
            detail = f"before the pooling it would shift the statistics of {name_of(norm)}, which lies between them"
            yield Skipped(drops.name, path_of(node), PATTERN, Reason.NORM_BETWEEN, detail)
            later.append(node)
    if left := drops.left_as_it_is([*before, *after], PATTERN):
        yield from left
        return
    try:
        if after:
            yield _clear_after_pooling(drops, head, before, after, p)
        elif before:
            yield _already_before_pooling(drops, head, before[-1], p)
        elif p and head.classifier is not None:
            yield _insert(drops, head, p)
        elif not later:
            option = "p" if p is None else "head_p"
            detail = (
                f"no dropout ran after {_where(head)} (a rate of 0 may hide it); give {option}= to insert one before it"
            )
            if head.classifier is None:
                detail = f"{_where(head)} is followed by no classifier"
            yield Skipped(drops.name, path, PATTERN, Reason.NOTHING_TO_MOVE, detail)
    except Refused as refused:
        yield Skipped(drops.name, path_of(after[0]) if after else path, PATTERN, refused.reason, refused.detail)


def _on_predictions(drops: Drops, node: fx.Node) -> Skipped:
    detail = (
        "no weight follows: it drops predictions, and a dropped logit makes a large loss of a right prediction "
        "(H6 and H7 in the paper)"
    )
    return Skipped(drops.name, path_of(node), PATTERN, Reason.ON_PREDICTIONS, detail)


def _batch_norm_before(drops: Drops, head: Head, node: fx.Node) -> fx.Node | None:
    """A norm with statistics of the batch between the pooling and a dropout behind it."""
    norms = [other for other in head.after if other.meta["kind"] is Kind.NORM and drops.flow.is_ancestor(other, node)]
    return next((norm for norm in norms if _uses_the_batch(drops, norm)), None)


def _uses_the_batch(drops: Drops, norm: fx.Node) -> bool:
    if norm.op == "call_module":
        return isinstance(drops.model.get_submodule(str(norm.target)), _BatchNorm)
    return function_name(norm.target) == "batch_norm"  # type: ignore[arg-type]


def _clear_after_pooling(
    drops: Drops, head: Head, before: list[fx.Node], after: list[fx.Node], p: float | None
) -> Site:
    """Move one dropout before the pooling, unless there is one, and remove the others."""
    kept = before[-1] if before else max(after, key=drops.rate)
    removed = [node for node in after if node is not kept]
    drops.interference.refuse_parallel([*before, *after], head.weights)
    drops.refuse_other_kinds(kept, not before, removed)
    if not before:
        drops.interference.refuse_other_readers([head.pool], after, BECOMES_RANDOM)
    if head.weights:
        drops.interference.refuse_other_readers(after, head.weights, NO_LONGER_DROPPED)
    drops.interference.refuse_writes(after)
    edits = [*drops.switch_on(kept, p), *([] if before else drops.move_before(kept, head.pool, head.source))]
    path = after[0].meta["owner"].path
    names = names_apart(after, path)
    actions = [] if before else [f"move {names[kept]} before {_where(head)}"]
    if drops.switch_on(kept, p):
        actions.append(f"set its rate to {p:g}")
    for node in removed:
        edits += drops.remove(node)
        actions.append(f"remove {names[node]}")
    return Site(
        drops.name,
        path,
        PATTERN,
        ", ".join(actions),
        WHY,
        tuple(edits),
        drops.rate_at(kept, p),
        _claim(drops, head, kept, p),
        drops.rates([*before, *after], kept, p),
    )


def _already_before_pooling(drops: Drops, head: Head, node: fx.Node, p: float | None) -> Site | Skipped:
    path, edits = node.meta["owner"].path, drops.switch_on(node, p)
    if edits:
        action = f"set the rate of {name_of(node)} to {p:g}"
        rate_at, claim, rates = drops.rate_at(node, p), _claim(drops, head, node, p), drops.rates([node], node, p)
        return Site(drops.name, path, PATTERN, action, WHY, tuple(edits), rate_at, claim, rates)
    detail = f"{name_of(node)}{drops.kind_of(node)} is before {_where(head)}"
    return Skipped(drops.name, path, PATTERN, Reason.ALREADY_DONE, detail)


def _insert(drops: Drops, head: Head, p: float) -> Site:
    path, action = head.pool.meta["owner"].path, f"insert dropout before {_where(head)}"
    drops.interference.refuse_other_readers([head.pool], head.weights, BECOMES_RANDOM)
    edits = drops.insert_before(p, head.pool, head.source)
    rate_at, rates = drops.inserted_rate_at(edits), drops.inserted_rates(edits)
    return Site(drops.name, path, PATTERN, action, WHY, tuple(edits), rate_at, noise_claim(head.pool), rates)


def _claim(drops: Drops, head: Head, dropout: fx.Node, p: float | None) -> str:
    """A dropout that is switched off leaves the pooling free for others."""
    active = drops.rate(dropout) > 0 or drops.switch_on(dropout, p)
    return noise_claim(head.pool) if active else ""


def _where(head: Head) -> str:
    return str(head.pool.target) if head.pool.op == "call_module" else name_of(head.pool)


def _without_average_pooling(drops: Drops, in_branches: set[fx.Node]) -> Iterator[Skipped]:
    """Why a dropout in front of the outputs, and in no branch, has no pooling to go before."""
    for passed, reason, detail in missing_heads(drops.flow):
        for dropout in drops.claim(set(passed) - in_branches):
            if drops.on_predictions(dropout):
                yield _on_predictions(drops, dropout)
                continue
            yield Skipped(drops.name, path_of(dropout), PATTERN, reason, detail)

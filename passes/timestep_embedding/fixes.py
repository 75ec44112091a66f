"""Which embeddings a norm takes out, how much of them, and the two fixes."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from torch import fx

from rewriter.analysis.arguments import argument
from rewriter.analysis.naming import name_of, path_of
from rewriter.authoring import Change, Place, Reason, Refused
from rewriter.edit.edits import AddModule
from rewriter.passes.group_count.layers import GroupNormFunction
from rewriter.passes.timestep_embedding.embeddings import is_map
from rewriter.passes.timestep_embedding.layers import PositionalPlanes, PositionalSum
from rewriter.passes.timestep_embedding.loss import Loss, loss_of
from rewriter.passes.timestep_embedding.readers import Read, find_reads
from rewriter.tracing.dataflow import Dataflow
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind, is_in_place
from rewriter.tracing.trace import Trace


@dataclass(frozen=True, eq=False)
class Block:
    """Embeddings, and the norms that take them out.

    Attributes:
        reads: the embeddings: one, or all those that one group norm takes out.
        norm: the identity of that group norm, whose calls are decided together; None for all norms behind the one
            embedding.
        done: whether the embedding varies over space already.
    """

    reads: tuple[Read, ...] = ()
    norm: Hashable = None
    done: bool = False


def find_places(trace: Trace, fix: str) -> Iterator[Place[Block]]:
    """Yield every embedding that joins a map; for ``fix="groups"``, the group norms that take one out instead."""
    yield from _done(trace)
    own = (PositionalSum, PositionalPlanes)
    norms: dict[Hashable, list[tuple[fx.Node, Read]]] = {}
    for read in find_reads(trace, trace.train):
        if isinstance(trace.owner_of(read.joining.node), own):
            continue
        groups = [taker for taker in read.takers if taker.group is not None]
        if fix == "groups" and groups == list(read.takers) != [] and not read.keepers:
            for taker in groups:
                norms.setdefault(taker.identity, []).append((taker.norm, read))
        else:
            yield Place(trace, read.joining.node, _pattern(read), Block((read,)), path=_owner(read.joining.node))
    for identity, found in norms.items():
        norm, read = found[0]
        block = Block(tuple(dict.fromkeys(each for _, each in found)), identity)
        yield Place(trace, norm, _pattern(read), block, path=path_of(norm))


def _done(trace: Trace) -> Iterator[Place[Block]]:
    owners = {facts(node)["owner"].path: node for node in trace.operations(Kind.ADD)}
    for path, node in owners.items():
        if isinstance(trace.model.get_submodule(path), (PositionalSum, PositionalPlanes)):
            yield Place(trace, node, "timestep embedding", Block(done=True), path=path.rpartition(".")[0])


def _pattern(read: Read) -> str:
    joins = "timestep plane" if read.joining.concatenates else "timestep embedding"
    kinds = dict.fromkeys(taker.described for taker in read.takers)
    return f"{joins} → {' and '.join(kinds)}" if kinds else joins


def _owner(node: fx.Node) -> str:
    return str(facts(node)["owner"].path)


def mend(place: Place[Block], fix: str, keep: float) -> Change:
    """Mend what a norm takes out.

    Raises:
        Refused: it takes nothing out, or too little to matter; or the fix is not possible there.
    """
    block = place.subject
    if block.done:
        raise Refused(Reason.ALREADY_DONE, "the embedding varies over space")
    for read in block.reads:
        _refuse_what_is_kept(place.trace, read)
    takers = [(read, taker) for read in block.reads for taker in read.takers]
    losses = [loss_of(place.trace, *pair) for pair in takers if block.norm in (None, pair[1].identity)]
    worst = min(losses, key=lambda loss: loss.share)
    if worst.share >= keep:
        detail = f"{worst.told}, which keep {worst.share:.0%} of the time-awareness of a single group; {worst.how}"
        raise Refused("timestep-embedding/wide-groups", detail)
    try:
        return _set_groups(place, losses, keep) if fix == "groups" else _place_embedding(place, worst)
    except Refused as refused:
        raise Refused(refused.reason, refused.detail, code=worst.code, at=block.reads[0].joining.node) from None


def _refuse_what_is_kept(trace: Trace, read: Read) -> None:
    flow = trace.train.dataflow
    if not read.keepers:
        return
    keeper = name_of(read.keepers[0])
    if read.takers:
        detail = f"{keeper} reads the map before a norm takes the embedding out"
        raise Refused("timestep-embedding/read-elsewhere", detail)
    norm = next((node for node in _modulated(flow, read.joining.map) if facts(node)["kind"] is Kind.NORM), None)
    if norm is not None:
        detail = f"it shifts what {name_of(norm)} gives, so no norm takes it out before {keeper} reads it"
        raise Refused("timestep-embedding/adaptive-norm", detail)
    detail = f"{keeper} reads it, and no norm that takes it out comes before"
    raise Refused("timestep-embedding/no-norm-behind", detail)


def _modulated(flow: Dataflow, node: fx.Node) -> Iterator[fx.Node]:
    """``node`` and what it modulates: the maps behind products and sums with constants over space."""
    while True:
        yield node
        sources = [source for source in flow.sources(node) if is_map(source)]
        if facts(node)["kind"] not in _MODULATES or len(sources) != 1:
            return
        (node,) = sources


_MODULATES = (Kind.MULTIPLY, Kind.ADD, Kind.IDENTITY, Kind.DROPOUT, Kind.VIEW)


def _set_groups(place: Place[Block], losses: list[Loss], keep: float) -> Change:
    """Set the most groups that keep enough."""
    norm = losses[0].taker
    if norm.group is None or place.subject.norm is None:
        raise Refused("timestep-embedding/no-groups", f"{losses[0].told}; it has no groups, {_REMEDY}")
    call, worst = norm.group, min(losses, key=lambda loss: loss.share)
    enough = [n for n in worst.by_groups if all(loss.share_with(n) >= keep for loss in losses)]
    if not enough:
        detail = f"{name_of(norm.norm)} takes out what is the same in all channels with any number of groups"
        raise Refused("timestep-embedding/no-groups", f"{detail}; {_REMEDY}")
    groups = max(enough)
    if call.holder is not None:
        place.edit.set(call.holder, "num_groups", groups, all_calls=True)
    else:
        place.edit.redirect(call.norm, GroupNormFunction, name="group_norm", num_groups=groups)
    changed = f"time-awareness {worst.now:.2f} -> {worst.by_groups[groups]:.2f}"
    action = f"set num_groups {call.num_groups} -> {groups}, {changed}"
    reason = f"{worst.told}, which keep {worst.share:.0%} of the time-awareness of a single group; {worst.how}"
    return Change(action, reason, code=worst.code, at=worst.read.joining.node)


_REMEDY = "but fix='position' lets the embedding vary over space"


def _place_embedding(place: Place[Block], loss: Loss) -> Change:
    """Let the embedding vary over space."""
    joining = loss.read.joining
    node, shape = joining.node, facts(joining.node)["shape"]
    dimensions = len(shape) - 2
    if joining.concatenates:
        maps = list(argument(node, "tensors", 0))
        channels, index = facts(joining.embedding)["shape"][1], maps.index(joining.embedding)
        place.edit.wrap_argument(node, None, PositionalPlanes, channels=channels, dimensions=dimensions, index=index)
    else:
        if len(node.args) < 2:
            raise Refused(Reason.NOT_MOVABLE, f"{name_of(node)} gets what it adds by name")
        first, in_place = node.args[0] is not joining.embedding, is_in_place(node.target)  # type: ignore[arg-type]
        if in_place and not first:
            raise Refused(Reason.IN_PLACE, "the map is added to the embedding in place")
        place.edit.redirect(
            node, PositionalSum, channels=shape[1], dimensions=dimensions, first=first, in_place=in_place
        )
    changed = "" if loss.placed is None else f", time-awareness {loss.now:.2f} -> {loss.placed:.2f}"
    layer = next(f"{edit.path}.{edit.name}".lstrip(".") for edit in place.edits if isinstance(edit, AddModule))
    action = f"let the embedding vary over space where {name_of(node)} joins it to the map{changed}"
    return Change(action, f"{loss.told}; {loss.how}", f"{layer}.amplitude", code=loss.code, at=node)

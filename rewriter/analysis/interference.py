"""What else is affected when an operation is removed, or added at another place: readers, writers and aliases.

A pass moves, removes or inserts an operation for one reader: the classifier, the sum after a branch. Every value that
changes on the path to that reader must be read on that path only. And an operation that returns a new tensor must not
be removed if its result is written to in place: the write would then reach the memory of its input.

A dropout that is moved before a pooling::

    features ─ pool ─┬─ [dropout] ─ classifier
                     └─ returned, kept in an attribute, seen by a hook, read by a second head: would become random
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any

import networkx as nx
from torch import fx, nn

from rewriter.analysis import saved_tensors
from rewriter.analysis.naming import name_of, path_of
from rewriter.model.hooks import is_of, libraries_of
from rewriter.reasons import Reason, Refused
from rewriter.tracing.dataflow import Dataflow, once
from rewriter.tracing.facts import facts
from rewriter.tracing.kinds import Kind
from rewriter.tracing.trace import Recording, Trace


@once
def interference(flow: Dataflow, trace: Trace) -> Interference:
    """The interference analysis of the training run; all passes share one."""
    return Interference(trace.model, trace.train)


class Interference:
    """Finds out, for one recording, which changes would affect others."""

    def __init__(self, model: nn.Module, recording: Recording) -> None:
        self._model = model
        self._recording = recording
        self._flow = recording.dataflow
        self._nodes = list(recording.graph.nodes)

    def refuse_other_readers(self, changed: Iterable[fx.Node], goals: Iterable[fx.Node], effect: str) -> None:
        """Refuse if a changed value is read elsewhere than on the path to the ``goals``.

        Args:
            changed: operations whose results change first, and with them everything computed from those.
            goals: operations that the change is made for, or after which nothing changes.
            effect: what would happen to the value, completing the sentence "…, which would".

        Raises:
            Refused: such a value is returned, stored in an attribute, seen by a user's hook, or read by an operation on
                which something returned or stored depends.
        """
        found = next(self._other_readers(set(changed), set(goals)), None)
        if found is not None:
            raise Refused(Reason.OTHER_READERS, f"{found}, which would {effect}")

    def refuse_parallel(self, nodes: Sequence[fx.Node], weights: Sequence[fx.Node] = ()) -> None:
        """Refuse to merge ``nodes``, in execution order, into one unless they act one after the other.

        Two that never reach the same of the ``weights`` belong to different heads, and are allowed.

        Raises:
            Refused: two of them lie on different paths.
        """
        for first, second in itertools.combinations(nodes, 2):
            if self._flow.is_ancestor(first, second):
                continue
            read = [self._parameters_behind(node, weights) for node in (first, second)]
            if not weights or not read[0].isdisjoint(read[1]):
                raise Refused(
                    Reason.PARALLEL_DROPOUTS,
                    f"{_told_apart(first, second)} act on parallel paths, each with a mask of its own",
                )

    def _parameters_behind(self, node: fx.Node, weights: Sequence[fx.Node]) -> set[str]:
        """The layers and parameters of those ``weights`` that are the first to read ``node``."""
        found = self._reachable([node], stop=set(weights)).intersection(weights)
        constants = [source for weight in found for source in weight.all_input_nodes if source.op == "get_attr"]
        return {str(n.target) for n in (*constants, *(weight for weight in found if weight.op == "call_module"))}

    def refuse_detour(self, node: fx.Node, fork: fx.Node, goal: fx.Node) -> None:
        """Refuse to let ``node`` act at ``goal`` if data from ``fork`` also gets there around ``node``.

        Raises:
            Refused: it does.
        """
        if goal in self._reachable([fork], stop={node}):
            raise Refused(Reason.PARALLEL_DROPOUTS, f"{name_of(node)} acts on one of several paths to {name_of(goal)}")

    def refuse_writes(self, gone: Sequence[fx.Node]) -> None:
        """Refuse to replace operations by their inputs if memory would then be shared that was not.

        Raises:
            Refused: in training the result of one, or its input, is written to in place, while the other is read later,
                belongs to the caller, or is needed for the gradient.
        """
        fresh = [node for node in gone if facts(node)["storage"] not in (None, facts(_read(node))["storage"])]
        shared = nx.Graph((facts(_read(node))["storage"], facts(node)["storage"]) for node in fresh)
        for node in fresh:
            source, result = facts(_read(node))["storage"], facts(node)["storage"]
            apart = nx.restricted_view(shared, [], [(source, result)])
            sides = [nx.node_connected_component(apart, side) for side in (source, result)]
            for (written, other), value in zip((sides[::-1], sides), (_read(node), node), strict=True):
                found = self._conflict(written, other, node, set(gone))
                if found is not None:
                    raise Refused(
                        Reason.WRITTEN_IN_PLACE,
                        f"without {name_of(node)}, in training {name_of(found[0])} would write to "
                        f"the output of {name_of(value)}, {found[1]}",
                    )

    def refuse_entering(
        self, values: Sequence[fx.Node], consumer: fx.Node, inside: set[fx.Node], returned: Sequence[fx.Node]
    ) -> None:
        """Refuse to change the argument of a call for one operation inside it if the call does more with it.

        Args:
            values: the input of ``consumer`` and what it is a view of, up to the argument.
            consumer: the operation that the change is made for.
            inside: all operations inside the call.
            returned: the call's results, as far as known.

        Raises:
            Refused: the call reads the argument elsewhere, passes it on, or writes to it.
        """
        argument = values[-1]
        for value in values:
            for user in self._users(value):
                if user in inside and user is not consumer and user not in values and user in self._observed:
                    raise Refused(Reason.OTHER_READERS, f"{name_of(user)} reads it too, in the same call")
        if argument in returned:
            raise Refused(Reason.OTHER_READERS, f"the call that leads to {name_of(consumer)} also hands it on")
        writer = next((node for node in inside if facts(argument)["storage"] in facts(node)["writes"]), None)
        if writer is not None:
            raise Refused(Reason.WRITTEN_IN_PLACE, f"{name_of(writer)} writes to it, in the same call")

    def _other_readers(self, changed: set[fx.Node], goals: set[fx.Node]) -> Iterator[str]:
        """Describe the readers of changed values that are not on the path to ``goals``."""
        flow = self._flow
        if not changed:
            return
        reached = changed | self._reachable(changed, stop=goals)
        leading: set[fx.Node] = set()
        pending = list(goals)
        while pending:
            earlier = reached.intersection(flow.graph.predecessors(pending.pop())) - leading
            leading |= earlier
            pending += earlier
        between = (leading | changed) - goals
        for node in flow.in_order(between):
            for user in self._users(node):
                if user in self._observed and user not in between and user not in goals:
                    yield f"{self._described(user)} the output of {name_of(node)}"
        for node in flow.in_order(between.intersection(self._recording.kept)):
            attribute = self._recording.kept[node]
            where = f"in attribute {attribute!r}" if attribute else "after the forward"
            yield f"the model keeps the output of {name_of(node)} {where}"
        yield from self._hooks_that_see(between, goals)

    def _described(self, reader: fx.Node) -> str:
        """Describe a reader, looking through views, as subject and verb of a sentence."""
        while facts(reader)["kind"] in (Kind.VIEW, Kind.IDENTITY, Kind.SELECT):
            following = [user for user in self._users(reader) if user in self._observed]
            if not following:
                return "the model keeps a view of"
            reader = following[0]
        return "the model returns" if reader is self._flow.output else f"{name_of(reader)} reads"

    def _hooks_that_see(self, between: set[fx.Node], goals: set[fx.Node]) -> Iterator[str]:
        """The user's hooks on modules along the path that receive a changed value; not those on a goal."""
        for path, given in self._hooked_calls:
            seen = between.intersection(given)
            if seen and not any(goal.target == path for goal in goals):
                yield f"a forward hook on {path or '(root)'} sees the output of {name_of(self._flow.in_order(seen)[0])}"

    @cached_property
    def _hooked_calls(self) -> list[tuple[str, set[fx.Node | None]]]:
        """For every call of a module with the user's forward hooks: its path and the tensors that the hooks receive."""
        calls = [(call.path, call.arguments, call.outputs) for call in self._recording.calls]
        calls += [(str(n.target), tuple(n.all_input_nodes), [n]) for n in self._nodes if n.op == "call_module"]
        found = []
        for path, received, returned in calls:
            module = self._model.get_submodule(path)
            given: set[fx.Node | None] = set()
            if any(map(self._is_of_the_user, module._forward_pre_hooks.values())):
                given.update(received)
            if any(map(self._is_of_the_user, module._forward_hooks.values())):
                given.update(received, returned)
            if given:
                found.append((path, given))
        return found

    def _is_of_the_user(self, hook: Any) -> bool:
        """Whether a hook may do anything: torch's own do not read values, and those of the library were recorded."""
        torchs_own = type(hook).__module__.partition(".")[0] == "torch"  # an object, as for weight normalisation
        return not torchs_own and not is_of(hook, self._libraries | {"torch"})

    @cached_property
    def _libraries(self) -> frozenset[str | None]:
        return libraries_of(self._model)

    @cached_property
    def _observed(self) -> set[fx.Node]:
        """Operations on which something returned or stored depends."""
        found: set[fx.Node] = set()
        pending = [node for node in (self._flow.output, *self._recording.kept) if node in self._flow]
        while pending:
            node = pending.pop()
            if node not in found:
                found.add(node)
                pending += self._flow.graph.predecessors(node)
        return found

    def _users(self, node: fx.Node) -> list[fx.Node]:
        """Operations that read ``node`` itself, not what later overwrote it."""
        if node not in self._flow:  # what no input reaches
            return list(node.users)
        return [
            user
            for user in self._flow.users(node)
            if not any(writer is not node and self._flow.is_ancestor(node, writer) for writer in facts(user)["after"])
        ]

    def _reachable(self, nodes: Iterable[fx.Node], stop: set[fx.Node]) -> set[fx.Node]:
        """Everything computed from ``nodes``, without passing the operations in ``stop``."""
        found: set[fx.Node] = set()
        pending = [user for node in nodes for user in self._users(node)]
        while pending:
            node = pending.pop()
            if node not in found:
                found.add(node)
                if node not in stop:
                    pending += self._users(node)
        return found

    def _conflict(
        self, written: set[int], other: set[int], since: fx.Node, gone: set[fx.Node]
    ) -> tuple[fx.Node, str] | None:
        """The first write to ``written`` that must not reach the memory ``other``, and why not."""
        position = self._flow.position
        writers = [n for n in self._nodes if facts(n)["writes"] & written and position(n) > position(since)]
        holders = [node for node in self._nodes if facts(node)["storage"] in other]
        for writer in writers[:1]:
            for node in holders:
                if node.op in ("placeholder", "get_attr"):
                    return writer, "which is the model's input" if node.op == "placeholder" else "which is an attribute"
                if node in self._recording.kept:
                    return writer, "which the model keeps"
                if any(node in given for _, given in self._hooked_calls):
                    return writer, "which a forward hook sees"
                if saved_tensors.forbids_writes(node, self._model):
                    return writer, "which its gradient needs as it was"
                for reader in node.users:
                    is_view = facts(reader)["storage"] in other and reader not in writers
                    if is_view or reader in gone or (reader not in self._observed and reader is not writer):
                        continue
                    if reader is writer and facts(reader)["kind"] is Kind.ADD:
                        continue
                    if position(reader) > position(writer):
                        return writer, f"which {self._described(reader)}".replace(" reads", " reads later")
                    if saved_tensors.keeps_its_inputs(reader):
                        return writer, f"which {name_of(reader)} needs for its gradient"
        return None


def _told_apart(first: fx.Node, second: fx.Node) -> str:
    """Name two operations: by path if their names are equal, and as one that is called twice if it is one."""
    if first.target is second.target or first.target == second.target:
        return f"several calls of {name_of(first)}"
    names = [name_of(node) for node in (first, second)]
    return " and ".join(names if names[0] != names[1] else map(path_of, (first, second)))


def _read(node: fx.Node) -> fx.Node:
    """The first input of an operation."""
    return node.all_input_nodes[0]

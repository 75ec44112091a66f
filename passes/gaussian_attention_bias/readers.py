"""What else reads a bias than the attention that it is added in: it has to go on without the Gaussian."""

from __future__ import annotations

from torch import fx

from rewriter.authoring import Trace


def has_other_readers(bias: fx.Node, reader: fx.Node, trace: Trace) -> bool:
    """Whether ``bias``, or what is computed from it on the way to ``reader``, is used elsewhere in either mode.

    It is if the model returns or keeps it, or reads it in an operation that does not lead to ``reader`` and that
    something returned or kept depends on.
    """
    on_the_way = _leading_to(reader, trace)
    kept = trace.train.kept
    pending, seen = [bias], {bias}
    while pending:
        node = pending.pop()
        if node in kept:
            return True
        for user in node.users:
            if user is reader or user in seen:
                continue
            if user in on_the_way:
                seen.add(user)
                pending.append(user)
            elif _is_used(user, trace):
                return True
    return False


def _leading_to(reader: fx.Node, trace: Trace) -> set[fx.Node]:
    """What no input reaches and ``reader`` depends on."""
    flow, found = trace.train.dataflow, set[fx.Node]()
    pending = [reader]
    while pending:
        new = {node for node in pending.pop().all_input_nodes if node not in flow} - found
        found |= new
        pending += new
    return found


def _is_used(node: fx.Node, trace: Trace) -> bool:
    """Whether something that the model returns or keeps depends on ``node``."""
    pending, seen = [node], {node}
    while pending:
        current = pending.pop()
        if current.op == "output" or current in trace.train.kept:
            return True
        new = [user for user in current.users if user not in seen]
        seen.update(new)
        pending += new
    return False

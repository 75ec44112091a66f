"""Agreement between the processes of a distributed run before any of them changes a model.

They communicate through the store of ``torch.distributed``, not by a collective: if only one process makes the call, it
gets an error after a minute and does not hang.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from rewriter.errors import RewriterError
from rewriter.model.whole_state import whole_tensor

PATIENCE = timedelta(minutes=1)
"""How long a process waits for the others to reach the same call."""

PLANNING = timedelta(minutes=30)
"""How long the others wait while the first one plans."""

_calls: defaultdict[str, Iterator[int]] = defaultdict(itertools.count)
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextlib.contextmanager
def on_its_own() -> Iterator[None]:
    """Let this process act alone within the context: the others need not make the same calls."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


def several_ranks() -> bool:
    """Whether this process acts together with others of an initialised ``torch.distributed``."""
    distributed = torch.distributed
    together = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return together and not _alone.get()


def check_alike(call: str, own: str, difference: Callable[[str, str], str], remedy: str) -> None:
    """Refuse to proceed unless every process has the same value.

    Args:
        call: the call they all make, for the message.
        own: the value of this process.
        difference: takes the values of the first process and another one, and names their first difference.
        remedy: how to fix it.

    Raises:
        RewriterError: in all processes, naming the first one that differs or does not answer.
    """
    store, rank, key = _store(call)
    store.set(f"{key}/{rank}", zlib.compress(own.encode()))
    if rank == 0:
        verdict = _verdict(store, key, call, own, difference, remedy)
        store.set(f"{key}/verdict", verdict.encode())
    else:
        answer = _read(store, f"{key}/verdict", PATIENCE + PATIENCE / 6)  # after the first one has given up on others
        verdict = _absent(0, call) if answer is None else answer.decode()
    if verdict:
        raise RewriterError(verdict)


def from_first_rank(call: str, make: Callable[[], str]) -> str:
    """Return what ``make`` returns in the first process, in all processes.

    Raises:
        RewriterError: in all processes, if ``make`` raised; or the first process does not make the call.
    """
    store, rank, key = _store(call)
    if rank != 0:
        answer = _read(store, key, PLANNING)
        if answer is None:
            raise RewriterError(_absent(0, call))
        kind, text = answer[:1], zlib.decompress(answer[1:]).decode()
        if kind == b"!":
            raise RewriterError(f"rank 0: {text}")
        return text
    try:
        made = make()
    except BaseException as error:
        store.set(key, b"!" + zlib.compress(f"{type(error).__name__}: {error}".encode()))
        raise
    store.set(key, b"=" + zlib.compress(made.encode()))
    return made


def check_same_weights(model: nn.Module, call: str) -> None:
    """Refuse to proceed if the processes hold different parameters; does nothing in a single process.

    Raises:
        RewriterError: in all processes, naming the first parameter that differs, or an absent process.
    """
    if several_ranks():
        remedy = "Load the weights, or wrap with DDP, which hands on those of rank 0, before this call."
        told = [[name, list(tensor.shape), _sum_of_bits(tensor)] for name, tensor in model.named_parameters()]
        check_alike(call, json.dumps(told), _first_other_weight, remedy)


def _sum_of_bits(tensor: torch.Tensor) -> int:
    """Sum the values' bits as integers: exact, in whatever order they are added."""
    tensor = whole_tensor(tensor.detach())
    sizes = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(tensor.contiguous().view(sizes[tensor.element_size()]).sum(dtype=torch.int64)) if tensor.numel() else 0


def _first_other_weight(first: str, other: str) -> str:
    ours, theirs = json.loads(first), json.loads(other)
    for here, there in itertools.zip_longest(ours, theirs):
        if here != there:
            return f"parameter {(here or there)[0]} is another"
    return "its parameters are others"


def _store(call: str) -> tuple[Any, int, str]:
    """Return the store, the rank of this process, and a key for this very call."""
    store = torch.distributed.distributed_c10d._get_default_store()
    return store, torch.distributed.get_rank(), f"rewriter/{call}/{next(_calls[call])}"


def _verdict(store: Any, key: str, call: str, own: str, difference: Callable[[str, str], str], remedy: str) -> str:
    for rank in range(1, torch.distributed.get_world_size()):
        answer = _read(store, f"{key}/{rank}", PATIENCE)
        if answer is None:
            return _absent(rank, call)
        said = zlib.decompress(answer).decode()
        if said != own:
            return f"{call}: rank {rank} differs from rank 0: {difference(own, said)}. {remedy}"
    return ""


def _absent(rank: int, call: str) -> str:
    seconds = int(PATIENCE.total_seconds())
    return (
        f"rank {rank} did not call {call} within {seconds} seconds. Every process has to call it; one that is to go "
        "its own way gives all_ranks=False."
    )


def _read(store: Any, key: str, timeout: timedelta) -> bytes | None:
    """Return what a process wrote under ``key``; None if nothing arrives in time."""
    try:
        store.wait([key], timeout)
    except RuntimeError:  # includes torch's DistStoreError
        return None
    found: bytes = store.get(key)
    return found

"""The generators of a process (torch's, Python's and numpy's): saving, restoring and seeding them."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch


def random_state() -> tuple[Any, ...]:
    """The states of torch's, Python's and numpy's generators; those of GPUs too if they are in use."""
    numpy = sys.modules.get("numpy")
    cuda_used = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = torch.cuda.get_rng_state_all() if cuda_used else None
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None, devices


def set_random_state(state: tuple[Any, ...]) -> None:
    """Restore what :func:`random_state` returned."""
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    if state[2] is not None:
        sys.modules["numpy"].random.set_state(state[2])
    if state[3] is not None:
        torch.cuda.set_rng_state_all(state[3])


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch; but not an unused GPU, whose state could not be restored."""
    _seed_what_is_kept(seed)
    if not torch.cuda.is_available() or torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.manual_seed(seed)  # other devices too


def _seed_what_is_kept(seed: int) -> None:
    """Seed the generators whose states :func:`random_state` returns."""
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Preserve the states of torch's, Python's and numpy's generators."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextlib.contextmanager
def random_state_seeded(seed: int) -> Iterator[None]:
    """Like :func:`random_state_kept`, but the generators start from ``seed``.

    Several threads may do this at the same time: the last to leave restores what the first one found.
    """
    with _SEEDING:
        _found_before_seeding.append(_found_before_seeding[0] if _found_before_seeding else random_state())
        _seed_what_is_kept(seed)
    try:
        yield
    finally:
        with _SEEDING:
            state = _found_before_seeding.pop()
            if not _found_before_seeding:
                set_random_state(state)


_SEEDING = threading.Lock()
_found_before_seeding: list[Any] = []

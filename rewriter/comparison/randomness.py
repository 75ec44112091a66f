"""Random numbers of the data, apart from those of the model: both arms see the same batches, whatever they draw."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from rewriter.guard import random_state_kept

_MODEL, _EPOCH = 0x5EED, 1_000_003


def seed_all(seed: int) -> None:
    """Seed Python, numpy and torch."""
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)


def seed_of_model(seed: int) -> int:
    """The seed of the numbers that a model draws in training, of both arms alike."""
    return seed + _MODEL


def batches(loader: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """One pass over ``loader``, with order and augmentation that depend on ``seed`` and ``epoch`` alone.

    Between two batches the generators of the process belong to the model, and are as it left them.
    """
    with random_state_kept():
        seed_all(seed * _EPOCH + epoch)
        for generator in _generators(loader):
            generator.manual_seed(seed * _EPOCH + epoch)
        iterator = iter(loader)
        state = _state()
    while True:
        with random_state_kept():
            _set_state(state)
            try:
                batch = next(iterator)
            except StopIteration:
                return
            state = _state()
        yield batch


def _generators(loader: Any) -> list[torch.Generator]:
    """Generators of its own that a data loader may have."""
    holders = (
        loader,
        getattr(loader, "sampler", None),
        getattr(getattr(loader, "batch_sampler", None), "sampler", None),
    )
    found = [getattr(holder, "generator", None) for holder in holders]
    return [generator for generator in found if isinstance(generator, torch.Generator)]


def _state() -> tuple[Any, ...]:
    numpy = sys.modules.get("numpy")
    return torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None


def _set_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    if state[2] is not None:
        sys.modules["numpy"].random.set_state(state[2])

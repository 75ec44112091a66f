"""Random numbers of the data, apart from those of the model: both arms see the same batches, whatever they draw."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

from rewriter.model.random_state import random_state, random_state_kept, seed_all, set_random_state

_MODEL, _EPOCH = 0x5EED, 1_000_003
_HOLDERS = ("dataset", "sampler", "batch_sampler", "data_source")


def seed_of_model(seed: int) -> int:
    """The seed of the numbers that a model draws in training, of both arms alike."""
    return seed + _MODEL


def batches(loader: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """One pass over ``loader``, with order and augmentation that depend on ``seed`` and ``epoch`` alone.

    Between two batches the generators of the process belong to the model, and are as it left them. Generators that the
    loader has of its own are put back at the end.
    """
    own = _generators(loader)
    kept = [generator.get_state() for generator in own]
    try:
        with random_state_kept():
            seed_all(seed * _EPOCH + epoch)
            for generator in own:
                generator.manual_seed(seed * _EPOCH + epoch)
            iterator = iter(_with_new_workers(loader))
            state = random_state()
        while True:
            with random_state_kept():
                set_random_state(state)
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                state = random_state()
            yield batch
    finally:
        for generator, before in zip(own, kept, strict=True):
            generator.set_state(before)


def _with_new_workers(loader: Any) -> Any:
    """Workers that live on from epoch to epoch would go on with the random numbers of the other arm."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader
    again = copy.copy(loader)
    again._iterator = None
    return again


def _generators(loader: Any) -> list[torch.Generator]:
    """Generators of torch that a data loader has of its own: itself, in its samplers, or in data sets within others."""
    found: dict[int, torch.Generator] = {}
    seen: set[int] = set()
    waiting = [loader]
    while waiting:
        holder = waiting.pop()
        if holder is None or id(holder) in seen:
            continue
        seen.add(id(holder))
        if isinstance(generator := getattr(holder, "generator", None), torch.Generator):
            found[id(generator)] = generator
        waiting += [getattr(holder, name, None) for name in _HOLDERS]
        several = getattr(holder, "datasets", None)  # of torch.utils.data.ConcatDataset
        waiting += several if isinstance(several, (list, tuple)) else []
    return list(found.values())

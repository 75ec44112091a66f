"""Random numbers of the data, separate from the model's: both arms see the same batches, whatever they draw."""

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
    """Return the seed of the numbers that a model draws in training, the same for both arms."""
    return seed + _MODEL


def batches(loader: Iterable[Any], seed: int, epoch: int) -> Iterator[Any]:
    """Iterate once over ``loader``, with order and augmentation determined by ``seed`` and ``epoch`` alone.

    Between two batches, the process's generators belong to the model, and are as it left them. Generators owned by the
    loader are restored at the end.
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
    """Restart persistent workers, which would continue with the random numbers of the other arm."""
    if not isinstance(loader, DataLoader) or not loader.persistent_workers:
        return loader
    again = copy.copy(loader)
    again._iterator = None
    return again


def _generators(loader: Any) -> list[torch.Generator]:
    """Return the torch generators that a data loader owns: itself, in its samplers, or in nested data sets."""
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

"""Random generators held by a model, of torch, numpy or Python, and their states."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable
from typing import Any

import torch


def is_generator(value: Any) -> bool:
    """Whether numbers can be drawn from ``value``, which changes its state."""
    kind = type(value)
    if issubclass(kind, (torch.Generator, random.Random)):
        return not issubclass(kind, random.SystemRandom)
    numpy = sys.modules.get("numpy")
    return numpy is not None and issubclass(
        kind, (numpy.random.Generator, numpy.random.RandomState, numpy.random.BitGenerator)
    )


def way_back(generator: Any) -> Callable[[], None]:
    """A function that restores the present state of a generator."""
    if isinstance(generator, torch.Generator):
        kept = generator.get_state()
        return lambda: _set_torch(generator, kept)
    if isinstance(generator, random.Random):
        state = generator.getstate()
        return lambda: generator.setstate(state)
    if hasattr(generator, "set_state"):  # numpy's RandomState
        values = generator.get_state(legacy=False)
        return lambda: generator.set_state(values)
    bits = getattr(generator, "bit_generator", generator)
    before = copy.deepcopy(bits.state)
    return lambda: setattr(bits, "state", before)


def _set_torch(generator: torch.Generator, state: torch.Tensor) -> None:
    generator.set_state(state)

"""Caches of functions that outlive a trace.

A function under ``functools.lru_cache`` that a model calls (RT-DETR's position embeddings) keeps what it returned while
the model was traced. A meta tensor in the cache would be returned to the next run, and to the user's own model.
"""

from __future__ import annotations

import functools
import gc
from typing import Any

import torch

_CACHE = type(functools.lru_cache(lambda: None))


def forget_meta_tensors() -> None:
    """Clear every ``lru_cache`` that holds a meta tensor; its function then recomputes its results."""
    for cache in [found for found in gc.get_objects() if type(found) is _CACHE]:
        if any(isinstance(result, torch.Tensor) and result.is_meta for result in _results(cache)):
            cache.cache_clear()


def _results(cache: Any) -> list[Any]:
    """The results in a cache: a bounded one refers to them, an unbounded one to a dict of them."""
    held = gc.get_referents(cache)
    return [*held, *(value for item in held if type(item) is dict for value in item.values())]

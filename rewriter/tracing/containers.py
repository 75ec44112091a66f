"""Tensors in nested tuples, lists and dicts, as in arguments and results of functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in nested tuples, lists and dicts, at any depth; cycles are not followed."""
    ways, around = [iter((value,))], [0]
    while ways:
        for item in ways[-1]:
            if isinstance(item, torch.Tensor):
                yield item
            elif isinstance(item, (list, tuple, Mapping)) and id(item) not in around:
                ways.append(iter(item.values() if isinstance(item, Mapping) else item))
                around.append(id(item))
                break
        else:
            ways.pop()
            around.pop()


def map_tensors(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Apply ``change`` to every tensor in ``value`` (nested tuples, lists and dicts)."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [map_tensors(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if isinstance(value, Mapping):
        return {key: map_tensors(item, change) for key, item in value.items()}
    return value

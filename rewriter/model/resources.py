"""Resources of the process, which a model may use but does not own: they are neither copied nor restored."""

from __future__ import annotations

import logging
import random
import sys
from typing import Any

import torch

_PACKAGES = frozenset(
    {"_thread", "threading", "concurrent", "multiprocessing", "asyncio", "subprocess", "socket", "logging"}
)
_DEVICE_QUEUES = tuple(
    found for found in (getattr(torch, "Stream", None), getattr(torch, "Event", None)) if isinstance(found, type)
)


def is_resource(value: Any) -> bool:
    """Whether ``value`` is a thread, lock, executor, process, socket, log handler or device stream."""
    kind = type(value)
    return issubclass(kind, _DEVICE_QUEUES) or any(
        cls.__module__.partition(".")[0] in _PACKAGES for cls in kind.__mro__ if cls is not object
    )


def is_of_everybody(value: Any) -> bool:
    """Whether ``value`` is a logger, or one of the default generators of torch, Python and numpy."""
    if issubclass(type(value), logging.Logger):
        return True
    if type(value) is torch.Generator:
        return value is torch.default_generator or any(value is default for default in torch.cuda.default_generators)
    numpy = sys.modules.get("numpy")
    return value is getattr(random, "_inst", None) or (numpy is not None and value is numpy.random.mtrand._rand)

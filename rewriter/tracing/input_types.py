"""Types of the inputs that users give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

ExampleInputs: TypeAlias = torch.Tensor | tuple[Any, ...] | Mapping[str, Any] | list[torch.Tensor]
"""A tensor, a tuple of positional arguments, a dict of keyword arguments, or a list of tensors."""

InputSize: TypeAlias = int | Sequence[int]
"""Pixels: a number for height and width, ``(height, width)`` or ``(channels, height, width)``."""

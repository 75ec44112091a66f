"""Two timesteps to run a model at, each shared by the whole batch, made of the inputs that it was traced on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rewriter.tracing.containers import map_tensors, tensors_in
from rewriter.tracing.inputs import Inputs


@dataclass(frozen=True)
class Timesteps:
    """What a model is run on twice, and the two timesteps in words."""

    one: Inputs
    other: Inputs
    described: str


def two_timesteps(inputs: Inputs, names: Sequence[str]) -> Timesteps:
    """Give every sample the first value of the inputs of these names, and then another one.

    The other value is the last one in the batch that differs from the first. Where none does it is half of a number, 1
    for the number 0, and a vector's numbers in another order.
    """
    one, other = _with(inputs, names, _first), with_changed(inputs, names)
    return Timesteps(one, other, _described(names, one, other))


def with_changed(inputs: Inputs, names: Sequence[str]) -> Inputs:
    """The inputs with other values for those of these names."""
    return _with(inputs, names, _other)


def is_number(inputs: Inputs, name: str) -> bool:
    """Whether an input is a Python number."""
    return _is_number(_argument(inputs, name))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _described(names: Sequence[str], one: Inputs, other: Inputs) -> str:
    values: list[Any] = []
    for inputs in (one, other):
        for given in (_argument(inputs, name) for name in names):
            values += [given] if _is_number(given) else tensors_in(given)
    if len(values) == 2 and all(_is_number(value) or value.dim() < 2 for value in values):
        numbers = [value if _is_number(value) else value.flatten()[0].item() for value in values]
        return f"timesteps {numbers[0]:g} and {numbers[1]:g}"
    return f"two values of {' and '.join(names)}"


def _first(value: Any) -> Any:
    return value[:1].expand_as(value) if isinstance(value, torch.Tensor) and value.dim() else value


def _other(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        return _another(value)
    first = _first(value)
    differing = [row for row in value if not torch.equal(row, first[0])] if value.dim() else []
    if differing:
        return differing[-1].expand_as(value)
    if value.dtype is torch.bool:
        return ~first
    if value.dim() > 1:
        rolled = first.roll(1, -1)
        return first + 1 if torch.equal(rolled, first) else rolled
    return torch.full_like(value, _another(first.flatten()[0].item())) if value.numel() else value


def _another(number: float) -> float:
    if number == 0 or (number == 1 and isinstance(number, int)):
        return type(number)(1 - number)
    return number // 2 if isinstance(number, int) else number / 2


def _argument(inputs: Inputs, name: str) -> Any:
    index = _index(name)
    return inputs.args[index] if index is not None else inputs.kwargs[name]


def _with(inputs: Inputs, names: Sequence[str], change: Callable[[Any], Any]) -> Inputs:
    args, kwargs = list(inputs.args), dict(inputs.kwargs)
    for name in names:
        index, given = _index(name), _argument(inputs, name)
        changed = change(given) if _is_number(given) else map_tensors(given, change)
        if index is None:
            kwargs[name] = changed
        else:
            args[index] = changed
    return replace(inputs, args=tuple(args), kwargs=kwargs)


def _index(name: str) -> int | None:
    """The position of a positional input, which a recording names ``input_0``."""
    number = name.removeprefix("input_")
    return int(number) if number != name and number.isdigit() else None

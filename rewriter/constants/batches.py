"""The user's data, batch by batch, as arguments for the model."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rewriter.errors import CalibrationError
from rewriter.tracing.containers import tensors_in
from rewriter.tracing.inputs import Inputs, Origin

_IMAGE = 3
"""The minimum number of dimensions of an image; tensors with fewer are labels, tokens, lengths."""


class Batches:
    """Data that can be read several times.

    Args:
        model: the model the batches are for; tensors are moved to its device.
        batches: an iterable of batches (tensors, tuples, lists, dicts), or one tensor or dict.
        most: maximum number of batches to read; None for all.
        prepare: turns a batch into the model's arguments; None takes batches as they are.

    Raises:
        CalibrationError: ``batches`` is not iterable, ``most`` is not a positive number, or ``prepare``
            is not callable.
    """

    def __init__(
        self, model: nn.Module, batches: Any, most: int | None, prepare: Callable[[Any], Any] | None = None
    ) -> None:
        if most is not None and (type(most) is not int or most < 1):
            raise CalibrationError(f"max_batches: expected a positive int or None, found {most!r}")
        if prepare is not None and not callable(prepare):
            raise CalibrationError(
                f"prepare: expected a callable that takes a batch, or None, found {type(prepare).__name__}"
            )
        if isinstance(batches, (torch.Tensor, Mapping)):
            batches = [batches]
        if not isinstance(batches, Iterable):
            raise CalibrationError(
                f"batches: expected a data loader or another iterable of batches, found {type(batches).__name__}"
            )
        self._model, self._most, self._prepare = model, most, prepare
        self._one_shot = isinstance(batches, Iterator)
        self._source: Iterable[Any] = batches
        self._last_pass: int | None = None

    @property
    def length(self) -> int | None:
        """The number of batches per pass; None if it cannot be known."""
        length = getattr(self._source, "__len__", None)
        try:
            known = length() if length is not None else None
        except TypeError:  # a data loader over a stream
            known = None
        return self._most if known is None else known if self._most is None else min(known, self._most)

    def first(self) -> Inputs:
        """Return the first batch without consuming it.

        Raises:
            CalibrationError: there is none.
        """
        iterator = iter(self._source)
        for batch in iterator:
            if self._one_shot:
                self._source = itertools.chain([batch], iterator)
            return self._inputs(batch, 0)
        raise CalibrationError("there are no batches: the data are empty, or the iterator was read to its end before")

    def allow_passes(self, number: int) -> None:
        """Make sure that the data can be read ``number`` times.

        Raises:
            CalibrationError: they are an iterator, which can be read only once, and has no limit that would allow
                keeping its batches.
        """
        if number > 1 and self._one_shot:
            if self._most is None:
                raise CalibrationError(
                    f"the model's fusions are nested {number} deep, which takes {number} passes over the data, and an "
                    "iterator can be read once; give a data loader or a list, or max_batches= to keep so many batches"
                )
            self._source, self._one_shot = list(itertools.islice(self._source, self._most)), False

    def __iter__(self) -> Iterator[Inputs]:
        """Yield the batches of one pass.

        Raises:
            CalibrationError: it has no batches, or fewer than the previous pass.
        """
        number = 0
        for batch in itertools.islice(self._source, self._most):
            yield self._inputs(batch, number)
            number += 1
        if number < (self._last_pass or 1):
            raise CalibrationError(
                f"a pass over the data gave {number} batches, the one before {self._last_pass or 'at least one'}; "
                "give a data loader or a list, which can be read several times"
            )
        self._last_pass = number

    def _inputs(self, batch: Any, number: int) -> Inputs:
        given = self._arguments(batch, number) if self._prepare is None else self._prepared(batch, number)
        inputs = Inputs(*given, Origin.BATCH)
        tensors = list(tensors_in(given))
        if not tensors:
            holder, remedy = (
                ("batch", ". Say with prepare= what the model is called with")
                if self._prepare is None
                else ("what prepare made of batch", "")
            )
            raise CalibrationError(f"{holder} {number} holds no tensor: it is a {type(batch).__name__}{remedy}")
        if self._prepare is None and any(tensor.dtype is torch.uint8 and tensor.dim() >= _IMAGE for tensor in tensors):
            raise CalibrationError(
                f"batch {number} holds images of uint8, and how the model is to see them is not known: a wrong scale "
                "gives wrong constants. Give prepare=, which makes the model's input as training does, such as "
                "prepare=lambda batch: normalize(batch[0] / 255), or prepare=lambda batch: batch[0] for a model that "
                "takes uint8"
            )
        return inputs.map(self._moved)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        """Move a tensor to the model's device; double precision (as made by numpy) is cast to the model's dtype."""
        reference = next(itertools.chain(self._model.parameters(), self._model.buffers()), None)
        device = torch.device("cpu") if reference is None else reference.device
        floating = next((p.dtype for p in self._model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        return tensor.to(device, floating) if tensor.dtype is torch.float64 else tensor.to(device)

    def _prepared(self, batch: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the output of ``prepare`` for a batch, as arguments."""
        assert self._prepare is not None
        tensors = [tensor for tensor in tensors_in((batch,)) if not tensor.is_inference()]
        versions = [tensor._version for tensor in tensors]
        try:
            with torch.no_grad():
                made = self._prepare(batch)
        except Exception as error:
            raise CalibrationError(
                f"prepare failed on batch {number}, a {_described(batch)}: {type(error).__name__}: {error}"
            ) from error
        if [tensor._version for tensor in tensors] != versions:
            raise CalibrationError(
                f"prepare wrote into a tensor of batch {number}; batches are read more than once, and it would be "
                "written again. Return a new tensor: x / 255 instead of x.div_(255)"
            )
        if isinstance(made, Mapping):
            if not all(isinstance(name, str) for name in made):
                raise CalibrationError(
                    f"prepare: expected the names of keyword arguments of batch {number}, found the keys "
                    f"{', '.join(map(repr, made))}"
                )
            return (), dict(made)
        if isinstance(made, tuple):
            return made, {}
        if isinstance(made, torch.Tensor) or _is_list_of_images(made):
            return (made,), {}
        raise CalibrationError(
            f"prepare: expected a tensor, a tuple of arguments or a dict of keyword arguments of batch {number}, "
            f"found a {_described(made)}"
        )

    def _arguments(self, batch: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the model's arguments: as many items of a tuple as it requires, of a dict those that it accepts."""
        if isinstance(batch, Mapping):
            taken = self._taken(batch)
            if not taken:
                names = ", ".join(inspect.signature(self._model.forward).parameters)
                found = ", ".join(map(str, batch))
                image = next(
                    (k for k, v in batch.items() if isinstance(v, torch.Tensor) and v.dim() >= _IMAGE), "image"
                )
                raise CalibrationError(
                    f"batch {number} has the keys {found}; the model takes {names}. Say what it is called with: "
                    f"prepare=lambda batch: batch[{image!r}]"
                )
            return (), taken
        if isinstance(batch, (tuple, list)) and not _is_list_of_images(batch):
            return tuple(batch)[: self._required()], {}
        return (batch,), {}

    def _taken(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        parameters = inspect.signature(self._model.forward).parameters
        anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        return {name: value for name, value in batch.items() if anything or name in parameters}

    def _required(self) -> int:
        """Return the number of required positional arguments of the model; at least one."""
        parameters = inspect.signature(self._model.forward).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return max(1, sum(parameter.default is parameter.empty for parameter in positional))


def _described(value: Any) -> str:
    """Describe the type of a value, and the types of its contents."""
    name = type(value).__name__
    if isinstance(value, Mapping):
        return f"{name} with the keys {', '.join(map(str, value))}"
    if isinstance(value, (tuple, list)):
        return f"{name} of {', '.join(type(item).__name__ for item in value[:5])}{', …' if len(value) > 5 else ''}"
    return f"{name} of {value.dtype}" if isinstance(value, torch.Tensor) else name


def _is_list_of_images(batch: Any) -> bool:
    """Whether it is a list of images ``(C, H, W)``, as detection models take."""
    return isinstance(batch, list) and all(isinstance(item, torch.Tensor) and item.dim() == 3 for item in batch)

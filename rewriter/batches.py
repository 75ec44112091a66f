"""The user's data, batch by batch, as arguments of the model."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from rewriter.errors import CalibrationError
from rewriter.inputs import Inputs, tensors_in


class Batches:
    """Data that may be read several times.

    Args:
        model: what the batches are for; tensors are moved to its device.
        batches: an iterable of batches (tensors, tuples, lists, dicts), or one tensor or dict.
        most: how many batches to read at most; None for all.

    Raises:
        CalibrationError: ``batches`` is nothing that can be iterated, or ``most`` is no positive number.
    """

    def __init__(self, model: nn.Module, batches: Any, most: int | None) -> None:
        if most is not None and (type(most) is not int or most < 1):
            raise CalibrationError(f"max_batches: expected a positive int or None, found {most!r}")
        if isinstance(batches, (torch.Tensor, Mapping)):
            batches = [batches]
        if not isinstance(batches, Iterable):
            raise CalibrationError(
                f"batches: expected a data loader or another iterable of batches, found {type(batches).__name__}"
            )
        self._model, self._most = model, most
        self._one_shot = isinstance(batches, Iterator)
        self._source: Iterable[Any] = batches
        self._last_pass: int | None = None

    @property
    def length(self) -> int | None:
        """How many batches one pass has; None if that cannot be known."""
        length = getattr(self._source, "__len__", None)
        try:
            known = length() if length is not None else None
        except TypeError:  # a data loader over a stream
            known = None
        return self._most if known is None else known if self._most is None else min(known, self._most)

    def first(self) -> Inputs:
        """The first batch, which is still there to be read.

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
            CalibrationError: they are an iterator, which can be read once, and not limited, so that it can be kept.
        """
        if number > 1 and self._one_shot:
            if self._most is None:
                raise CalibrationError(
                    f"the model's fusions are nested {number} deep, which takes {number} passes over the data, and an "
                    "iterator can be read once; give a data loader or a list, or max_batches= to keep so many batches"
                )
            self._source, self._one_shot = list(itertools.islice(self._source, self._most)), False

    def __iter__(self) -> Iterator[Inputs]:
        """One pass.

        Raises:
            CalibrationError: it has no batches, or fewer than the pass before.
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
        args, kwargs = self._arguments(batch, number)
        reference = next(itertools.chain(self._model.parameters(), self._model.buffers()), None)
        device = torch.device("cpu") if reference is None else reference.device
        moved = Inputs(args, kwargs, f"batch {number}").map(lambda tensor: tensor.to(device))
        if not any(True for _ in tensors_in((moved.args, moved.kwargs))):
            raise CalibrationError(f"batch {number} holds no tensor: it is a {type(batch).__name__}")
        return moved

    def _arguments(self, batch: Any, number: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model is called with: of a tuple as many as it requires, of a dict what it takes."""
        if isinstance(batch, Mapping):
            taken = self._taken(batch)
            if not taken:
                names = ", ".join(inspect.signature(self._model.forward).parameters)
                found = ", ".join(map(str, batch))
                raise CalibrationError(
                    f"batch {number} has the keys {found}; the model takes {names}. Give batches with its names, or "
                    "the images alone: [batch['image'] for batch in loader]"
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
        """How many positional arguments the model cannot do without; at least one."""
        parameters = inspect.signature(self._model.forward).parameters.values()
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        return max(1, sum(parameter.default is parameter.empty for parameter in positional))


def _is_list_of_images(batch: Any) -> bool:
    """Detection models take a list of images ``(C, H, W)``."""
    return isinstance(batch, list) and all(isinstance(item, torch.Tensor) and item.dim() == 3 for item in batch)

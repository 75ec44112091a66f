"""The images of a measurement, one at a time, as the model takes them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import torch
from torch import nn

from rewriter.errors import MeasurementError

Images: TypeAlias = "torch.Tensor | Iterable[torch.Tensor | tuple[torch.Tensor, Any]]"
"""``(N, C, H, W)``, or an iterable of such batches, alone or each with its targets."""


def single_images(images: Images, model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield each image as ``(1, C, H, W)``, on the device and in the floating-point type of ``model``.

    Raises:
        MeasurementError: there are none, they differ in size, or they are no normalised floating-point images.
    """
    if not isinstance(images, (torch.Tensor, Iterable)) or isinstance(images, (str, bytes, dict)):
        raise MeasurementError(
            f"images: expected a tensor (N, C, H, W) or an iterable of them, found {type(images).__name__}"
        )
    reference = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    shape: torch.Size | None = None
    for number, batch in enumerate([images] if isinstance(images, torch.Tensor) else images):
        for image in _checked(batch, number).to(reference.device, reference.dtype).unsqueeze(1):
            shape = image.shape if shape is None else shape
            if image.shape != shape:
                raise MeasurementError(
                    f"images: expected all of one size, found {_size(shape)} and {_size(image.shape)}; crop or resize "
                    "them: a measurement is the mean over images"
                )
            yield image
    if shape is None:
        raise MeasurementError("images: expected at least one, found none; an iterator can be read once")


def first_image(images: Iterator[torch.Tensor]) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
    """Return the first image, and all of them."""
    first = next(images)
    return first, itertools.chain([first], images)


def _checked(batch: Any, number: int) -> torch.Tensor:
    if isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], torch.Tensor):
        batch = batch[0]  # a loader gives targets beside them
    where = f"images: batch {number}"
    if not isinstance(batch, torch.Tensor) or batch.dim() != 4:
        found = tuple(batch.shape) if isinstance(batch, torch.Tensor) else type(batch).__name__
        alone = "; for one image, image[None]" if getattr(batch, "ndim", 0) == 3 else ""
        raise MeasurementError(f"{where}: expected a tensor (N, C, H, W), found {found}{alone}")
    if not batch.is_floating_point():
        raise MeasurementError(
            f"{where}: expected floating-point images, normalised as in training, found {batch.dtype}; "
            "give what the model is given: normalize(images / 255)"
        )
    if batch.is_meta or not bool(torch.isfinite(batch).all()):
        raise MeasurementError(f"{where}: expected finite values, found {'none' if batch.is_meta else 'NaN or inf'}")
    return batch.detach()


def _size(shape: torch.Size) -> str:
    return "x".join(map(str, shape[1:]))

"""Check whether a source can be used for training and testing, before anything runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rewriter.data.source import Examples, Source, Task
from rewriter.errors import DataError

MOST_MASKS = 200
"""Number of masks examined in each part, evenly spaced; class numbers are all examined."""


def check(source: Source) -> None:
    """Examine the first image and the targets, without decoding other images if the source allows it.

    Raises:
        DataError: no examples; an image that is not what the source says; a target that is not a class; targets of a
            single class.
    """
    for side, examples in (("training", source.train), ("test", source.test)):
        if examples is None:
            continue
        where = f"{source.name}, {side} data"
        if not len(examples):
            raise DataError(f"{where}: expected images, found none; check the folder or file that the data came from")
        _check_image(source, examples, where)
        read = getattr(examples, "target", None) or (lambda index, examples=examples: examples[index][1])
        indices = np.arange(len(examples))
        if source.task is Task.SEGMENTATION and len(examples) > MOST_MASKS:
            indices = np.linspace(0, len(examples) - 1, MOST_MASKS).astype(int)
        present = set[Any]().union(*(_READERS[source.task](source, where, i, read(i)) for i in indices.tolist()))
        if len(present) < 2 and source.task is Task.MULTI_LABEL:
            raise DataError(f"{where}: expected targets that differ, found the same one for every image")
        if len(present) < 2:
            only = next(iter(present), None)
            name = source.class_names[only] if only is not None and only < len(source.class_names) else only
            raise DataError(
                f"{where}: expected at least two classes, found only {name!r}; check how the data were divided"
            )


def check_trainable(source: Source, batch_size: int) -> None:
    """Check that there is at least one full batch to train on.

    Args:
        batch_size: images in a batch, at least 1.

    Raises:
        DataError: there is not.
    """
    if batch_size < 1:
        raise DataError(f"expected a batch size of at least 1, found {batch_size}")
    if source.train is None:
        raise DataError(f"{source.name} has test images only; choose another source to train on")
    if len(source.train) < batch_size:
        raise DataError(
            f"{source.name}: expected at least one batch of {batch_size} training images, found {len(source.train)}; "
            f"choose a smaller batch size"
        )


def _check_image(source: Source, examples: Examples, where: str) -> None:
    image, target = examples[0]
    mode = "L" if source.channels == 1 else "RGB"
    if _kind(image) != mode:
        raise DataError(f"{where}: expected PIL images of mode {mode}, found {_kind(image)}")
    if source.size is not None and (image.height, image.width) != source.size:
        raise DataError(f"{where}: expected images of {source.size}, found {(image.height, image.width)}")
    if source.task is Task.SEGMENTATION and getattr(target, "size", None) != image.size:
        raise DataError(f"{where}: expected a mask of the size of its image, {image.size}")


def _kind(image: Any) -> str:
    """Return the mode of a Pillow image; the type of anything else."""
    from PIL import Image

    return image.mode if isinstance(image, Image.Image) else type(image).__name__


def _number(source: Source, where: str, index: int, target: Any) -> set[int]:
    # A bool is an int to Python; a tensor or a str would pass further on and fail in the loss.
    if not isinstance(target, (int, np.integer)) or isinstance(target, bool):
        raise DataError(f"{where}: expected the number of a class as target {index}, found {target!r}")
    hint = "; this part has no labels, use another one for the test" if target == -1 else ""
    return _in_range(source, where, index, {int(target)}, hint)


def _classes_of_mask(source: Source, where: str, index: int, target: Any) -> set[int]:
    if _kind(target) != "L":
        raise DataError(f"{where}: expected mask {index} to be a PIL image of mode L, found {_kind(target)}")
    values = {value for value, number in enumerate(target.histogram()) if number and value != source.ignore_index}
    hint = "; if it marks pixels that do not count, it has to be the ignore_index" if 255 in values else ""
    return _in_range(source, where, index, values, hint)


def _in_range(source: Source, where: str, index: int, values: set[int], hint: str) -> set[int]:
    if wrong := [value for value in values if not 0 <= value < source.num_classes]:
        raise DataError(
            f"{where}: target {index} is class {min(wrong)}, expected 0 to {source.num_classes - 1} "
            f"(of {source.num_classes} classes){hint}"
        )
    return values


def _vector(source: Source, where: str, index: int, target: Any) -> set[tuple[float, ...]]:
    if not isinstance(target, torch.Tensor) or target.shape != (source.num_classes,):
        found = tuple(target.shape) if isinstance(target, torch.Tensor) else type(target).__name__
        raise DataError(
            f"{where}: expected target {index} to be a tensor of shape ({source.num_classes},), found {found}"
        )
    values = tuple(target.tolist())
    if not {*values} <= {0, 1}:
        raise DataError(f"{where}: expected 0 and 1 in target {index}, found {sorted({*values})}")
    return {values}


_READERS: dict[Task, Any] = {
    Task.CLASSIFICATION: _number, Task.MULTI_LABEL: _vector, Task.SEGMENTATION: _classes_of_mask,
}  # fmt: skip
"""Functions that return the classes in a target of each task, and refuse one that is not a class."""

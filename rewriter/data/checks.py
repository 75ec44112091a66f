"""Whether a source can be trained and tested on, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from rewriter.data.source import Examples, Source, Task
from rewriter.errors import DataError

MOST_MASKS = 200
"""Masks that are looked at on each side, evenly spaced; targets that are numbers are all looked at."""


def check(source: Source) -> None:
    """Look at the first image and at the targets, without decoding other images where the source allows it.

    Raises:
        DataError: no examples; an image that is not what the source says; a target that is no class; targets of one
            class only.
    """
    present_in: dict[Task, Callable[[Source, str, int, Any], set[Any]]]
    present_in = {Task.CLASSIFICATION: _number, Task.MULTI_LABEL: _vector, Task.SEGMENTATION: _classes_of_mask}
    for side, examples in (("training", source.train), ("test", source.test)):
        if examples is None:
            continue
        where = f"{source.name}, {side} data"
        if not len(examples):
            raise DataError(f"{where}: expected images, found none; check the folder or file that the data came from")
        _check_image(source, examples, where)
        present: set[Any] = set()
        for index, target in _targets(source, examples):
            present |= present_in[source.task](source, where, index, target)
        if len(present) < 2:
            raise _all_the_same(source, where, present)


def check_trainable(source: Source, batch_size: int) -> None:
    """Whether there is at least one full batch to train on.

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
    from PIL import Image

    image, target = examples[0]
    mode = "L" if source.channels == 1 else "RGB"
    if not isinstance(image, Image.Image) or image.mode != mode:
        found = image.mode if isinstance(image, Image.Image) else type(image).__name__
        raise DataError(f"{where}: expected PIL images of mode {mode}, found {found}")
    if source.size is not None and (image.height, image.width) != source.size:
        raise DataError(f"{where}: expected images of {source.size}, found {(image.height, image.width)}")
    if source.task is Task.SEGMENTATION and getattr(target, "size", None) != image.size:
        raise DataError(f"{where}: expected a mask of the size of its image, {image.size}")


def _number(source: Source, where: str, index: int, target: Any) -> set[int]:
    # A bool is an int to Python; a tensor or a str would pass further on and fail in the loss.
    if not isinstance(target, (int, np.integer)) or isinstance(target, bool):
        raise DataError(f"{where}: expected the number of a class as target {index}, found {target!r}")
    if not 0 <= target < source.num_classes:
        hint = "; this part has no labels, use another one for the test" if target == -1 else ""
        raise _out_of_range(source, where, index, int(target), hint)
    return {int(target)}


def _classes_of_mask(source: Source, where: str, index: int, target: Any) -> set[int]:
    from PIL import Image

    if not isinstance(target, Image.Image) or target.mode != "L":
        found = target.mode if isinstance(target, Image.Image) else type(target).__name__
        raise DataError(f"{where}: expected mask {index} to be a PIL image of mode L, found {found}")
    values = {value for value, number in enumerate(target.histogram()) if number and value != source.ignore_index}
    wrong = [value for value in values if value >= source.num_classes]
    if wrong:
        hint = "; if it marks pixels that do not count, it has to be the ignore_index" if 255 in wrong else ""
        raise _out_of_range(source, where, index, min(wrong), hint)
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


def _all_the_same(source: Source, where: str, present: set[Any]) -> DataError:
    if source.task is Task.MULTI_LABEL:
        return DataError(f"{where}: expected targets that differ, found the same one for every image")
    only = next(iter(present), None)
    name = source.class_names[only] if only is not None and only < len(source.class_names) else only
    return DataError(f"{where}: expected at least two classes, found only {name!r}; check how the data were divided")


def _out_of_range(source: Source, where: str, index: int, value: int, hint: str) -> DataError:
    return DataError(
        f"{where}: target {index} is class {value}, expected 0 to {source.num_classes - 1} "
        f"(of {source.num_classes} classes){hint}"
    )


def _targets(source: Source, examples: Examples) -> Iterator[tuple[int, Any]]:
    """Targets with their numbers; by ``target`` where the examples have it, which decodes no image."""
    read = getattr(examples, "target", None) or (lambda index: examples[index][1])
    indices: Sequence[int] = range(len(examples))
    if source.task is Task.SEGMENTATION and len(examples) > MOST_MASKS:
        indices = np.linspace(0, len(examples) - 1, MOST_MASKS).astype(int).tolist()
    for index in indices:
        yield index, read(index)

"""What every source of data gives: training and test images with their targets, and what may be done with them."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image


class Task(enum.StrEnum):
    """What the targets are.

    * ``CLASSIFICATION``: the number of a class, an int;
    * ``MULTI_LABEL``: a float tensor ``(num_classes,)`` of 0 and 1;
    * ``SEGMENTATION``: a PIL image of mode ``L`` and the size of the image, its values the numbers of classes.
    """

    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi-label"
    SEGMENTATION = "segmentation"


class Examples(Protocol):
    """Images and targets by number, as a map-style ``torch.utils.data.Dataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]: ...


@dataclass(frozen=True)
class Source:
    """One set of data.

    Attributes:
        name: as it was asked for.
        task: what the targets are.
        train: training examples; None where there are only test examples.
        test: test examples; none of them is a training example.
        num_classes: how many classes targets have, without the one that is ignored.
        channels: 1 (mode ``L``) or 3 (mode ``RGB``), of every image.
        size: ``(height, width)`` of the images; None where they differ.
        class_names: one name a class, if they are known.
        ignore_index: the value of pixels that count neither for the loss nor for the metric; None if there is none.
        licence: of the data, and what it forbids.
        split: how training and test examples were divided.
    """

    name: str
    task: Task
    train: Examples | None
    test: Examples
    num_classes: int
    channels: int
    size: tuple[int, int] | None
    class_names: Sequence[str] = ()
    ignore_index: int | None = None
    licence: str = ""
    split: str = ""

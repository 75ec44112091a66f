"""What every data source provides: training and test images with targets, and the licence terms."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from PIL import Image


class Task(enum.StrEnum):
    """What the targets are.

    * ``CLASSIFICATION``: a class number, an int;
    * ``MULTI_LABEL``: a float tensor ``(num_classes,)`` of 0 and 1;
    * ``SEGMENTATION``: a PIL image of mode ``L`` and the size of the image, with class numbers as values.
    """

    CLASSIFICATION = "classification"
    MULTI_LABEL = "multi-label"
    SEGMENTATION = "segmentation"


class Examples(Protocol):
    """Images and targets by index, as in a map-style ``torch.utils.data.Dataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]: ...


@dataclass(frozen=True)
class Source:
    """One data set.

    Attributes:
        name: as requested.
        task: what the targets are.
        train: training examples; None if there are only test examples.
        test: test examples; none of them is a training example.
        num_classes: number of classes, without the ignored one.
        channels: 1 (mode ``L``) or 3 (mode ``RGB``), of every image.
        size: ``(height, width)`` of the images; None if they differ.
        class_names: one name per class, if known.
        ignore_index: the value of pixels ignored by loss and metric; None if there is none.
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

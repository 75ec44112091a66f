"""The checks of data, each on real images with something wrong about them."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rewriter import data
from rewriter.data.examples import ArrayExamples, FileExamples
from rewriter.data.source import Examples, Source, Task
from rewriter.errors import DataError


@pytest.fixture(scope="module")
def digits() -> Source:
    return data.open_source("digits")


def arrays(examples: Examples | None) -> tuple[Any, Any]:
    assert isinstance(examples, ArrayExamples)
    return examples.images, np.array(examples.targets)


def masks(examples: Examples | None, values: Any) -> ArrayExamples:
    """The images of ``examples`` with a mask of ink and paper, through the table ``values``."""
    images, _ = arrays(examples)
    return ArrayExamples(images, np.array(values, dtype=np.uint8)[(images > 100).astype(int)])


def test_label_out_of_range(digits: Source) -> None:
    images, targets = arrays(digits.train)
    targets[7] = 10
    with pytest.raises(DataError, match=r"digits, training data: target 7 is class 10, expected 0 to 9"):
        data.check(dataclasses.replace(digits, train=ArrayExamples(images, targets)))
    images, targets = arrays(digits.test)
    targets[:] = -1
    with pytest.raises(DataError, match=r"test data: target 0 is class -1.*this part has no labels"):
        data.check(dataclasses.replace(digits, test=ArrayExamples(images, targets)))


@pytest.mark.parametrize("side", ["train", "test"])
def test_one_class_only(digits: Source, side: str) -> None:
    images, targets = arrays(getattr(digits, side))
    chosen = targets == 3
    part: dict[str, Any] = {side: ArrayExamples(images[chosen], targets[chosen])}
    with pytest.raises(DataError, match="expected at least two classes, found only '3'"):
        data.check(dataclasses.replace(digits, **part))


def test_empty(digits: Source) -> None:
    images, targets = arrays(digits.test)
    with pytest.raises(DataError, match="digits, test data: expected images, found none"):
        data.check(dataclasses.replace(digits, test=ArrayExamples(images[:0], targets[:0])))


def test_images_are_what_the_source_says(digits: Source) -> None:
    with pytest.raises(DataError, match="expected PIL images of mode RGB, found L"):
        data.check(dataclasses.replace(digits, channels=3))
    with pytest.raises(DataError, match=r"expected images of \(9, 8\), found \(8, 8\)"):
        data.check(dataclasses.replace(digits, size=(9, 8)))


def test_batches(digits: Source) -> None:
    data.check_trainable(digits, 1438)
    with pytest.raises(DataError, match="at least one batch of 1439 training images, found 1438"):
        data.check_trainable(digits, 1439)
    with pytest.raises(DataError, match="batch size of at least 1, found 0"):
        data.check_trainable(digits, 0)
    with pytest.raises(DataError, match="photos has test images only"):
        data.check_trainable(data.open_source("photos"), 1)


def test_targets_are_read_without_decoding(digits: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    source = data.open_source("photos")
    decoded = []
    original = FileExamples.__getitem__

    def counted(self: FileExamples, index: int) -> tuple[Image.Image, int]:
        decoded.append(index)
        return original(self, index)

    monkeypatch.setattr(FileExamples, "__getitem__", counted)
    data.check(source)
    assert decoded == [0]


def test_masks(digits: Source) -> None:
    def source(values: list[int], ignored: int | None = None) -> Source:
        return dataclasses.replace(
            digits,
            task=Task.SEGMENTATION,
            num_classes=2,
            ignore_index=ignored,
            class_names=("paper", "ink"),
            train=masks(digits.train, [0, 1]),
            test=masks(digits.test, values),
        )

    data.check(source([0, 1]))
    with pytest.raises(DataError, match=r"test data: target 0 is class 2, expected 0 to 1"):
        data.check(source([0, 2]))
    with pytest.raises(DataError, match=r"class 255.*ignore_index"):
        data.check(source([0, 255]))
    with pytest.raises(DataError, match="found only 'paper'"):
        data.check(source([0, 255], ignored=255))
    with pytest.raises(DataError, match=r"expected a mask of the size of its image"):
        data.check(dataclasses.replace(source([0, 1]), test=digits.test))


class ManyLabels:
    """Digits with a vector of what holds of each: even, above four."""

    def __init__(self, examples: Examples, values: dict[int, list[float]] | None = None) -> None:
        self.examples, self.values = examples, values or {}

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Image.Image, torch.Tensor]:
        image, target = self.examples[index]
        return image, torch.tensor(self.values.get(index, [float(target % 2 == 0), float(target > 4)]))


def test_vectors(digits: Source) -> None:
    good = ManyLabels(digits.test)
    source = dataclasses.replace(digits, task=Task.MULTI_LABEL, num_classes=2, train=None, test=good)
    data.check(source)
    for wrong, words in (
        ({4: [1.0, 0.0, 0.0]}, r"target 4 to be a tensor of shape \(2,\), found \(3,\)"),
        ({5: [0.5, 0.0]}, r"expected 0 and 1 in target 5, found \[0.0, 0.5\]"),
        ({index: [1.0, 0.0] for index in range(len(good))}, "found the same one for every image"),
    ):
        with pytest.raises(DataError, match=words):
            data.check(dataclasses.replace(source, test=ManyLabels(digits.test, wrong)))

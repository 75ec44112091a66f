"""Containers of examples: images in memory, images in files, and the data sets of other libraries.

Each has ``target(index)``, which reads a target without decoding the image if possible.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from rewriter.errors import DataError


class ArrayExamples:
    """Grey images in memory.

    Args:
        images: uint8, ``(count, height, width)``.
        targets: ``(count,)`` class numbers, or uint8 ``(count, height, width)`` with one for every pixel.
    """

    def __init__(self, images: npt.NDArray[np.uint8], targets: npt.NDArray[Any]) -> None:
        self.images, self.targets = images, targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        return Image.fromarray(self.images[index]), self.target(index)

    def target(self, index: int) -> Any:
        """Return a class number, or a PIL image of them."""
        target = self.targets[index]
        return Image.fromarray(target) if target.ndim else int(target)


class FileExamples:
    """Images in files, decoded on access.

    Args:
        samples: (path, class number) of each image.
        mode: the mode every image is converted to, ``L`` or ``RGB``.
    """

    def __init__(self, samples: Sequence[tuple[str | Path, int]], mode: str) -> None:
        self.paths, self.targets, self.mode = [path for path, _ in samples], [target for _, target in samples], mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                return as_mode(image, self.mode, path), self.targets[index]
        except OSError as error:
            raise unreadable(path, error) from error

    def target(self, index: int) -> int:
        """Return the class number."""
        return self.targets[index]


class DatasetExamples:
    """Some examples of a data set of another library.

    Args:
        dataset: with ``len`` and ``[index]``, which returns a row with a PIL image and a target.
        mode: the mode every image is converted to, ``L`` or ``RGB``.
        indices: which of its examples; None for all.
        targets: of every example of the data set, as it returns them, if known without decoding images.
        columns: where a row has the image and the target.
        convert: from the data set's target to ours; by default the class number.
    """

    def __init__(
        self, dataset: Any, mode: str, indices: Sequence[int] | None = None, targets: Sequence[Any] | None = None, *,
        columns: tuple[Any, Any] = (0, 1), convert: Callable[[Any], Any] = int,
    ) -> None:  # fmt: skip
        self.dataset, self.mode, self.targets, self.columns, self.convert = dataset, mode, targets, columns, convert
        self.indices: Sequence[int] = range(len(dataset)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, Any]:
        row = self.dataset[self.indices[index]]
        image, target = (row[column] for column in self.columns)
        return as_mode(image, self.mode, f"image {index}"), self.convert(target)

    def target(self, index: int) -> Any:
        """Return the target of ``self[index]``."""
        position = self.indices[index]
        found = self.dataset[position][self.columns[1]] if self.targets is None else self.targets[position]
        return self.convert(found)


def unreadable(path: object, error: OSError) -> DataError:
    """Return the error for a file that is not an image."""
    return DataError(f"{path} cannot be read as an image: {error}; replace it or remove it")


def as_mode(image: Image.Image, mode: str, where: object) -> Image.Image:
    """Return the image loaded into memory, converted to ``L`` or ``RGB``.

    Raises:
        DataError: it has more than 8 bits per channel, which a conversion would clip.
    """
    if image.mode.startswith(("I", "F")):
        raise DataError(f"{where}: expected 8 bits a channel, found mode {image.mode}; convert the images to 8 bits")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert(mode)

"""Data sets of torchvision, by the names of their classes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rewriter.data import splitting
from rewriter.data.examples import DatasetExamples
from rewriter.data.registry import Request, described
from rewriter.data.source import Source, Task
from rewriter.errors import DataError
from rewriter.guideline.registry import suggest

CLASSIFICATION: dict[str, tuple[str, Any, Any] | None] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"),
                    ("train", True, False)),
    **dict.fromkeys(("Country211", "DTD", "FER2013", "Flowers102", "Food101", "GTSRB", "LFWPeople", "PCAM",
                     "RenderedSST2", "STL10", "SVHN", "StanfordCars"), ("split", "train", "test")),
    **dict.fromkeys(("FGVCAircraft", "OxfordIIITPet"), ("split", "trainval", "test")),
    **dict.fromkeys(("ImageNet", "Imagenette"), ("split", "train", "val")),
    "Places365": ("split", "train-standard", "val"),
    **dict.fromkeys(("Caltech101", "Caltech256", "EMNIST", "EuroSAT", "SEMEION", "SUN397")),
}  # fmt: skip
"""torchvision's classes that need a folder and no more, with the option that chooses a part and its values for training
and test; None if we divide it. Others would be refused only after they were downloaded."""
OPTIONS: dict[str, dict[str, Any]] = {"EMNIST": {"split": "balanced"}}
"""What else a set's class has to be told."""


def _mask(values: Any, first: int = 0) -> Image.Image:
    """A mask whose classes count from ``first`` on, and 255 for pixels that do not count."""
    array = np.asarray(values)
    return Image.fromarray(np.where(array == 255, 255, array - first).astype(np.uint8))


SEGMENTATION: dict[str, tuple[str, tuple[str, str, str], dict[str, Any], int, tuple[str, ...], int | None]] = {
    "VOCSegmentation": (
        "VOCSegmentation", ("image_set", "train", "val"), {"year": "2012"}, 0,
        ("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
         "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "monitor"),
        255,
    ),
    "OxfordIIITPet-trimaps": (
        "OxfordIIITPet", ("split", "trainval", "test"), {"target_types": "segmentation"}, 1,
        ("pet", "background", "border"), None,
    ),
}  # fmt: skip
"""By name: torchvision's class, its parts, its options, the value of the first class, the classes, and the value that
does not count."""


def default_root() -> Path:
    """Where data sets of torchvision are looked for: ``datasets`` beside the folder of ``torch.hub``."""
    return Path(torch.hub.get_dir()).parent / "datasets"


@described(
    "torchvision:NAME",
    None,
    content="a classification set of torchvision (FashionMNIST, CIFAR10, Flowers102, OxfordIIITPet, ...), or for "
    "segmentation VOCSegmentation or OxfordIIITPet-trimaps",
    disk="that of the set",
    licence="that of the set",
    install="pip install torchvision",
)
def torchvision_set(request: Request) -> Source:
    library, name = request.library("torchvision.datasets"), request.local
    known = (*CLASSIFICATION, *SEGMENTATION)
    if name not in known:
        raise DataError(f"unknown data set {request.name!r}; {suggest(name, known)}")
    if name in SEGMENTATION:
        class_name, parts, options, first, class_names, ignored = SEGMENTATION[name]
        train, test, split = _divided(request, getattr(library, class_name), parts, options)
        masks = functools.partial(_mask, first=first)
        return request.source(
            task=Task.SEGMENTATION,
            train=DatasetExamples(train, "RGB", convert=masks),
            test=DatasetExamples(test, "RGB", convert=masks),
            num_classes=len(class_names),
            channels=3,
            size=None,
            class_names=class_names,
            ignore_index=ignored,
            split=split,
        )
    return _classification(request, getattr(library, name), CLASSIFICATION[name], OPTIONS.get(name, {}))


def _classification(request: Request, cls: type, parts: tuple[str, Any, Any] | None, options: dict[str, Any]) -> Source:
    if parts is None:
        train = test = _open(request, cls, options)
        mode, size = _kind(request, train)
        targets = _known_targets(train) or [int(train[index][1]) for index in range(len(train))]
        indices, split = splitting.stratified(targets), splitting.described()
        sides = [DatasetExamples(train, mode, part, targets) for part in indices]
        class_names, num_classes = _classes(train, [targets])
    else:
        train, test, split = _divided(request, cls, parts, options)
        mode, size = _kind(request, train)
        _kind(request, test)
        known = [_known_targets(part) for part in (train, test)]
        sides = [DatasetExamples(part, mode, None, of) for part, of in zip((train, test), known, strict=True)]
        class_names, num_classes = _classes(train, known)
    return request.source(
        task=Task.CLASSIFICATION,
        train=sides[0],
        test=sides[1],
        num_classes=num_classes,
        channels=1 if mode == "L" else 3,
        size=size,
        class_names=class_names,
        split=split,
    )


def _divided(request: Request, cls: type, parts: tuple[str, Any, Any], options: dict[str, Any]) -> tuple[Any, Any, str]:
    """The training part, the test part and what they are called."""
    option, *values = parts
    train, test = (_open(request, cls, {**options, option: value}) for value in values)
    names = ("train", "test") if values == [True, False] else values
    return train, test, f"the data set's own, {names[0]} and {names[1]}"


def _open(request: Request, cls: type, options: dict[str, Any]) -> Any:
    root = request.root if request.root is not None else default_root()
    can_download = any("download" in inspect.signature(base).parameters for base in inspect.getmro(cls)[:-1])
    if can_download:
        options = {**options, "download": request.download}
    try:
        return cls(str(root), **options)
    except (RuntimeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        if request.download and can_download:
            raise DataError(f"{request.name} could not be downloaded to {root}: {reason}") from error
        remedy = "download it with --download (download=True)" if can_download else "get it from its authors"
        raise DataError(f"{request.name} is not in {root} ({reason}); {remedy}, or give the folder with it") from error
    except ImportError as error:
        raise DataError(f"{request.name} needs another library: {error}") from error
    except ValueError as error:
        raise DataError(f"{request.name} cannot be opened: {error}") from error


def _kind(request: Request, dataset: Any) -> tuple[str, tuple[int, int] | None]:
    """The mode of the images, and their size where all are kept in one array."""
    if not len(dataset):
        raise DataError(f"{request.name} is empty; download it again with --download (download=True)")
    image, target = dataset[0]
    if not isinstance(image, Image.Image):
        raise DataError(f"{request.name}: expected images, found {type(image).__name__}")
    if not isinstance(target, (int, np.integer)):
        raise DataError(f"{request.name}: expected the number of a class as target, found {type(target).__name__}")
    in_memory = getattr(getattr(dataset, "data", None), "ndim", 0) >= 3
    return ("L" if image.mode in ("1", "L") else "RGB"), (image.height, image.width) if in_memory else None


def _known_targets(dataset: Any) -> list[int] | None:
    """The targets that the data set keeps, wherever it does, so that no image need be decoded for them."""
    for name in ("targets", "_labels", "labels", "y"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            # QMNIST keeps more than the class with each image
            found = [int(value[0]) if getattr(value, "ndim", 0) else int(value) for value in values]
            break
    else:
        samples: Any = getattr(dataset, "samples", getattr(dataset, "_samples", ()))
        if len(samples) != len(dataset) or not isinstance(samples[0][1], int):
            return None
        found = [int(target) for _, target in samples]
    return found if found and found[0] == int(dataset[0][1]) else None


def _classes(dataset: Any, targets: Sequence[Sequence[int] | None]) -> tuple[tuple[str, ...], int]:
    """The names of the classes if they are known, and how many there are."""
    known: Any = getattr(dataset, "classes", None) or getattr(dataset, "categories", ())
    names = tuple(name if isinstance(name, str) else ", ".join(name) for name in known)  # ImageNet has synonyms
    highest = max((max(side) for side in targets if side), default=-1)
    if len(names) > highest >= 0 or (names and highest < 0):
        return names, len(names)
    if highest < 0:
        highest = max(int(dataset[index][1]) for index in range(len(dataset)))
    return (), highest + 1


SOURCES = (torchvision_set,)

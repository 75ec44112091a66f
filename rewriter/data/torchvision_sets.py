"""Data sets of torchvision, by class name."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rewriter.data import splitting
from rewriter.data.examples import DatasetExamples
from rewriter.data.registry import SourceRequest
from rewriter.data.source import Source, Task
from rewriter.errors import DataError
from rewriter.guideline.registry import suggest

Parts = tuple[str, Any, Any]

CLASSIFICATION: dict[str, Parts | None] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"),
                    ("train", True, False)),
    **dict.fromkeys(("Country211", "DTD", "FER2013", "Flowers102", "Food101", "GTSRB", "LFWPeople", "PCAM",
                     "RenderedSST2", "STL10", "SVHN", "StanfordCars"), ("split", "train", "test")),
    **dict.fromkeys(("FGVCAircraft", "OxfordIIITPet"), ("split", "trainval", "test")),
    **dict.fromkeys(("ImageNet", "Imagenette"), ("split", "train", "val")),
    "Places365": ("split", "train-standard", "val"),
    **dict.fromkeys(("Caltech101", "Caltech256", "EMNIST", "EuroSAT", "SEMEION", "SUN397")),
}  # fmt: skip
"""torchvision's classes that need only a directory, with the option that selects a part and its values for training
and test; None if we split it. Others would only be refused after downloading."""
OPTIONS: dict[str, dict[str, Any]] = {"EMNIST": {"split": "balanced"}}
"""Additional constructor options of a data set."""

SEGMENTATION: dict[str, tuple[str, Parts, dict[str, Any], int, tuple[str, ...], int | None]] = {
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
"""By name: torchvision's class, its parts, its options, the value of the first class, the classes, and the ignored
value."""


def torchvision_set(request: SourceRequest) -> Source:
    library, name = request.library("torchvision.datasets"), request.local
    known = (*CLASSIFICATION, *SEGMENTATION)
    if name not in known:
        raise DataError(f"unknown data set {request.name!r}; {suggest(name, known)}")
    if name in CLASSIFICATION:
        return _classification(request, getattr(library, name), CLASSIFICATION[name])
    class_name, parts, options, first, class_names, ignored = SEGMENTATION[name]
    sides, split = _divided(request, getattr(library, class_name), parts, options)
    masks = functools.partial(_mask, first=first)
    train, test = (DatasetExamples(side, "RGB", convert=masks) for side in sides)
    return request.source(
        task=Task.SEGMENTATION, train=train, test=test, num_classes=len(class_names), channels=3,
        class_names=class_names, ignore_index=ignored, split=split,
    )  # fmt: skip


def _mask(values: Any, first: int) -> Image.Image:
    """Return a mask whose classes count from ``first``, with 255 for ignored pixels."""
    array = np.asarray(values)
    return Image.fromarray(np.where(array == 255, 255, array - first).astype(np.uint8))


def _classification(request: SourceRequest, cls: type, parts: Parts | None) -> Source:
    options = OPTIONS.get(request.local, {})
    if parts is None:
        whole = _open(request, cls, options)
        mode, size = _kind(request, whole)
        targets = _known_targets(whole) or [int(whole[index][1]) for index in range(len(whole))]
        train, test = (DatasetExamples(whole, mode, part, targets) for part in splitting.stratified(targets))
        split = splitting.described()
    else:
        sides, split = _divided(request, cls, parts, options)
        (mode, size), _ = (_kind(request, side) for side in sides)
        train, test = (DatasetExamples(side, mode, None, _known_targets(side)) for side in sides)
    class_names, num_classes = _classes(train.dataset, [side.targets for side in (train, test) if side.targets])
    return request.source(
        task=Task.CLASSIFICATION, train=train, test=test, num_classes=num_classes, channels=1 if mode == "L" else 3,
        size=size, class_names=class_names, split=split,
    )  # fmt: skip


def _divided(request: SourceRequest, cls: type, parts: Parts, options: dict[str, Any]) -> tuple[list[Any], str]:
    """Return the training and the test part, and their names."""
    option, *values = parts
    names = ("train", "test") if values == [True, False] else values
    sides = [_open(request, cls, {**options, option: value}) for value in values]
    return sides, f"the data set's own, {names[0]} and {names[1]}"


def _open(request: SourceRequest, cls: type, options: dict[str, Any]) -> Any:
    # beside the folder of torch.hub
    root = request.root if request.root is not None else Path(torch.hub.get_dir()).parent / "datasets"
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


def _kind(request: SourceRequest, dataset: Any) -> tuple[str, tuple[int, int] | None]:
    """Return the mode of the images, and their size if all are kept in one array."""
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
    """Return the targets that the data set stores, so that no image has to be decoded for them."""
    kept = [getattr(dataset, name, None) for name in ("targets", "_labels", "labels", "y")]
    values = next((values for values in kept if values is not None and len(values) == len(dataset)), None)
    if values is None:
        samples: Any = getattr(dataset, "samples", getattr(dataset, "_samples", ()))
        if len(samples) != len(dataset) or not isinstance(samples[0][1], int):
            return None
        values = [target for _, target in samples]
    # QMNIST stores more than the class with each image
    found = [int(value[0]) if getattr(value, "ndim", 0) else int(value) for value in values]
    return found if found and found[0] == int(dataset[0][1]) else None


def _classes(dataset: Any, targets: list[Any]) -> tuple[tuple[str, ...], int]:
    """Return the names of the classes, if known, and their number."""
    known: Any = getattr(dataset, "classes", None) or getattr(dataset, "categories", ())
    names = tuple(name if isinstance(name, str) else ", ".join(name) for name in known)  # ImageNet has synonyms
    highest = max((max(side) for side in targets), default=-1)
    if names and len(names) > highest:
        return names, len(names)
    if highest < 0:
        highest = max(int(dataset[index][1]) for index in range(len(dataset)))
    return (), highest + 1

"""The user's own images, one folder a class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from rewriter.data import splitting
from rewriter.data.examples import FileExamples
from rewriter.data.packages import require
from rewriter.data.registry import Description, Registered, Request
from rewriter.data.source import Source, Task
from rewriter.errors import DataError, listed

IMAGE_FOLDER = Description(
    name="imagefolder:PATH",
    task=Task.CLASSIFICATION,
    content="your own images: PATH/train/CLASS and PATH/val/CLASS or PATH/test/CLASS, or PATH/CLASS alone",
    disk="-",
    licence="yours",
    install="pip install torchvision",
)
TEST_FOLDERS = ("val", "test")
GREY_MODES = {"1", "L", "LA"}

Samples = list[tuple[str, int]]


def _image_folder(request: Request) -> Source:
    folder = Path(request.local).expanduser()
    if not request.local or not folder.is_dir():
        raise DataError(f"{request.name}: expected a folder with one folder of images a class, found none at {folder}")
    train_folder = folder / "train"
    tests = [folder / name for name in TEST_FOLDERS if (folder / name).is_dir()]
    if tests and not train_folder.is_dir():
        raise DataError(f"{request.name}: found {tests[0].name} without train; expected {train_folder} beside it")
    whole = train_folder if train_folder.is_dir() else folder
    classes, samples = _samples(request, whole)
    if tests:
        train, test = samples, _test_samples(request, tests[0], classes)
        split = f"the folders train and {tests[0].name}"
    else:
        train_indices, test_indices = splitting.stratified([target for _, target in samples])
        train, test = [samples[index] for index in train_indices], [samples[index] for index in test_indices]
        split = splitting.described()
    mode = _mode(train)
    return Source(
        name=request.name,
        task=Task.CLASSIFICATION,
        train=_examples(train, mode),
        test=_examples(test, mode),
        num_classes=len(classes),
        channels=len(Image.new(mode, (1, 1)).getbands()),
        size=None,
        class_names=tuple(classes),
        licence=IMAGE_FOLDER.licence,
        split=split,
    )


def _samples(request: Request, folder: Path) -> tuple[list[str], Samples]:
    """Classes by their folders, and (file, class) of every image."""
    datasets: Any = require("torchvision.datasets", request.name, IMAGE_FOLDER.install)
    try:
        found = datasets.ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(f"{request.name}: {error}; expected {folder}/CLASS/IMAGE for every class") from error
    return found.classes, found.samples


def _test_samples(request: Request, folder: Path, classes: Sequence[str]) -> Samples:
    found, samples = _samples(request, folder)
    if found != classes:
        raise DataError(
            f"{request.name}: expected the same classes in train and {folder.name}; only in one of them: "
            f"{listed(sorted(set(found) ^ set(classes)))}"
        )
    return samples


def _examples(samples: Samples, mode: str) -> FileExamples:
    return FileExamples([path for path, _ in samples], [target for _, target in samples], mode)


def _mode(samples: Samples) -> str:
    """``L`` if the first image of every class is grey; files are opened for their header only."""
    first = {target: path for path, target in reversed(samples)}
    for path in first.values():
        try:
            with Image.open(path) as image:
                if image.mode not in GREY_MODES:
                    return "RGB"
        except OSError as error:
            raise DataError(f"{path} cannot be read as an image: {error}; replace it or remove it") from error
    return "L"


SOURCES = (Registered(IMAGE_FOLDER, _image_folder),)

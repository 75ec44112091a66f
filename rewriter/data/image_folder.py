"""The user's own images, one folder per class."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from rewriter.data import splitting
from rewriter.data.examples import FileExamples, unreadable
from rewriter.data.registry import SourceRequest
from rewriter.data.source import Source
from rewriter.errors import DataError, listed

TEST_FOLDERS = ("val", "test")
GREY_MODES = {"1", "L", "LA"}

Samples = list[tuple[str, int]]


def image_folder(request: SourceRequest) -> Source:
    folder = Path(request.local).expanduser()
    if not request.local or not folder.is_dir():
        raise DataError(f"{request.name}: expected a folder with one folder of images a class, found none at {folder}")
    train_folder = folder / "train"
    test_folder = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if test_folder is not None and not train_folder.is_dir():
        raise DataError(f"{request.name}: found {test_folder.name} without train; expected {train_folder} beside it")
    classes, train = _samples(request, train_folder if train_folder.is_dir() else folder)
    if test_folder is not None:
        found, test = _samples(request, test_folder)
        if found != classes:
            raise DataError(
                f"{request.name}: expected the same classes in train and {test_folder.name}; only in one of them: "
                f"{listed(sorted(set(found) ^ set(classes)))}"
            )
        split = f"the folders train and {test_folder.name}"
    else:
        parts = splitting.stratified([target for _, target in train])
        train, test = ([train[index] for index in part] for part in parts)
        split = splitting.described()
    mode = _mode(train)
    return request.source(
        train=FileExamples(train, mode), test=FileExamples(test, mode), num_classes=len(classes),
        channels=1 if mode == "L" else 3, class_names=tuple(classes), split=split,
    )  # fmt: skip


def _samples(request: SourceRequest, folder: Path) -> tuple[list[str], Samples]:
    """Return classes by their folders, and (file, class) of every image."""
    try:
        found = request.library("torchvision.datasets").ImageFolder(str(folder))
    except FileNotFoundError as error:
        raise DataError(f"{request.name}: {error}; expected {folder}/CLASS/IMAGE for every class") from error
    return found.classes, found.samples


def _mode(samples: Samples) -> str:
    """Return ``L`` if the first image of every class is grey; only file headers are read."""
    for path in {target: path for path, target in reversed(samples)}.values():
        try:
            with Image.open(path) as image:
                if image.mode not in GREY_MODES:
                    return "RGB"
        except OSError as error:
            raise unreadable(path, error) from error
    return "L"

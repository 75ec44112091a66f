"""Photographs in the files of packages: everyday objects, and solar cells."""

from __future__ import annotations

from rewriter.data import splitting
from rewriter.data.examples import FileExamples
from rewriter.data.packages import package_path
from rewriter.data.registry import Description, Registered, Request
from rewriter.data.source import Source, Task
from rewriter.errors import DataError

PHOTOS = Description(
    name="photos",
    task=Task.CLASSIFICATION,
    content="photographs of ImageNet, 1000 classes, 20 test images in colour; nothing to train on",
    disk="1.4 MB, in foolbox",
    licence="foolbox is MIT; the photographs are those of ImageNet, for research without commercial use",
    install="pip install foolbox",
)
SOLAR_CELLS = Description(
    name="solar-cells",
    task=Task.CLASSIFICATION,
    content="electroluminescence photographs of solar cells, functional or defective, 2624 grey images of 300x300",
    disk="91 MB, in elpv-dataset",
    licence="CC-BY-NC-SA-4.0: no commercial use, and what is made of it under the same licence",
    install="pip install elpv-dataset",
)


def _photos(request: Request) -> Source:
    folder = package_path("foolbox", "data", request.name, PHOTOS.install)
    paths = sorted(folder.glob("imagenet_*_*.jpg"))
    if not paths:
        raise DataError(f"photos: expected imagenet_NUMBER_CLASS.jpg in {folder}, found none; {PHOTOS.install}")
    return Source(
        name=request.name,
        task=Task.CLASSIFICATION,
        train=None,
        test=FileExamples(paths, [int(path.stem.rpartition("_")[2]) for path in paths], "RGB"),
        num_classes=1000,
        channels=3,
        size=None,
        licence=PHOTOS.licence,
        split="all for the test",
    )


def _solar_cells(request: Request) -> Source:
    table = package_path("elpv_dataset", "data/labels.csv", request.name, SOLAR_CELLS.install)
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    paths = [table.parent / path for path, _, _ in rows]
    targets = [int(float(probability) >= 0.5) for _, probability, _ in rows]
    # Strata of kind and probability: both sides then hold the same share of the cells that experts were unsure of.
    train, test = splitting.stratified([(probability, kind) for _, probability, kind in rows])
    train_examples, test_examples = (
        FileExamples([paths[index] for index in part], [targets[index] for index in part], "L")
        for part in (train, test)
    )
    return Source(
        name=request.name,
        task=Task.CLASSIFICATION,
        train=train_examples,
        test=test_examples,
        num_classes=2,
        channels=1,
        size=(300, 300),
        class_names=("functional", "defective"),
        licence=SOLAR_CELLS.licence,
        split="20% of the cells of every defect probability and kind of silicon drawn for the test, always the same",
    )


SOURCES = (Registered(PHOTOS, _photos), Registered(SOLAR_CELLS, _solar_cells))

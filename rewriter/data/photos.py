"""Photographs in the files of packages: everyday objects, and solar cells."""

from __future__ import annotations

from rewriter.data import splitting
from rewriter.data.examples import FileExamples
from rewriter.data.registry import Request, described
from rewriter.data.source import Source, Task
from rewriter.errors import DataError


@described(
    "photos",
    Task.CLASSIFICATION,
    content="photographs of ImageNet, 1000 classes, 20 test images in colour; nothing to train on",
    disk="1.4 MB, in foolbox",
    licence="foolbox is MIT; the photographs are those of ImageNet, for research without commercial use",
    install="pip install foolbox",
)
def photos(request: Request) -> Source:
    folder = request.path("foolbox", "data")
    paths = sorted(folder.glob("imagenet_*_*.jpg"))
    if not paths:
        raise DataError(
            f"photos: expected imagenet_NUMBER_CLASS.jpg in {folder}, found none; {request.description.install}"
        )
    return request.source(
        train=None,
        test=FileExamples(paths, [int(path.stem.rpartition("_")[2]) for path in paths], "RGB"),
        num_classes=1000,
        channels=3,
        size=None,
        split="all for the test",
    )


@described(
    "solar-cells",
    Task.CLASSIFICATION,
    content="electroluminescence photographs of solar cells, functional or defective, 2624 grey images of 300x300",
    disk="91 MB, in elpv-dataset",
    licence="CC-BY-NC-SA-4.0: no commercial use, and what is made of it under the same licence",
    install="pip install elpv-dataset",
)
def solar_cells(request: Request) -> Source:
    table = request.path("elpv_dataset", "data/labels.csv")
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    samples = [(table.parent / path, int(float(probability) >= 0.5)) for path, probability, _ in rows]
    # Strata of kind and probability: both sides then hold the same share of the cells that experts were unsure of.
    train, test = splitting.stratified([(probability, kind) for _, probability, kind in rows])
    return request.source(
        train=FileExamples.of([samples[index] for index in train], "L"),
        test=FileExamples.of([samples[index] for index in test], "L"),
        num_classes=2,
        channels=1,
        size=(300, 300),
        class_names=("functional", "defective"),
        split="20% of the cells of every defect probability and kind of silicon drawn for the test, always the same",
    )


SOURCES = (photos, solar_cells)

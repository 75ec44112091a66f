"""Data sets of Hugging Face: a hub name, or a folder that ``save_to_disk`` wrote."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from rewriter.data import splitting
from rewriter.data.examples import DatasetExamples
from rewriter.data.registry import SourceRequest
from rewriter.data.source import Source, Task
from rewriter.errors import DataError

TEST_SPLITS = ("test", "validation", "valid", "val")


def hugging_face(request: SourceRequest) -> Source:
    datasets = request.library("datasets")
    folder = Path(request.local).expanduser()
    with contextlib.ExitStack() as kept:
        if not request.download:  # from the cache only, and without progress bars and warnings
            # The environment variable for offline mode is read on import only, into this attribute.
            switches = [name for name in vars(datasets.config) if name.endswith("_OFFLINE")]
            kept.enter_context(patch.dict(vars(datasets.config), dict.fromkeys(switches, True)))
            kept.callback(datasets.logging.set_verbosity, datasets.logging.get_verbosity())
            if datasets.is_progress_bar_enabled():
                kept.callback(datasets.enable_progress_bars)
            datasets.logging.set_verbosity_error()
            datasets.disable_progress_bars()
        try:
            if any((folder / file).is_file() for file in ("dataset_dict.json", "state.json")):
                loaded = datasets.load_from_disk(str(folder))
            else:
                loaded = datasets.load_dataset(request.local)
        except Exception as error:  # of many types: from the hub, the network, and file parsers
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            remedy = "check the name and the network" if request.download else "try --download (download=True)"
            raise DataError(f"{request.name} could not be loaded ({reason}); {remedy}") from error
    return from_splits(request.name, loaded if isinstance(loaded, Mapping) else {"train": loaded}, datasets)


def from_splits(name: str, splits: Mapping[str, Any], datasets: Any) -> Source:
    """Return the source of loaded data.

    Args:
        name: of the source.
        splits: by name, ``datasets.Dataset``; a ``DatasetDict`` is one such mapping.
        datasets: the library, whose feature types identify columns of images and classes.

    Raises:
        DataError: no ``train``, or not exactly one column of images and one of ``ClassLabel`` or lists of it.
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
    if test_name is not None:
        parts: list[tuple[Any, list[int] | None]] = [(train, None), (splits[test_name], None)]
        split = f"the data set's own, train and {test_name}"
    else:
        strata = [0] * len(train) if is_list else [int(value) for value in train[label]]
        parts = [(train, part) for part in splitting.stratified(strata)]
        drawn = f"{splitting.TEST_SHARE:.0%} drawn for the test, always the same"
        split = drawn if is_list else splitting.described()
    train_side, test_side = (
        DatasetExamples(part, mode, indices, list(part[label]), columns=(image, label), convert=convert)
        for part, indices in parts
    )
    return Source(
        name, Task.MULTI_LABEL if is_list else Task.CLASSIFICATION, train_side, test_side,
        num_classes=feature.num_classes, channels=1 if mode == "L" else 3, size=None,
        class_names=tuple(feature.names or ()),
        licence=str(getattr(train.info, "license", "") or "that of the set"), split=split,
    )  # fmt: skip


def _vector(classes: Iterable[int], num_classes: int) -> torch.Tensor:
    """Return a vector with 0 or 1 for every class."""
    vector = torch.zeros(num_classes)
    vector[list(classes)] = 1
    return vector


def _label(kind: Any, datasets: Any) -> tuple[Any, bool] | None:
    """Return the ``ClassLabel`` of a column, and whether it holds lists of them."""
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

"""The model that ``rewriter measure`` measures, and the images that it is measured on."""

from __future__ import annotations

from typing import Any

import torch

from rewriter.cli.comparing import Made
from rewriter.cli.model import Wanted, Work
from rewriter.comparison.compare import preprocessing_of
from rewriter.comparison.loading import data_of_source
from rewriter.comparison.recipe import resolve_recipe
from rewriter.data.source import Source, Task
from rewriter.errors import DataError
from rewriter.model.random_state import random_state_kept, seed_all


def images_for(wanted: Wanted, source: Source, number: int, work: Work) -> tuple[Any, torch.Tensor]:
    """Return the model, with as many classes and channels as the data have, and test images as it takes them.

    Raises:
        DataError: the source is for another task.
    """
    if source.task is not Task.CLASSIFICATION:
        raise DataError(f"{source.name}: expected images with classes, found {source.task}; take another source")
    made = Made(wanted, source)
    with random_state_kept():
        seed_all(0)
        entry = wanted.create(work)
    preprocessing = preprocessing_of(entry.model, entry.model, source, made.size)
    recipe = resolve_recipe("smoke", {"test_images": number, "batch_size": 1})
    loader = data_of_source(source, preprocessing, recipe, training=False).test
    return entry, torch.cat([images for images, _ in loader])

"""The models that ``rewriter compare`` trains, and checks before training."""

from __future__ import annotations

from typing import Any

import torch

import rewriter
from rewriter.cli.model import Wanted, Work
from rewriter.comparison.devices import check_device
from rewriter.comparison.recipe import resolve_recipe
from rewriter.comparison.training import check_optimizer
from rewriter.data.source import Source
from rewriter.errors import RewriterError
from rewriter.model.random_state import random_state_kept, seed_all

_SMALL = 96
"""Images up to this size are used at their own size instead of the model's default."""
_LEAST = 32


def checked(wanted: Wanted, data: str, budget: str, fields: dict[str, Any], device: str | None) -> int:
    """Report errors before data are read and models made, cheapest checks first; returns the batch size."""
    recipe = resolve_recipe(budget, fields)
    wanted.check_files_and_passes()
    rewriter.data.check_name(data)
    if device is not None:
        check_device(device)
    check_optimizer(None, recipe)
    wanted.check_model()
    return recipe.batch_size


class Made:
    """The requested model, adapted to the data: as many classes, channels and pixels."""

    def __init__(self, wanted: Wanted, source: Source) -> None:
        from rewriter import zoo

        self.wanted = wanted
        trained = wanted.pretrained or wanted.checkpoint is not None
        channels = 3 if trained else source.channels
        options = zoo.data_options(wanted.name, source.num_classes, channels)
        wanted.of_data = {name: value for name, value in options.items() if name not in wanted.model_kwargs}
        self.size = wanted.size or self._size(None if trained else source.size)

    def original(self) -> torch.nn.Module:
        model: torch.nn.Module = self.wanted.create(Work(shown=False)).model  # a bar may be shown already
        return model

    def rewritten(self) -> torch.nn.Module:
        """The rewrite of a separate original: only its plan matters, which is applied for each seed.

        Weights may affect the plan (group-count measures gains), so they are the same whenever the command is repeated.
        """
        wanted = self.wanted
        with random_state_kept():
            seed_all(0)
            model = self.original()
        return rewriter.rewrite(
            model, wanted.resolved, input_size=self.size, only=wanted.only, skip=wanted.skip,
            preserve=wanted.preserve.value, all_ranks=False,
        )  # fmt: skip

    def _size(self, images: tuple[int, int] | None) -> tuple[int, ...]:
        """Return the size of small images if the model runs on it, built for it if necessary; else the model's own."""
        entry = self.wanted.create(Work(), meta=True)
        if images is not None and max(images) <= _SMALL:
            side = max(_LEAST, *images)
            for options in ({}, {"img_size": side}):
                if self._runs(options, side):
                    self.wanted.of_data |= options
                    return side, side
        if entry.input_size is None:
            raise rewriter.InputError(f"{self.wanted.name} names no input size; give --input-size")
        return tuple(entry.input_size)

    def _runs(self, options: dict[str, Any], side: int) -> bool:
        from rewriter import zoo

        try:
            with torch.device("meta"):
                given = self.wanted.of_data | options | self.wanted.model_kwargs
                model = zoo.create(self.wanted.name, **given).model
            rewriter.trace(model, input_size=(side, side))
        except (RewriterError, zoo.ModelZooError):
            return False
        return True

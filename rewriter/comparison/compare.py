"""``rewriter.compare``: did a rewrite help, hurt or change nothing, on these data?"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rewriter.analysis.trained_weights import carries_trained_weights
from rewriter.api import rewrite, trace
from rewriter.comparison.data import Equivalence, Trained, Training
from rewriter.comparison.equivalence import equivalence, trained
from rewriter.comparison.experiment import run_all
from rewriter.comparison.fitting import fitted
from rewriter.comparison.idle import why_idle
from rewriter.comparison.loading import Data, Preprocessing, first_batch, load, of_user, pair_of
from rewriter.comparison.notes import notes_of
from rewriter.comparison.place import accelerated, errors_shared, repeatable
from rewriter.comparison.question import described, question_of, versions
from rewriter.comparison.randomness import batches
from rewriter.comparison.recipe import Recipe, resolve_recipe
from rewriter.comparison.reports import write_reports
from rewriter.comparison.result import Comparison
from rewriter.comparison.scoring import Loss, Scoring, scoring_of
from rewriter.comparison.subject import Change, Make, Subject, alone, changes, name_of, passes_of
from rewriter.comparison.training import Setting, check_optimizer
from rewriter.data.source import Source, Task
from rewriter.errors import ComparisonError, DataError, InputError
from rewriter.layers.registry import calibrated_layers
from rewriter.model.copying import copy_model
from rewriter.model.random_state import random_state_kept, seed_all
from rewriter.planning.ranks import on_its_own
from rewriter.planning.record import records_of
from rewriter.planning.remembered_inputs import inputs_of_rewrite

EQUIVALENCE, TRAINED, TRAINING = LEVELS = ("equivalence", "trained", "training")
INSTALL = 'pip install "rewriter[compare]"'
_NEEDED = ("accelerate", "torchmetrics", "timm", "scipy", "matplotlib")
_OF_OPTIMIZER = frozenset({"optimizer", "lr", "weight_decay"})
_MOST_IMAGES = 256
"""Images whose outputs are compared bit by bit; a difference shows in the first batch if there is one."""


def compare(
    before: nn.Module | Make,
    after: nn.Module | Change,
    data: Any = "photos",
    *,
    name: str | None = None,
    levels: Sequence[str] | None = None,
    budget: str | Recipe = "small",
    loss: Loss | None = None,
    metric: Any = None,
    optimizer: Any = None,
    task: str | None = None,
    num_classes: int | None = None,
    input_size: Any = None,
    device: str | None = None,
    directory: str | Path | None = None,
    restart: bool = False,
    progress: bool = True,
    root: str | Path | None = None,
    download: bool = False,
    **changes_of_recipe: Any,
) -> Comparison:
    """Compare a model before and after a rewrite, at up to three levels.

    1. ``"equivalence"``: eval outputs on real images, each pass alone and all together.
    2. ``"trained"``: metrics of a model with trained weights, and what it says of each image.
    3. ``"training"``: both trained with the same seeds, initial weights, data order and augmentation.

    Models, data and the process's random numbers are left as they are. Everything but times and memory is the same
    whenever the same call is made on the same machine.

    Args:
        before: the original, or a function that makes one; with a function each seed has other initial weights.
        after: the rewritten model, or a function of an original. ``rewriter.rewrite`` itself is told the size of the
            images; a function of your own tells it: ``lambda model: rewriter.rewrite(model, [...], input_size=32)``.
        data: the name of a source (docs/data.md), or the user's own ``(train, test)``: data loaders, data sets or lists
            of batches ``(images, targets)``; one of them alone is only tested on.
        name: of the model, for the report; that of its class if None.
        levels: which of the three; None for all that fit: the second if the weights are trained, the third if there are
            training data and the rewrite found something to change.
        budget: ``"smoke"``, ``"small"``, ``"full"`` or a :class:`rewriter.Recipe`.
        loss: ``loss(output, target)``; that of the task if None.
        metric: a ``torchmetrics.Metric`` or a dict of them, the first of which is judged; updated with logits and
            targets.
        optimizer: ``optimizer(model)``, or a name of ``timm.optim``, in place of the recipe's.
        task, num_classes: of the user's own data: ``"classification"``, ``"multi-label"`` or ``"segmentation"``.
        input_size: an int, ``(H, W)`` or ``(C, H, W)`` of the images of a source; None takes what the model was
            rewritten for, or what its configuration says.
        device: such as ``"cpu"``; None for what accelerate finds.
        directory: a line for each finished run is kept there, and the same call goes on with them; reports and plots
            are written there at the end.
        restart: train again what is there.
        progress: show a progress bar on a terminal, elsewhere a line for each finished run, on standard error.
        root, download: where the files of a source are, and whether to fetch them.
        **changes_of_recipe: fields of the recipe: ``seeds=10``, ``epochs=5``, ``lr=1e-2`` …

    Raises:
        ComparisonError: there is nothing to compare, an option is wrong, or the directory cannot be used.
        DataError: the data are not there, or do not fit the model.
        ModelError, TraceError: a model cannot be used as it is.
        ReportError: reports cannot be written; what was found is its ``comparison``.
    """
    _check_installed()
    _check_levels(levels)
    if isinstance(optimizer, str):
        changes_of_recipe["optimizer"], optimizer = optimizer, None
    recipe = resolve_recipe(budget, changes_of_recipe)
    check_optimizer(optimizer, recipe)
    with accelerated(recipe.mixed_precision, device) as accelerator, random_state_kept():
        seed_all(0)
        # each process makes the models of its own seeds
        with errors_shared(accelerator), repeatable(accelerator.device), on_its_own():
            # of a rewrite that is yet to be made the images are those of the data
            subject = Subject(before, copy_model if after is rewrite else after)
            first = subject.pair(0)
            found = _data(data, first, levels, recipe, input_size, task, num_classes, root, download)
            if after is rewrite:
                subject = Subject(before, partial(rewrite, **_inputs_of_rewrite(found)))
                first = subject.pair(0)
            _check_effect(changes_of_recipe, found, optimizer)
            asked = _levels(levels, first[0], found)
            scoring = scoring_of(found.task, found.num_classes, found.ignore_index, loss, metric)
            scored = asked != (EQUIVALENCE,)
            scoring, found = fitted(
                scoring, first, found, accelerator.device, task_given=task is not None, scored=scored
            )
            idle = ""
            if TRAINING in asked:
                _ = scoring.judged  # whether the metric can be
                idle = why_idle(*first, found, accelerator.device, optimizer)
            if idle and levels is None:
                asked = tuple(level for level in asked if level != TRAINING)
        judge = _Judge(subject, first, found, scoring, recipe, accelerator, optimizer)
        place = None if directory is None else Path(directory)
        with repeatable(accelerator.device):
            result = judge.of_one_process(asked)
            training = judge.training(place, restart, progress) if TRAINING in asked else None
        notes = notes_of(
            subject, first, found, idle, seeds=recipe.seeds, trained=TRAINING in asked, optimizer=optimizer,
            levels_given=levels is not None,
        )  # fmt: skip
        comparison = Comparison(
            name or name_of(first[0]), changes(first[1]), str(found), *result, training, tuple(notes)
        )
        with errors_shared(accelerator):
            if place is not None and accelerator.is_main_process:
                write_reports(comparison, place)
    return comparison


@dataclass(frozen=True)
class _Judge:
    subject: Subject
    first: tuple[nn.Module, nn.Module]
    data: Data
    scoring: Scoring
    recipe: Recipe
    accelerator: Any
    optimizer: Any

    def of_one_process(self, asked: Sequence[str]) -> tuple[tuple[Equivalence, ...], Trained | None]:
        """What does not need training: by the first process, for all."""
        from accelerate.utils import broadcast_object_list

        found: list[Any] = [(), None]
        with errors_shared(self.accelerator):
            if self.accelerator.is_main_process:
                for model in self.first:
                    model.to(self.accelerator.device)
                found = [
                    self._equivalence() if EQUIVALENCE in asked else (),
                    self._trained() if TRAINED in asked else None,
                ]
                for model in self.first:
                    model.to("cpu")
        if self.accelerator.num_processes > 1:
            broadcast_object_list(found)
        return found[0], found[1]

    def _equivalence(self) -> tuple[Equivalence, ...]:
        before, after = self.first
        images = list(_images(self.data))
        found = [
            equivalence(name, before, model, images, self.scoring)
            for name, model in {**alone(before, after), "all": after}.items()
        ]
        names = passes_of(after)
        if len(names) == 1:  # the culprit has a name also where it is the only one
            found.insert(0, replace(found[0], name=names[0]))
        return tuple(found)

    def _trained(self) -> Trained:
        found = trained(*self.first, self.data, self.scoring)
        return replace(found, as_created=not carries_trained_weights(self.first[0]))

    def training(self, directory: Path | None, restart: bool, progress: bool) -> Training:
        """Both arms with every seed."""
        setting = Setting(self.data, self.scoring, self.recipe, self.accelerator, self.optimizer)
        with errors_shared(self.accelerator):
            question = question_of(
                self.first, self.data, self.scoring, self.recipe, self.optimizer, self.accelerator.device.type
            )
        runs = run_all(self.subject, setting, question, directory=directory, restart=restart, progress=progress)
        metric, higher_is_better = self.scoring.judged
        seeds = tuple(range(self.recipe.seeds))
        return Training(
            metric, higher_is_better, seeds, runs, self._recipe(), self._environment(), self.data.test_images
        )

    def _recipe(self) -> dict[str, Any]:
        """The fields that had an effect, with the numbers of images that there were, and what was the user's own."""
        unused = self.data.without_effect | (_OF_OPTIMIZER if self.optimizer is not None else frozenset())
        if not calibrated_layers(self.first[1]):
            unused |= {"calibration_batches"}
        own = {"optimizer": self.optimizer, "loss": self.scoring.own_loss, "metric": self.scoring.own_metrics}
        fields = self.recipe.to_data() | {"train_images": self.data.train_images, "test_images": self.data.test_images}
        used = {field: value for field, value in fields.items() if field not in unused}
        return used | {what: f"your own {described(value)}" for what, value in own.items() if value is not None}

    def _environment(self) -> dict[str, Any]:
        device = self.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        return {
            "device": name, "threads": torch.get_num_threads(), "processes": self.accelerator.num_processes,
            **versions(),
        }  # fmt: skip


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ComparisonError(f"compare needs {', '.join(missing)}; install it with: {INSTALL}")


def _check_effect(changes_of_recipe: Mapping[str, Any], data: Data, optimizer: Any) -> None:
    """Refuse what was asked for and would do nothing."""
    for names, owner in ((data.without_effect, "data loaders"), (_OF_OPTIMIZER if optimizer else (), "optimizer")):
        for name in changes_of_recipe:
            if name in names:
                raise ComparisonError(f"{name}: it has no effect with your own {owner}; set it there")


def _check_levels(levels: Sequence[str] | None) -> None:
    if levels is not None and (isinstance(levels, str) or not levels or not set(levels) <= set(LEVELS)):
        raise ComparisonError(f"levels: expected a list of {', '.join(LEVELS)}, found {levels!r}")


def _data(
    data: Any,
    first: tuple[nn.Module, nn.Module],
    levels: Sequence[str] | None,
    recipe: Recipe,
    input_size: Any,
    task: str | None,
    num_classes: int | None,
    root: str | Path | None,
    download: bool,
) -> Data:
    if not isinstance(data, (str, Source)):
        if task is not None and task not in list(Task):
            raise DataError(f"task: expected one of {', '.join(Task)}, found {task!r}")
        return of_user(data, task, num_classes, recipe)
    if isinstance(data, str):
        from rewriter.data import open_source

        data = open_source(data, root=root, download=download)
    training = data.train is not None if levels is None else TRAINING in levels
    return load(data, _preprocessing(*first, data, input_size), recipe, training=training)


def _inputs_of_rewrite(data: Data) -> dict[str, Any]:
    """What the models will see, for :func:`rewriter.rewrite`; empty where there is no test image."""
    batch = first_batch(data.test)
    if batch is None:
        return {}
    images, _ = batch
    return {"input_size": tuple(images.shape[1:])} if images.dim() == 4 else {"example_inputs": (images[:2],)}


def _preprocessing(before: nn.Module, after: nn.Module, source: Source, input_size: Any) -> Preprocessing:
    configuration = getattr(before, "pretrained_cfg", None) or {}
    channels, *size = _image_size(before, after, source, input_size)
    known = {name: tuple(configuration[name]) for name in ("mean", "std") if name in configuration}
    return Preprocessing(
        channels,
        (size[0], size[1]),
        **known,
        interpolation=configuration.get("interpolation") or "bilinear",
        crop=configuration.get("crop_pct") or 1.0 if source.size is None else 1.0,
    )


def _image_size(before: nn.Module, after: nn.Module, source: Source, input_size: Any) -> tuple[int, int, int]:
    """What was asked for, what the model was rewritten for, what its configuration says, or the size of the images."""
    inputs = inputs_of_rewrite(after) if input_size is None and records_of(after) else None
    if inputs is not None and inputs.image_size is not None:
        return inputs.image_size
    try:
        found = trace(before, input_size=input_size).inputs.image_size
    except InputError:
        if input_size is not None or source.size is None:
            raise
        found = trace(before, input_size=source.size).inputs.image_size
    assert found is not None
    return found


def _levels(levels: Sequence[str] | None, before: nn.Module, data: Data) -> tuple[str, ...]:
    if levels is None:
        fits = {EQUIVALENCE: True, TRAINED: carries_trained_weights(before), TRAINING: data.train is not None}
        return tuple(level for level in LEVELS if fits[level])
    if TRAINING in levels and data.train is None:
        raise DataError(f"{data.name} has no training data: give (train, test)")
    return tuple(level for level in LEVELS if level in levels)


def _images(data: Data) -> Iterator[torch.Tensor]:
    seen = 0
    for batch in batches(data.test, 0, 0):
        images, _ = pair_of(batch)
        yield images
        seen += len(images)
        if seen >= _MOST_IMAGES:
            return

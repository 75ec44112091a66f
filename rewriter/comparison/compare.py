"""``rewriter.compare``: did a rewrite help, hurt or change nothing, on these data?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from rewriter.analysis.trained_weights import carries_trained_weights
from rewriter.api import rewrite, trace
from rewriter.comparison.devices import accelerated, errors_shared, repeatable
from rewriter.comparison.equivalence import equivalence, trained
from rewriter.comparison.experiment import run_all
from rewriter.comparison.findings import ALL, Equivalence, Trained, Training
from rewriter.comparison.identity import described, identity_of, versions_of_libraries
from rewriter.comparison.loading import Data, Preprocessing, data_of_source, data_of_user, first_batch, pair_of
from rewriter.comparison.model_pairs import (
    ChangeModel,
    MakeModel,
    ModelPairs,
    changes,
    each_pass_alone,
    name_of,
    passes_of,
)
from rewriter.comparison.notes import notes_of, why_without_effect
from rewriter.comparison.randomness import batches
from rewriter.comparison.recipe import Recipe, resolve_recipe
from rewriter.comparison.result import Comparison
from rewriter.comparison.run_directory import write_reports
from rewriter.comparison.scoring import Loss, fitted_to_models, scoring_of
from rewriter.comparison.training import Setting, check_optimizer
from rewriter.data import open_source
from rewriter.data.source import Source
from rewriter.errors import ComparisonError, DataError, InputError
from rewriter.layers.registry import calibrated_layers
from rewriter.model.copying import copy_model
from rewriter.model.random_state import random_state_kept, seed_all
from rewriter.planning.ranks import on_its_own
from rewriter.planning.record import records_of
from rewriter.planning.remembered_inputs import inputs_of_rewrite

EQUIVALENCE, TRAINED, TRAINING = LEVELS = ("equivalence", "trained", "training")
_OF_OPTIMIZER = frozenset({"optimizer", "lr", "weight_decay"})
_MOST_IMAGES = 256
"""Images whose outputs are compared bit for bit; any difference shows in the first batch."""


def compare(
    before: nn.Module | MakeModel,
    after: nn.Module | ChangeModel,
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
    2. ``"trained"``: metrics of a model with trained weights, and its prediction for each image.
    3. ``"training"``: both trained with the same seeds, initial weights, data order and augmentation.

    Models, data and the random state of the process are left unchanged. Repeating a call on the same machine
    reproduces everything except times and memory.

    Args:
        before: the original, or a function that makes one; with a function each seed has other initial weights.
        after: the rewritten model, or a function of an original. ``rewriter.rewrite`` itself is passed the size of the
            images; a function of your own sets it: ``lambda model: rewriter.rewrite(model, [...], input_size=32)``.
        data: the name of a source (docs/data.md), or your own ``(train, test)``: data loaders, data sets or lists of
            batches ``(images, targets)``; one of them alone is only used for testing.
        name: of the model, for the report; None uses the name of its class.
        levels: which of the three; None for all that apply: the second if the weights are trained, the third if there
            are training data and the rewrite found something to change.
        budget: ``"smoke"``, ``"small"``, ``"full"`` or a :class:`rewriter.Recipe`.
        loss: ``loss(output, target)``; None uses the task's.
        metric: a ``torchmetrics.Metric`` or a dict of them, the first of which is judged; updated with logits and
            targets.
        optimizer: ``optimizer(model)``, or a name of ``timm.optim``, in place of the recipe's.
        task, num_classes: of your own data: ``"classification"``, ``"multi-label"`` or ``"segmentation"``.
        input_size: an int, ``(H, W)`` or ``(C, H, W)`` of the images of a source; None uses the size the model was
            rewritten for, or that of its configuration.
        device: such as ``"cpu"``; None lets accelerate choose.
        directory: stores a line for each finished run, so that the same call resumes; reports and plots are written
            there at the end.
        restart: train finished runs again.
        progress: show a progress bar on a terminal, elsewhere a line for each finished run, on standard error.
        root, download: where the files of a source are, and whether to download them.
        **changes_of_recipe: fields of the recipe: ``seeds=10``, ``epochs=5``, ``lr=1e-2`` …

    Raises:
        ComparisonError: there is nothing to compare, an option is invalid, or the directory cannot be used.
        DataError: the data are missing, or do not fit the model.
        ModelError, TraceError: a model cannot be used as it is.
        ReportError: reports cannot be written; its ``comparison`` holds the results.

    Example:
        >>> original = timm.create_model("test_resnet", drop_rate=0.2)
        >>> images = [(torch.randn(4, 3, 64, 64), torch.arange(4))]
        >>> found = rewriter.compare(
        ...     original, rewriter.rewrite(original, "dropout"), images, levels=["equivalence"], progress=False
        ... )
        >>> found.equivalence[-1].identical
        True
    """
    if levels is not None and (isinstance(levels, str) or not levels or not set(levels) <= set(LEVELS)):
        raise ComparisonError(f"levels: expected a list of {', '.join(LEVELS)}, found {levels!r}")
    if isinstance(optimizer, str):
        changes_of_recipe["optimizer"], optimizer = optimizer, None
    recipe = resolve_recipe(budget, changes_of_recipe)
    check_optimizer(optimizer, recipe)
    with accelerated(recipe.mixed_precision, device) as accelerator, random_state_kept():
        seed_all(0)
        # each process makes the models of its own seeds
        with errors_shared(accelerator), repeatable(accelerator.device), on_its_own():
            # for a rewrite that is yet to be made, the images are those of the data
            models = ModelPairs(before, copy_model if after is rewrite else after)
            first = models.pair(0)
            source = open_source(data, root=root, download=download) if isinstance(data, str) else data
            if isinstance(source, Source):
                trains = source.train is not None if levels is None else TRAINING in levels
                found = data_of_source(source, preprocessing_of(*first, source, input_size), recipe, training=trains)
            else:
                found = data_of_user(source, task, num_classes, recipe)
            if after is rewrite:
                models = ModelPairs(before, partial(rewrite, **_inputs_of_rewrite(found)))
                first = models.pair(0)
            _check_effect(changes_of_recipe, found, optimizer)
            asked = _levels(levels, first[0], found)
            scoring = scoring_of(found.task, found.num_classes, found.ignore_index, loss, metric)
            scored = asked != (EQUIVALENCE,)
            scoring, found = fitted_to_models(
                scoring, first, found, accelerator.device, task_given=task is not None, scored=scored
            )
            without_effect = ""
            if TRAINING in asked:
                _ = scoring.judged  # check that the metric has a direction
                without_effect = why_without_effect(*first, found, accelerator.device, optimizer)
            if without_effect and levels is None:
                asked = tuple(level for level in asked if level != TRAINING)
        setting = Setting(found, scoring, recipe, accelerator, optimizer)
        place = None if directory is None else Path(directory)
        with repeatable(accelerator.device):
            outputs = _without_training(first, setting, asked)
            training = _training(models, first, setting, place, restart, progress) if TRAINING in asked else None
        notes = notes_of(
            models, first, found, without_effect, seeds=recipe.seeds, trained=TRAINING in asked, optimizer=optimizer,
            levels_given=levels is not None,
        )  # fmt: skip
        comparison = Comparison(
            name or name_of(first[0]), changes(first[1]), str(found), *outputs, training, tuple(notes)
        )
        with errors_shared(accelerator):
            if place is not None and accelerator.is_main_process:
                write_reports(comparison, place)
    return comparison


def _without_training(
    models: tuple[nn.Module, nn.Module], setting: Setting, asked: Sequence[str]
) -> tuple[tuple[Equivalence, ...], Trained | None]:
    """Compare equivalence and trained weights, in the first process for all."""
    before, after = models
    accelerator = setting.accelerator
    found: list[Any] = [(), None]
    with errors_shared(accelerator):
        if accelerator.is_main_process:
            for model in models:
                model.to(accelerator.device)
            if EQUIVALENCE in asked:
                found[0] = _equivalence(before, after, setting)
            if TRAINED in asked:
                of_weights = trained(before, after, setting.data, setting.scoring)
                found[1] = replace(of_weights, as_created=not carries_trained_weights(before))
            for model in models:
                model.to("cpu")
    broadcast_object_list(found)
    return found[0], found[1]


def _equivalence(before: nn.Module, after: nn.Module, setting: Setting) -> tuple[Equivalence, ...]:
    images: list[torch.Tensor] = []
    for batch in batches(setting.data.test, 0, 0):
        images.append(pair_of(batch)[0])
        if sum(map(len, images)) >= _MOST_IMAGES:
            break
    rewritten = {**each_pass_alone(before, after), ALL: after}
    found = [equivalence(name, before, model, images, setting.scoring) for name, model in rewritten.items()]
    names = passes_of(after)
    if len(names) == 1:  # name the pass even if it is the only one
        found.insert(0, replace(found[0], name=names[0]))
    return tuple(found)


def _training(
    models: ModelPairs, first: tuple[nn.Module, nn.Module], setting: Setting, directory: Path | None, restart: bool,
    progress: bool,
) -> Training:  # fmt: skip
    """Train both arms with every seed; record the recipe's effective fields and the user's own objects."""
    data, scoring, recipe, device = setting.data, setting.scoring, setting.recipe, setting.accelerator.device
    with errors_shared(setting.accelerator):
        identity = identity_of(first, data, scoring, recipe, setting.optimizer, device.type)
    runs = run_all(models, setting, identity, directory=directory, restart=restart, progress=progress)
    unused = data.without_effect | (_OF_OPTIMIZER if setting.optimizer is not None else frozenset())
    unused |= frozenset() if calibrated_layers(first[1]) else {"calibration_batches"}
    fields = recipe.to_data() | {"train_images": data.train_images, "test_images": data.test_images}
    used = {field: value for field, value in fields.items() if field not in unused}
    own = {"optimizer": setting.optimizer, "loss": scoring.own_loss, "metric": scoring.own_metrics}
    used |= {what: f"your own {described(value)}" for what, value in own.items() if value is not None}
    environment = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(), "processes": setting.accelerator.num_processes, **versions_of_libraries(),
    }  # fmt: skip
    return Training(*scoring.judged, tuple(range(recipe.seeds)), runs, used, environment, data.test_images)


def _check_effect(changes_of_recipe: Mapping[str, Any], data: Data, optimizer: Any) -> None:
    """Refuse requests that would have no effect."""
    for names, owner in ((data.without_effect, "data loaders"), (_OF_OPTIMIZER if optimizer else (), "optimizer")):
        for name in changes_of_recipe:
            if name in names:
                raise ComparisonError(f"{name}: it has no effect with your own {owner}; set it there")


def _inputs_of_rewrite(data: Data) -> dict[str, Any]:
    """Return the inputs of the models, for :func:`rewriter.rewrite`; empty if there is no test image."""
    batch = first_batch(data.test)
    if batch is None:
        return {}
    images, _ = batch
    return {"input_size": tuple(images.shape[1:])} if images.dim() == 4 else {"example_inputs": (images[:2],)}


def preprocessing_of(before: nn.Module, after: nn.Module, source: Source, input_size: Any) -> Preprocessing:
    """Return how ``before`` and ``after`` expect the images of ``source``, from the configuration of ``before``."""
    configuration = getattr(before, "pretrained_cfg", None) or {}
    channels, height, width = _image_size(before, after, source, input_size)
    mean, std = (tuple(configuration.get(name, ())) for name in ("mean", "std"))
    crop = configuration.get("crop_pct") or 1.0 if source.size is None else 1.0
    return Preprocessing(channels, (height, width), mean, std, configuration.get("interpolation") or "bilinear", crop)


def _image_size(before: nn.Module, after: nn.Module, source: Source, input_size: Any) -> tuple[int, int, int]:
    """Return the size requested, the one rewritten for, the configuration's, or that of the images, in this order."""
    inputs = inputs_of_rewrite(after) if input_size is None and records_of(after) else None
    if inputs is None or inputs.image_size is None:
        try:
            inputs = trace(before, input_size=input_size).inputs
        except InputError:
            if input_size is not None or source.size is None:
                raise
            inputs = trace(before, input_size=source.size).inputs
    assert inputs.image_size is not None
    return inputs.image_size


def _levels(levels: Sequence[str] | None, before: nn.Module, data: Data) -> tuple[str, ...]:
    if levels is not None and TRAINING in levels and data.train is None:
        raise DataError(f"{data.name} has no training data: give (train, test)")
    if levels is None:
        fits = {EQUIVALENCE: True, TRAINED: carries_trained_weights(before), TRAINING: data.train is not None}
        levels = [level for level, is_fit in fits.items() if is_fit]
    return tuple(level for level in LEVELS if level in levels)

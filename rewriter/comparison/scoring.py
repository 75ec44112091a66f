"""Score a model's output: loss, metrics and predictions, for each task or as the user defines them.

Whether models, data, loss and metrics fit each other is checked on one batch, before anything is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import Metric, MetricCollection, classification

from rewriter.comparison.devices import deterministic
from rewriter.comparison.findings import ARMS
from rewriter.comparison.loading import Data, first_batch
from rewriter.data.source import Task
from rewriter.errors import ComparisonError, DataError
from rewriter.model.copying import copy_model
from rewriter.model.random_state import random_state_kept
from rewriter.model.state import state_kept

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class Scoring:
    """Loss, metrics and predictions of one task.

    Attributes:
        task: what the targets are.
        num_classes: the number of classes.
        ignore_index: pixels of this value are ignored; None if there are none.
        own_loss: ``loss(output, target)`` on the model's output; None for cross-entropy.
        own_metrics: instances of ``torchmetrics.Metric`` by name, the first is judged; None for those of the task.
        values: whether outputs are regression values, not class scores; loss and metrics are then the user's own.
    """

    task: Task
    num_classes: int
    ignore_index: int | None = None
    own_loss: Loss | None = None
    own_metrics: Mapping[str, Any] | None = None
    values: bool = False

    def loss(self, output: Any, target: Any) -> torch.Tensor:
        """Return a scalar loss.

        Raises:
            ComparisonError: the user's own loss returns something else.
            DataError: model and data differ in the number of classes.
        """
        if self.own_loss is not None:
            loss = self.own_loss(output, target)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                found = f"one of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else f"{loss!r:.80}"
                raise ComparisonError(f"loss: expected a function that gives a tensor of one number, found {found}")
            return loss
        logits = self.logits(output, target)
        target = target if target.is_floating_point() else target.long()
        if self.task is Task.MULTI_LABEL:
            return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
        return F.cross_entropy(logits, target, ignore_index=-100 if self.ignore_index is None else self.ignore_index)

    def on(self, device: torch.device) -> Scoring:
        """Return a copy whose loss, if it is a module, is copied to ``device`` with its weights and state."""
        own = self.own_loss
        return replace(self, own_loss=copy_model(own).to(device)) if isinstance(own, nn.Module) else self

    def logits(self, output: Any, target: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits in a model's output, ``(N, classes)`` or ``(N, classes, H, W)`` at the target's size."""
        if self.values:
            return tensor_of(output)
        logits = tensor_of(output, 2)
        dimensions = 4 if self.task is Task.SEGMENTATION else 2
        if logits.dim() != dimensions or (self.num_classes and logits.shape[1] != self.num_classes):
            raise DataError(
                f"{self.task}: expected an output of {dimensions} dimensions, the second of the data's "
                f"{self.num_classes or ''} classes, the model gives one of shape {tuple(logits.shape)}. Give a model "
                "that is made for this task and for so many classes."
            )
        if self.task is Task.SEGMENTATION and target is not None and logits.shape[2:] != target.shape[1:]:
            logits = F.interpolate(logits, tuple(target.shape[1:]), mode="bilinear", align_corners=False)
        return logits

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the predicted classes: ``(N)``, ``(N, H, W)``, or for multi-label ``(N, classes)`` of bool.

        If outputs are values, these themselves.
        """
        if self.values:
            return logits
        if logits.shape[1] == 1 and self.task is not Task.MULTI_LABEL:  # one score for two classes
            return (logits > 0).squeeze(1)
        return logits > 0 if self.task is Task.MULTI_LABEL else logits.argmax(1)

    def check_targets(self, targets: torch.Tensor, where: str) -> None:
        """Refuse targets that do not fit the task; with the user's own loss they are not checked.

        Raises:
            DataError: with ``where``, their origin.
        """
        if self.own_loss is not None or not targets.numel():
            return
        dimensions = {Task.CLASSIFICATION: 1, Task.MULTI_LABEL: 2, Task.SEGMENTATION: 3}[self.task]
        numbers, shape = self.task is not Task.MULTI_LABEL, tuple(targets.shape)
        if targets.dim() != dimensions or (numbers and (targets.is_floating_point() or targets.dtype == torch.bool)):
            raise DataError(
                f"{where}, {self.task}: expected targets of {dimensions} dimensions, the first of images"
                f"{', numbers of classes (integers)' if numbers else ''}; found {targets.dtype} of shape {shape}. Give "
                "task=, or a loss= and metric= of your own."
            )
        counted = targets if self.ignore_index is None else targets[targets != self.ignore_index]
        if not counted.numel():
            return
        low, high = counted.min().item(), counted.max().item()
        if numbers and not (low >= 0 and high < self.num_classes):
            raise DataError(
                f"{where}: found class {low if low < 0 else high} among the targets, expected 0 to "
                f"{self.num_classes - 1} (the model has {self.num_classes} classes). Give a model with more, mend the "
                "targets, or give loss= and metric= that ignore this one."
            )
        if not numbers and (shape[1] != self.num_classes or not (low >= 0 and high <= 1)):
            raise DataError(
                f"{where}: expected targets from 0 to 1 of shape (N, {self.num_classes}), found {low:g} to {high:g} of "
                f"shape {shape}"
            )

    def metrics(self, device: torch.device | None = None) -> dict[str, Any]:
        """Return fresh metrics by name, the judged one first; see :meth:`update`."""
        found = {name: metric.clone() for name, metric in (self.own_metrics or self._metrics_of_task()).items()}
        for metric in found.values():
            metric.reset()
            for part in metric.modules():  # a metric may be composed of others: 1 - MulticlassAccuracy(10)
                if isinstance(part, Metric):
                    part.distributed_available_fn = _alone  # other processes train other runs
            metric.to(device or "cpu")
        return found

    def update(self, metrics: Mapping[str, Any], output: Any, targets: torch.Tensor) -> None:
        """Update ``metrics`` with one batch: logits in float32, and targets (multi-label as integers).

        Raises:
            ComparisonError: a metric does not accept them.
            DataError: the output does not fit the task.
        """
        logits = self.logits(output, targets).float()
        of_metric = targets.long() if self.task is Task.MULTI_LABEL else targets
        for name, metric in metrics.items():
            try:
                with deterministic(False):  # else torchmetrics counts in memory of pixels times the classes squared
                    metric.update(logits, of_metric)
            except (RuntimeError, ValueError, TypeError) as error:
                raise ComparisonError(
                    f"metric {name!r} cannot be updated with an output of shape {tuple(logits.shape)} and "
                    f"{of_metric.dtype} targets of shape {tuple(of_metric.shape)}: {error}"
                ) from error

    def _metrics_of_task(self) -> Mapping[str, Metric]:
        classes, ignored = self.num_classes, self.ignore_index
        accuracy = partial(classification.MulticlassAccuracy, classes, average="micro")
        if self.task is Task.MULTI_LABEL:
            mean_precision = classification.MultilabelAveragePrecision(classes)
            return {"mAP": mean_precision, "accuracy": classification.MultilabelAccuracy(classes, average="micro")}
        if self.task is Task.SEGMENTATION:
            overlap = classification.MulticlassJaccardIndex(classes, ignore_index=ignored)
            return {"mIoU": overlap, "pixel accuracy": accuracy(ignore_index=ignored)}
        return {"top1": accuracy()} | ({"top5": accuracy(top_k=5)} if classes > 5 else {})

    @property
    def judged(self) -> tuple[str, bool]:
        """Name of the judged metric, and whether higher is better.

        Raises:
            ComparisonError: the metric does not say.
        """
        name, metric = next(iter(self.metrics().items()))
        if metric.higher_is_better is None:
            raise ComparisonError(
                f"metric {name!r} does not say whether higher values are better: give one of a class that says "
                "higher_is_better = True or False, as docs/compare.md shows"
            )
        return name, metric.higher_is_better


def computed(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of metrics by name, rounded to float32 precision: 0.91, not 0.9100000262260437.

    Raises:
        ComparisonError: a value is not a number.
    """
    found = {}
    for name, metric in metrics.items():
        with deterministic(False):
            value = metric.compute()
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            exact = value.detach().cpu().reshape(()).numpy()[()]
            found[name] = float(str(exact)) if value.dtype is torch.float32 else float(value)
        elif isinstance(value, (int, float)):
            found[name] = float(value)
        else:
            shown = f"{value.numel()} numbers" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ComparisonError(f"metric {name!r}: expected one number, found {shown}; choose an average")
    return found


def scoring_of(
    task: Task, num_classes: int, ignore_index: int | None, loss: Loss | None = None, metric: Any = None
) -> Scoring:
    """Return the scoring of a task, with the user's own loss, and ``Metric``, dict or ``MetricCollection``, if given.

    Raises:
        ComparisonError: they are of other types.
    """
    if loss is not None and (not callable(loss) or isinstance(loss, type)):
        found = f"the class {loss.__name__}; call it first" if isinstance(loss, type) else type(loss).__name__
        raise ComparisonError(f"loss: expected a function of output and target, found {found}")
    if metric is None:
        return Scoring(task, num_classes, ignore_index, loss)
    several = isinstance(metric, (Mapping, MetricCollection))
    named = dict(metric.items()) if several else {type(metric).__name__: metric}
    for name, item in named.items():
        if not isinstance(item, Metric):
            raise ComparisonError(
                f"metric: expected torchmetrics.Metric, found {type(item).__name__} as {name!r}; a function becomes "
                "one as docs/compare.md shows"
            )
    if not named:
        raise ComparisonError("metric: expected at least one torchmetrics.Metric, found an empty collection")
    return Scoring(task, num_classes, ignore_index, loss, named)


def _alone() -> bool:
    return False


def tensor_of(output: Any, dimensions: int = 0) -> torch.Tensor:
    """Return the relevant tensor in a model's output: itself, its ``logits`` or ``out``, or its first.

    Raises:
        ComparisonError: there is none, or it has fewer than ``dimensions`` dimensions.
    """
    values = dict(output) if isinstance(output, Mapping) else {}
    named = values["logits"] if "logits" in values else values.get("out")
    several = output if isinstance(output, (tuple, list)) else []
    candidates = (output, named, getattr(output, "logits", None), *values.values(), *several)
    found = next((item for item in candidates if isinstance(item, torch.Tensor)), None)
    if found is None:
        raise ComparisonError(
            f"the model returns {type(output).__name__}: expected a tensor, or a dict or tuple that holds one. Wrap "
            "the model."
        )
    if found.dim() < dimensions:
        raise ComparisonError(
            f"the model returns a tensor of shape {tuple(found.shape)}: expected logits, of at least two dimensions. "
            "Give loss= and metric=, or wrap the model."
        )
    return found


def fitted_to_models(
    scoring: Scoring, models: tuple[nn.Module, nn.Module], data: Data, device: torch.device, *, task_given: bool,
    scored: bool,
) -> tuple[Scoring, Data]:  # fmt: skip
    """Complete scoring and data with the image shape and, if not given, the model's number of classes.

    Both models are run on the first test batch on ``device``, then moved to the CPU; their state is kept.

    Args:
        scoring, models, data, device: as far as they are known.
        task_given: whether the user named the task; if not, floating-point targets with the user's own loss and metric
            are values, not classes.
        scored: False if only outputs are compared, so that targets do not matter.

    Raises:
        DataError: there are no test images, or a model does not run on them or has other classes.
        ComparisonError: the loss or a metric cannot be used.
    """
    batch = first_batch(data.test)
    if batch is None:
        raise DataError(f"{data.name}: expected test images, found none")
    images, targets = batch
    for arm, model in zip(ARMS, models, strict=True):
        output = _output(arm, model, images.to(device), data)
        if not scored:
            continue
        on_device = targets.to(device)
        scoring = _told(scoring, output, on_device, task_given)
        scoring.check_targets(targets, data.name)
        scoring.update(scoring.metrics(device), output, on_device)
        try:
            scoring.on(device).loss(output, on_device)
        except (RuntimeError, TypeError, IndexError) as error:
            shown = f"of shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
            raise ComparisonError(
                f"loss: it does not take an output {shown} and targets {targets.dtype} of shape "
                f"{tuple(targets.shape)}: {type(error).__name__}: {error}"
            ) from error
    return scoring, replace(data, num_classes=scoring.num_classes, image_shape=tuple(images.shape[1:]))


def _told(scoring: Scoring, output: Any, targets: torch.Tensor, task_given: bool) -> Scoring:
    if scoring.num_classes or scoring.values:
        return scoring
    own = scoring.own_loss is not None and scoring.own_metrics is not None
    if own and not task_given and targets.is_floating_point():
        return replace(scoring, values=True)
    shape = tuple(tensor_of(output, 2).shape)
    wanted = 4 if scoring.task is Task.SEGMENTATION else 2
    if len(shape) != wanted or (shape[1] < 2 and not own and scoring.task is not Task.MULTI_LABEL):
        raise DataError(
            f"{scoring.task}: expected an output of {wanted} dimensions with the classes second, the model gives one "
            f"of shape {shape}. Give task= and num_classes=, or loss= and metric=."
        )
    return replace(scoring, num_classes=shape[1])


def _output(arm: str, model: nn.Module, images: torch.Tensor, data: Data) -> Any:
    model.to(images.device)
    try:
        with random_state_kept(), torch.no_grad(), state_kept(model):
            model.eval()
            return model(in_type_of(model, images))
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        raise DataError(
            f"the model ({arm}) does not run on {data.name}, images of shape {tuple(images.shape)}: "
            f"{type(error).__name__}: {first}"
        ) from error
    finally:
        model.to("cpu")


def in_type_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return a copy of the images, which a model may change in place, in the floating-point dtype of its parameters."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), images)
    return images.to(reference.dtype if images.is_floating_point() else images.dtype, copy=True)

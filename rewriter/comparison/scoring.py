"""What a model's output is worth: loss, metrics and predictions, for each task or as the user wants them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torchmetrics import Metric, MetricCollection, classification

from rewriter.data.source import Task
from rewriter.errors import ComparisonError, DataError
from rewriter.model.copying import copy_model

Loss = Callable[[Any, Any], torch.Tensor]


@dataclass(frozen=True)
class Scoring:
    """Loss, metrics and predictions of one task.

    Attributes:
        task: what the targets are.
        num_classes: how many classes there are.
        ignore_index: pixels of this value count for nothing; None if there are none.
        own_loss: ``loss(output, target)`` on what the model returns; None for cross-entropy.
        own_metrics: instances of ``torchmetrics.Metric`` by name, the first is judged; None for those of the task.
        values: whether outputs are values to be met, not scores of classes; loss and metrics are then the user's own.
    """

    task: Task
    num_classes: int
    ignore_index: int | None = None
    own_loss: Loss | None = None
    own_metrics: Mapping[str, Any] | None = None
    values: bool = False

    def loss(self, output: Any, target: Any) -> torch.Tensor:
        """A scalar.

        Raises:
            ComparisonError: the user's own loss gives something else.
            DataError: the model has another number of classes than the data.
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
        """With a copy of the user's loss, if it is a module: weights on ``device``, and what it keeps of its calls."""
        own = self.own_loss
        return replace(self, own_loss=copy_model(own).to(device)) if isinstance(own, nn.Module) else self

    def logits(self, output: Any, target: torch.Tensor | None = None) -> torch.Tensor:
        """The logits in what a model returns, ``(N, classes)`` or ``(N, classes, H, W)`` of the target's size."""
        if self.values:
            return tensor_of(output)
        logits = logits_of(output)
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
        """The classes predicted: ``(N)``, ``(N, H, W)``, or for several labels ``(N, classes)`` of bool.

        Where outputs are values, these themselves.
        """
        if self.values:
            return logits
        if logits.shape[1] == 1 and self.task is not Task.MULTI_LABEL:  # one score for two classes
            return (logits > 0).squeeze(1)
        return logits > 0 if self.task is Task.MULTI_LABEL else logits.argmax(1)

    def check_targets(self, targets: torch.Tensor, where: str) -> None:
        """Refuse targets that are not what the task says; those of the user's own loss are the user's business.

        Raises:
            DataError: with ``where`` they are from.
        """
        if self.own_loss is not None or not targets.numel():
            return
        dimensions = {Task.CLASSIFICATION: 1, Task.MULTI_LABEL: 2, Task.SEGMENTATION: 3}[self.task]
        numbers = self.task is not Task.MULTI_LABEL
        if targets.dim() != dimensions or (numbers and (targets.is_floating_point() or targets.dtype == torch.bool)):
            raise DataError(
                f"{where}, {self.task}: expected targets of {dimensions} dimensions, the first of images"
                f"{', numbers of classes (integers)' if numbers else ''}; found {targets.dtype} of shape "
                f"{tuple(targets.shape)}. Give task=, or a loss= and metric= of your own."
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
        if not numbers and (targets.shape[1] != self.num_classes or not (low >= 0 and high <= 1)):
            raise DataError(
                f"{where}: expected targets from 0 to 1 of shape (N, {self.num_classes}), found {low:g} to {high:g} of "
                f"shape {tuple(targets.shape)}"
            )

    def metrics(self, device: torch.device | None = None) -> dict[str, Any]:
        """Fresh metrics by name, the one that is judged first; see :meth:`update`."""
        own = self.own_metrics
        found = self._metrics_of_task() if own is None else {name: metric.clone() for name, metric in own.items()}
        for metric in found.values():
            metric.reset()
            for part in metric.modules():  # a metric may be made of others: 1 - MulticlassAccuracy(10)
                if isinstance(part, Metric):
                    part.distributed_available_fn = _alone  # other processes train other runs
            metric.to(device or "cpu")
        return found

    def update(self, metrics: Mapping[str, Any], output: Any, targets: torch.Tensor) -> None:
        """Take one batch into ``metrics``: logits in float32, and targets (of several labels as integers).

        Raises:
            ComparisonError: a metric does not take them.
            DataError: the output does not fit the task.
        """
        logits = self.logits(output, targets).float()
        of_metric = targets.long() if self.task is Task.MULTI_LABEL else targets
        for name, metric in metrics.items():
            try:
                with _counting():
                    metric.update(logits, of_metric)
            except (RuntimeError, ValueError, TypeError) as error:
                raise ComparisonError(
                    f"metric {name!r} cannot be updated with an output of shape {tuple(logits.shape)} and "
                    f"{of_metric.dtype} targets of shape {tuple(of_metric.shape)}: {error}"
                ) from error

    def _metrics_of_task(self) -> dict[str, Any]:
        if self.task is Task.MULTI_LABEL:
            accuracy = classification.MultilabelAccuracy(self.num_classes, average="micro")
            return {"mAP": classification.MultilabelAveragePrecision(self.num_classes), "accuracy": accuracy}
        if self.task is Task.SEGMENTATION:
            options: dict[str, Any] = {"num_classes": self.num_classes, "ignore_index": self.ignore_index}
            pixels = classification.MulticlassAccuracy(**options, average="micro")
            return {"mIoU": classification.MulticlassJaccardIndex(**options), "pixel accuracy": pixels}
        found = {"top1": classification.MulticlassAccuracy(self.num_classes, average="micro")}
        if self.num_classes > 5:
            found["top5"] = classification.MulticlassAccuracy(self.num_classes, average="micro", top_k=5)
        return found

    @property
    def judged(self) -> tuple[str, bool]:
        """Name of the metric that is judged, and whether higher values of it are better.

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
    """The values of metrics by name.

    Raises:
        ComparisonError: one gives anything but a number.
    """
    found = {}
    for name, metric in metrics.items():
        with _counting():
            value = metric.compute()
        if not isinstance(value, (int, float)) and not (isinstance(value, torch.Tensor) and value.numel() == 1):
            shown = f"{value.numel()} numbers" if isinstance(value, torch.Tensor) else type(value).__name__
            raise ComparisonError(f"metric {name!r}: expected one number, found {shown}; choose an average")
        found[name] = _number(value)
    return found


def _number(value: Any) -> float:
    """With the digits that float32 has: 0.91, not 0.9100000262260437."""
    if isinstance(value, torch.Tensor) and value.dtype is torch.float32:
        return float(str(value.detach().cpu().reshape(()).numpy()[()]))
    return float(value)


def scoring_of(
    task: Task, num_classes: int, ignore_index: int | None, loss: Loss | None = None, metric: Any = None
) -> Scoring:
    """The scoring of a task, with the user's own loss, and ``Metric``, dict or ``MetricCollection``, if they are given.

    Raises:
        ComparisonError: they are no such thing.
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


@contextlib.contextmanager
def _counting() -> Iterator[None]:
    """Counts are exact in any order of adding.

    Where torch is told to be deterministic, torchmetrics counts without ``torch.bincount``, in memory of as many
    numbers as there are pixels times the square of the classes.
    """
    strict, warns = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warns)


def _alone() -> bool:
    return False


def tensor_of(output: Any) -> torch.Tensor:
    """The tensor that matters in what a model returns: itself, ``logits`` or ``out`` of it, or its first.

    Raises:
        ComparisonError: there is none.
    """
    values = dict(output) if isinstance(output, Mapping) else {}
    named = values["logits"] if "logits" in values else values.get("out")
    several = output if isinstance(output, (tuple, list)) else []
    for found in (output, named, getattr(output, "logits", None), *values.values(), *several):
        if isinstance(found, torch.Tensor):
            return found
    raise ComparisonError(
        f"the model returns {type(output).__name__}: expected a tensor, or a dict or tuple that holds one. Wrap the "
        "model."
    )


def logits_of(output: Any) -> torch.Tensor:
    """The scores of classes in what a model returns.

    Raises:
        ComparisonError: there are none.
    """
    found = tensor_of(output)
    if found.dim() < 2:
        raise ComparisonError(
            f"the model returns a tensor of shape {tuple(found.shape)}: expected logits, of at least two dimensions. "
            "Give loss= and metric=, or wrap the model."
        )
    return found

"""What a model's output is worth: loss, metrics and predictions, for each task or as the user wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from rewriter.data.source import Task
from rewriter.errors import ComparisonError, DataError

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
    """

    task: Task
    num_classes: int
    ignore_index: int | None = None
    own_loss: Loss | None = None
    own_metrics: Mapping[str, Any] | None = None

    def loss(self, output: Any, target: Any) -> torch.Tensor:
        """A scalar.

        Raises:
            ComparisonError: the user's own loss gives something else.
            DataError: the model has another number of classes than the data.
        """
        if self.own_loss is not None:
            loss = self.own_loss(output, target)
            if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
                raise ComparisonError(
                    f"loss: expected a function that gives a tensor of one number, found {loss!r:.80}"
                )
            return loss
        logits = self.logits(output, target)
        if self.task is Task.MULTI_LABEL:
            return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))
        return F.cross_entropy(logits, target, ignore_index=-100 if self.ignore_index is None else self.ignore_index)

    def logits(self, output: Any, target: torch.Tensor | None = None) -> torch.Tensor:
        """The logits in what a model returns, ``(N, classes)`` or ``(N, classes, H, W)`` of the target's size."""
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
        """The classes predicted: ``(N)``, ``(N, H, W)``, or for several labels ``(N, classes)`` of bool."""
        return logits > 0 if self.task is Task.MULTI_LABEL else logits.argmax(1)

    def metrics(self) -> dict[str, Any]:
        """Fresh metrics by name, the one that is judged first; each is updated with logits and targets."""
        found = self._metrics()
        for metric in found.values():
            metric.distributed_available_fn = _alone  # other processes train other runs
        return found

    def _metrics(self) -> dict[str, Any]:
        if self.own_metrics is not None:
            return {name: metric.clone() for name, metric in self.own_metrics.items()}
        import torchmetrics.classification as of

        if self.task is Task.MULTI_LABEL:
            return {
                "mAP": of.MultilabelAveragePrecision(self.num_classes),
                "accuracy": of.MultilabelAccuracy(self.num_classes, average="micro"),
            }
        if self.task is Task.SEGMENTATION:
            options: dict[str, Any] = {"num_classes": self.num_classes, "ignore_index": self.ignore_index}
            return {
                "mIoU": of.MulticlassJaccardIndex(**options),
                "pixel accuracy": of.MulticlassAccuracy(**options, average="micro"),
            }
        found = {"top1": of.MulticlassAccuracy(self.num_classes, average="micro")}
        if self.num_classes > 5:
            found["top5"] = of.MulticlassAccuracy(self.num_classes, average="micro", top_k=5)
        return found

    @property
    def judged(self) -> tuple[str, bool]:
        """Name of the metric that is judged, and whether higher values of it are better."""
        name, metric = next(iter(self.metrics().items()))
        return name, metric.higher_is_better is not False


def scoring_of(
    task: Task, num_classes: int, ignore_index: int | None, loss: Loss | None = None, metric: Any = None
) -> Scoring:
    """The scoring of a task, with the user's own loss and metrics where they are given.

    Args:
        task, num_classes, ignore_index: of the data.
        loss: ``loss(output, target)``, or None.
        metric: a ``torchmetrics.Metric``, a dict or ``MetricCollection`` of them, or None.

    Raises:
        ComparisonError: they are no such thing.
    """
    if loss is not None and not callable(loss):
        raise ComparisonError(f"loss: expected a function of output and target, found {type(loss).__name__}")
    return Scoring(task, num_classes, ignore_index, loss, None if metric is None else _named(metric))


def _named(metric: Any) -> dict[str, Any]:
    from torchmetrics import Metric, MetricCollection

    found = dict(metric.items()) if isinstance(metric, (Mapping, MetricCollection)) else {type(metric).__name__: metric}
    for name, item in found.items():
        if not isinstance(item, Metric):
            raise ComparisonError(f"metric: expected torchmetrics.Metric, found {type(item).__name__} as {name!r}")
    if not found:
        raise ComparisonError("metric: expected at least one torchmetrics.Metric, found an empty collection")
    return found


def _alone() -> bool:
    return False


def logits_of(output: Any) -> torch.Tensor:
    """The tensor of predictions in what a model returns: itself, ``logits`` or ``out`` of it, or its first.

    Raises:
        ComparisonError: there is none.
    """
    found: Any = output
    if not isinstance(found, torch.Tensor):
        values = dict(found) if isinstance(found, Mapping) else {}
        named = next((values[name] for name in ("logits", "out") if name in values), None)
        rest = [named, getattr(found, "logits", None), *values.values()]
        rest += list(found) if isinstance(found, (tuple, list)) else []
        found = next((item for item in rest if isinstance(item, torch.Tensor)), None)
    if not isinstance(found, torch.Tensor) or found.dim() < 2:
        raise ComparisonError(
            f"the model returns {type(output).__name__}: expected logits, a tensor of at least two dimensions, or a "
            "dict or tuple that holds them. Give loss= and metric=, or wrap the model."
        )
    return found

"""Whether models, data, loss and metrics fit each other: found out on one batch, before anything is trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from rewriter.comparison.findings import ARMS
from rewriter.comparison.loading import Data, first_batch
from rewriter.comparison.scoring import Scoring, logits_of
from rewriter.data.source import Task
from rewriter.errors import ComparisonError, DataError
from rewriter.model.random_state import random_state_kept
from rewriter.model.state import state_kept


def fitted_to_models(
    scoring: Scoring, models: tuple[nn.Module, nn.Module], data: Data, device: torch.device, *, task_given: bool,
    scored: bool,
) -> tuple[Scoring, Data]:  # fmt: skip
    """Scoring and data, with the number of classes that the model gives where it was not told, and the images' shape.

    Both models run on the first test batch on ``device``, and are then on the CPU; their state is kept.

    Args:
        scoring, models, data, device: as far as they are known.
        task_given: whether the user said what the targets are; if not, floating targets with a loss and a metric of
            the user's own are values to be met, not classes.
        scored: False where only outputs are compared, so that targets do not matter.

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
    logits = logits_of(output)
    wanted = 4 if scoring.task is Task.SEGMENTATION else 2
    if logits.dim() != wanted or (logits.shape[1] < 2 and not own and scoring.task is not Task.MULTI_LABEL):
        raise DataError(
            f"{scoring.task}: expected an output of {wanted} dimensions with the classes second, the model gives one "
            f"of shape {tuple(logits.shape)}. Give task= and num_classes=, or loss= and metric=."
        )
    return replace(scoring, num_classes=logits.shape[1])


def _output(arm: str, model: nn.Module, images: torch.Tensor, data: Data) -> Any:
    model.to(images.device)
    try:
        with random_state_kept(), torch.no_grad(), state_kept(model):
            model.eval()
            return model(in_type_of(model, images))
    except Exception as error:
        first = str(error).splitlines()[0] if str(error) else ""
        raise DataError(
            f"the model ({arm}) does not run on {data.name}, images of shape {tuple(images.shape)}: "
            f"{type(error).__name__}: {first}"
        ) from error
    finally:
        model.to("cpu")


def in_type_of(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """A copy of the images, which a model may change in place, in the floating-point type of its parameters."""
    reference = next((p for p in model.parameters() if p.is_floating_point()), images)
    return images.to(reference.dtype if images.is_floating_point() else images.dtype, copy=True)

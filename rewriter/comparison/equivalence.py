"""Compare eval outputs of two models on the same images, and the scores of a trained model before and after."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rewriter.comparison.findings import Equivalence, ImageRow, Trained
from rewriter.comparison.loading import Data, pair_of
from rewriter.comparison.randomness import batches
from rewriter.comparison.scoring import Scoring, computed, in_type_of, tensor_of
from rewriter.data.source import Task
from rewriter.errors import ComparisonError, DataError
from rewriter.model.contents import tensors_held
from rewriter.model.differences import difference
from rewriter.model.random_state import random_state_kept, seed_all
from rewriter.model.state import state_kept

_DISTURBANCE = 0.02
"""Standard deviation of the noise added to weights to reveal what is hidden by those that are zero."""


def equivalence(
    name: str, before: nn.Module, after: nn.Module, images: Iterable[torch.Tensor], scoring: Scoring
) -> Equivalence:
    """Run both models on batches of images in evaluation mode, the original twice; ``name`` says what was applied.

    Raises:
        ComparisonError: the outputs differ in shape.
    """
    count = alike = predicted = 0
    largest = scale = spread = 0.0
    not_finite = [0, 0]
    with _evaluating(before, after):
        for batch in images:
            first, second, other = (_outputs(model, batch) for model in (before, before, after))
            ours, again, theirs = (tensors_held(output) for output in (first, second, other))
            if _shapes(ours) != _shapes(theirs):
                raise ComparisonError(f"the models give outputs of other shapes: {_shapes(ours)} and {_shapes(theirs)}")
            count += len(batch)
            not_finite = [n + _not_finite(of, len(batch)) for n, of in zip(not_finite, (ours, theirs), strict=True)]
            spread, largest = max(spread, _difference(ours, again)), max(largest, _difference(ours, theirs))
            finite = [tensor[tensor.isfinite()] for tensor in ours]
            scale = max(scale, _difference(finite, [torch.zeros(())] * len(finite)))
            if not scoring.values and ours and ours[0].is_floating_point() and tensor_of(first).dim() > 1:
                same = scoring.predictions(tensor_of(first)) == scoring.predictions(tensor_of(other))
                alike, predicted = alike + int(same.sum()), predicted + same.numel()
    identical = None if spread > 0 else largest == 0
    relative = largest / scale if scale else math.inf if largest else 0.0
    agreement = alike / predicted if predicted else None
    return Equivalence(name, count, identical, largest, relative, spread, agreement, tuple(not_finite))


def _shapes(outputs: list[torch.Tensor]) -> list[tuple[int, ...]]:
    return [tuple(output.shape) for output in outputs]


def _not_finite(outputs: list[torch.Tensor], images: int) -> int:
    """Return for how many images some output is not finite."""
    bad = torch.zeros(images, dtype=torch.bool)
    for output in outputs:
        if output.is_floating_point() and output.dim() and len(output) == images:
            bad |= ~output.isfinite()[:, None].flatten(1).all(1).cpu()
    return int(bad.sum())


def _difference(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> float:
    """Return the largest absolute difference of tensors of the same shapes, also of integers."""
    return max((difference(a.double(), b.double()) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def same_in_training(before: nn.Module, after: nn.Module, images: torch.Tensor) -> bool:
    """Whether both give the same outputs bit for bit in training mode, from the same random state.

    So must buffers that both have, such as running statistics. To reveal what is hidden by a weight of zero, such as a
    branch whose last gamma starts there, weights are perturbed slightly, alike in both. Both models are moved to the
    device of the images and back to the CPU; their state is kept.
    """
    return all(_alike_in_training(before, after, images, disturbance) for disturbance in (0.0, _DISTURBANCE))


def _alike_in_training(before: nn.Module, after: nn.Module, images: torch.Tensor, disturbance: float) -> bool:
    outputs, buffers = [], []
    for model in (before, after):
        model.to(images.device)  # before recording its state: buffers moved to another device are new tensors
        weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
        with random_state_kept(), torch.no_grad(), state_kept(model, weights):
            seed_all(0)
            for weight in weights if disturbance else ():
                weight.add_(torch.randn_like(weight), alpha=disturbance)
            outputs.append(tensors_held(model.train()(in_type_of(model, images))))
            buffers.append({name: tensor.clone() for name, tensor in model.named_buffers()})
        model.to("cpu")
    (ours, theirs), (old, new) = outputs, buffers
    if _shapes(ours) != _shapes(theirs):
        return False
    shared = [name for name in old if name in new]
    return _difference([*ours, *(old[n] for n in shared)], [*theirs, *(new[n] for n in shared)]) == 0


def trained(before: nn.Module, after: nn.Module, data: Data, scoring: Scoring) -> Trained:
    """Compute metrics of two models on the test images, and their prediction for each.

    Raises:
        DataError: the classes of the data and the models differ, or there are no targets.
    """
    device = next((p.device for p in before.parameters()), torch.device("cpu"))
    metrics = [scoring.metrics(device) for _ in range(2)]
    rows: list[ImageRow] = []
    with _evaluating(before, after):
        for batch in batches(data.test, 0, 0):
            images, targets = pair_of(batch)
            scoring.check_targets(targets, data.name)
            on_device = targets.to(device)
            outputs = [_outputs(model, images) for model in (before, after)]
            for of_arm, output in zip(metrics, outputs, strict=True):
                scoring.update(of_arm, output, on_device)
            ours, theirs = (scoring.logits(output, on_device).float() for output in outputs)
            rows += _rows(len(rows), targets, ours, theirs, scoring)
    if not rows:
        raise DataError(f"{data.name} has no test images")
    return Trained(computed(metrics[0]), computed(metrics[1]), tuple(rows))


def _rows(
    start: int, targets: torch.Tensor, before: torch.Tensor, after: torch.Tensor, scoring: Scoring
) -> Iterator[ImageRow]:
    predictions = [scoring.predictions(logits).cpu() for logits in (before, after)]
    single = scoring.task is Task.CLASSIFICATION and not scoring.values and targets.dim() == 1
    for number in range(len(targets)):
        ours, theirs = (of_arm[number] for of_arm in predictions)
        target, first, second = (int(item) if single else None for item in (targets[number], ours, theirs))
        same = (ours == theirs).double().mean().item()
        yield ImageRow(start + number, target, first, second, _difference([before[number]], [after[number]]), same)


@contextlib.contextmanager
def _evaluating(before: nn.Module, after: nn.Module) -> Iterator[None]:
    with torch.no_grad(), state_kept(before), state_kept(after):
        before.eval()
        after.eval()
        yield


def _outputs(model: nn.Module, images: torch.Tensor) -> Any:
    return model(in_type_of(model, images).to(next(model.parameters(), images).device))
